"""``protoseg doctor``: what is installed here, what it runs on, and what of it is slow."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from protoseg import __version__
from protoseg.allocator import keep_freed_memory
from protoseg.data.loading import SHARED_MEMORY
from protoseg.distributed import usable_cores
from protoseg.text import Terminal

_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "segmentation-models-pytorch", "hydra-core", "numpy")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU in so many microseconds, or max


def doctor() -> None:
    """Print what was found, each with what to do where it is slow."""
    rows = [("protoseg, Python", f"{__version__}, {platform.python_version()}, {platform.platform()}", "")]
    rows += [(name, version(name), "") for name in _PACKAGES]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    slow = "" if gpus else "trainings take hours on a CPU; for one see experiment=small_…, and docs/speed.md"
    rows.append(("GPUs", ", ".join(gpus) or f"none (torch is built for CUDA: {torch.version.cuda})", slow))
    cores, threads = usable_cores(), torch.get_num_threads()
    quota = _QUOTA.read_text().split() if _QUOTA.is_file() else ["max"]
    share = float(cores) if quota[0] == "max" else min(cores, int(quota[0]) / int(quota[1]))
    many = f"more threads than cores wait for one another: threads={max(1, int(share))}" if threads > share else ""
    rows.append(("CPU", f"{cores} cores, {share:g} of them granted, {threads} threads of torch", many))
    twice = "" if (kept := keep_freed_memory()) else "a step on a CPU takes about twice as long; use Linux with glibc"
    rows.append(("freed memory", "kept by the C library" if kept else "given back", twice))
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free / 1e9
        small = "data.num_workers=0, or docker run --shm-size=8g" if free < 1 else ""
        rows.append((f"shared memory ({SHARED_MEMORY})", f"{free:.1f} GB free", small))
    Terminal().table("What is here", ("what", "found", "what to do"), rows, left=range(3))
