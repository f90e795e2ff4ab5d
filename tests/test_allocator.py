"""Freed memory is kept: the second use of a large tensor faults in no pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from protoseg.allocator import keep_freed_memory
{call}
def use():
    torch.ones(16, 1024, 1024).add_(1)  # 64 MiB
for _ in range(5):  # until the heap has grown to what it needs, which depends on its layout
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_no_page_is_faulted_in_anew() -> None:
    faults = {}
    for call in ("keep_freed_memory()", ""):
        result = subprocess.run([sys.executable, "-c", CODE.format(call=call)], capture_output=True, text=True)
        faults[call] = int(result.stdout)
    assert faults["keep_freed_memory()"] < 0.1 * faults[""]


GAPS = """
import torch
from protoseg.allocator import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
blocks = [torch.ones(4, 1024, 1024) for _ in range(16)]  # 16 MiB each
full = resident()
del blocks[:15]  # the last one keeps the heap's end where it is
kept = full - resident()
give_back_freed_memory()
print(kept, full - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is glibc's")
def test_gaps_between_what_is_in_use_are_given_back_when_asked() -> None:
    result = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True)
    kept, given = map(int, result.stdout.split())
    assert kept < 2**24
    assert given > 200 * 2**20


LARGE = """
import ctypes, resource
from protoseg.allocator import keep_freed_memory
keep_freed_memory()
libc, size = ctypes.CDLL(None), 750 * 2**20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(3)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_not_even_more_than_two_gigabytes_are_given_back() -> None:
    result = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True)
    assert int(result.stdout) < 1000  # of 576 000 pages
