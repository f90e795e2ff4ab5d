"""All that is to be measured on a GPU that one has for minutes: ``python -m benchmarks rehearse --json FILE``.

Every part runs in a process of its own with its own time limit, so that one that fails, hangs or fills the memory loses
nothing; what is measured is written after each. ``--dry`` runs all parts with tiny sizes in this process, on any
machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import parity
from benchmarks.measure import measure
from benchmarks.stops import count_stops

ROOT = Path(__file__).parents[1]
MODELS = ("timm", "segmentation_models_pytorch")


class Row(NamedTuple):
    """One line of the table: what was measured, and its figures by unit or name."""

    what: str
    figures: dict[str, float]


class Part(NamedTuple):
    """Something to measure.

    Attributes:
        run: makes its rows, given the device and whether this is the dry run.
        seconds: after which it is stopped.
        needs: packages without which it is left out.
        on_gpu: whether it has nothing to say on a CPU.
    """

    run: Callable[[torch.device, bool], Iterator[Row]]
    seconds: float
    needs: tuple[str, ...] = ()
    on_gpu: bool = False


def benchmark(
    name: str, gpu: list[dict[str, int]], dry: dict[str, int], device: torch.device, tiny: bool, only: str = ""
) -> Iterator[Row]:
    """The rows of one of the other benchmarks, at several sizes; of those alternatives that have ``only`` in them."""
    module = importlib.import_module(f"benchmarks.{name}")
    size, all_steps = getattr(module, f"{name.capitalize()}Setting"), getattr(module, f"{name}_steps")

    @cache  # memory and time are measured on the same models: compiling takes minutes
    def steps(setting: Any, device: torch.device) -> dict[str, Callable[[], object]]:
        return {key: step for key, step in all_steps(setting, device).items() if only in key}

    for sizes in [dry] if tiny else gpu:
        (measured,) = measure(steps, [size(**sizes)], 1 if tiny else 7, device)
        images = getattr(measured.setting, "images", None)
        for way, timing in measured.timings.items():
            figures = {"ms": timing.milliseconds, "over first": timing.over_first}
            megabytes = measured.megabytes[way]
            if megabytes is not None:
                figures["MB"] = megabytes
            if images:
                figures["images/s"] = 1000 * images / timing.milliseconds
            yield Row(f"{measured.setting.describe()}: {way}", figures)


def machine(device: torch.device, tiny: bool) -> Iterator[Row]:
    """What the device does at best: a matrix product and a copy."""
    side, repeats = (256, 2) if tiny else (8192, 10)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = _seconds(partial(torch.matmul, a, b), repeats, device)
        yield Row(f"{side} x {side} product, {_name(dtype)}", {"TFLOP/s": 2 * side**3 / seconds / 1e12})
    source = torch.empty(side * side * 4, device=device)
    seconds = _seconds(partial(torch.empty_like(source).copy_, source), repeats, device)
    yield Row("copy, read and written", {"GB/s": 2 * source.nbytes / seconds / 1e9})


def _seconds(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    step()
    started = _now(device)
    for _ in range(repeats):
        step()
    return (_now(device) - started) / repeats


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def errors(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Differences from fp64 on a CPU, by what is computed and in which precision."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for what, figures in parity.errors(device, dtype, tiny):
            yield Row(f"{what}, {_name(dtype)}", figures)
    torch.backends.cudnn.allow_tf32 = False  # fp32's convolutions had been in TF32 on a GPU that has it
    try:
        for what, figures in parity.errors(device, torch.float32, tiny):
            yield Row(f"{what}, float32 without TF32", figures)
    finally:
        torch.backends.cudnn.allow_tf32 = True


def stops(device: torch.device, tiny: bool) -> Iterator[Row]:
    """How often one step makes the host wait; its first steps, which make state, are not counted."""
    for name, only in (("step", "prototype"), ("adaptation", "pgpc")):
        module = importlib.import_module(f"benchmarks.{name}")
        size = getattr(module, f"{name.capitalize()}Setting")
        setting = size(batch=2, height=64, width=64) if tiny else size()
        (step,) = (way for key, way in getattr(module, f"{name}_steps")(setting, device).items() if only in key)
        for _ in range(1 if tiny else 3):
            step()
        found = count_stops(step, device)
        yield Row(f"{setting.describe()}, {only}", {"stops": sum(found.values())})
        for where, times in found.most_common(12):
            yield Row(f"… {where}", {"stops": times})


def trainings(device: torch.device, tiny: bool) -> Iterator[Row]:
    """A few steps by the command line, in several strategies of Lightning's on one GPU; what it lasted in all."""
    common = [
        "experiment=camvid_prototype",
        "data=streets",
        "encoder.pretrained=false",
        "trainer.max_steps=20",
        "schedule.warmup_steps=0",
        "trainer.val_check_interval=20",
        "trainer.limit_val_batches=1",
        "callbacks.progress=null",
        "data.num_workers=4",
    ]
    for name, options in {
        "one process": "",
        "bf16": "trainer.precision=bf16-mixed",
        "fp16": "trainer.precision=16-mixed",
        "ddp + SyncBN": "trainer.strategy=ddp trainer.sync_batchnorm=true",
        "fsdp": "trainer.strategy=fsdp",
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "train.py", *common, *options.split(), f"hydra.run.dir={folder}"]
            started = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        yield Row(name if done.returncode == 0 else f"{name}: FAILED, {_last(done.stderr)}", {"s": seconds})


def marked_tests(device: torch.device, tiny: bool) -> Iterator[Row]:
    """The tests that need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "tests/training",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:])
    yield Row(_last(done.stdout), {"exit status": done.returncode})


def _last(text: str) -> str:
    return text.strip().splitlines()[-1][:200] if text.strip() else "said nothing"


HEADS = [{"classes": 19}, {"classes": 150}, {"classes": 847, "pixels": 8192, "channels": 256}]
LARGE_HEADS = [{"classes": c, "pixels": 131072} for c in (19, 150)]  # 4 images of 512 x 1024 at stride 4
TINY_HEAD = {"pixels": 64, "classes": 3, "prototypes": 2, "channels": 8}
TINY_STEP = {"batch": 2, "height": 64, "width": 64}
TINY_HRNET = {**TINY_STEP, "hrnet": 18, "compiled": 0}
TINY_DATA = {"width": 128, "height": 96, "crop_height": 48, "crop_width": 64, "images": 2}
TINY_MAP = {"height": 5, "width": 6, "channels": 8}

PARTS: dict[str, Part] = {
    "machine": Part(machine, 40),
    "errors": Part(errors, 60),
    "stops": Part(stops, 60, MODELS),
    "head": Part(partial(benchmark, "head", [*HEADS, *LARGE_HEADS], TINY_HEAD), 60),
    "hrnet": Part(partial(benchmark, "precision", [{"compiled": 0}], TINY_HRNET), 120, MODELS),
    "adaptation": Part(
        partial(benchmark, "adaptation", [{}, {"batch": 2, "height": 512, "width": 512, "classes": 19}], TINY_STEP),
        60,
        MODELS,
    ),
    "step": Part(partial(benchmark, "step", [{}], TINY_STEP), 40, MODELS),
    "tests": Part(marked_tests, 100, ("pytest", "hydra", "albumentations", *MODELS), on_gpu=True),
    "contrast": Part(partial(benchmark, "contrast", [{}], TINY_MAP), 30),
    "sinkhorn": Part(partial(benchmark, "sinkhorn", [{}], {"pixels": 64, "classes": 3, "prototypes": 2}), 30),
    "inference": Part(partial(benchmark, "inference", [{}], {"height": 32, "width": 64, "channels": 8}), 30),
    "trainings": Part(trainings, 120, ("hydra", "albumentations", *MODELS), on_gpu=True),
    "data": Part(partial(benchmark, "data", [{}], TINY_DATA), 40, ("cv2", "albumentations", "simplejpeg")),
    **{
        f"compiled {twin}": Part(
            partial(benchmark, "precision", [{}], TINY_HRNET, only=f"{twin} bf16 + compile"), 240, MODELS, on_gpu=True
        )
        for twin in ("prototype", "parametric")
    },
}


def main() -> None:
    """Entry of ``python -m benchmarks rehearse``."""
    options = _parser().parse_args()
    device = torch.device(options.device)
    if options.part:
        write_rows(PARTS[options.part], device, options.dry, options.json)
        return
    parts = options.only or list(PARTS)
    rehearse(parts, device, options.dry, options.json, 60 * options.minutes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks rehearse", description=__doc__)
    parser.add_argument("rehearse", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=8, help="after which no part goes on")
    parser.add_argument("--json", type=Path, default=Path("rehearsal.json"), help="written after each part")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, in this process")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # what the process of one part is told
    return parser


def rehearse(parts: list[str], device: torch.device, dry: bool, file: Path, seconds: float) -> None:
    """Run parts one after the other, write ``file`` after each, and print its rows."""
    ends = time.monotonic() + seconds
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}"
    about = {"device": name, "torch": torch.__version__, "python": platform.python_version(), "dry": dry}
    results: list[dict[str, Any]] = []
    print(f"{name}, torch {torch.__version__}")
    for part in parts:
        started = time.monotonic()
        result = _result(part, device, dry, ends - started)
        results.append({"part": part, **result, "seconds": round(time.monotonic() - started, 1)})
        file.write_text(json.dumps({"machine": about, "parts": results}, indent=2))
        for line in lines(results[-1]):
            print(line, flush=True)


def lines(result: dict[str, Any]) -> list[str]:
    """A part's rows of the table."""
    head = f"{result['part']}: {result['status']}, {result['seconds']} s"
    out = [head + (f" ({result['reason']})" if result["reason"] else "")]
    for what, figures in result["rows"]:
        shown = ", ".join(f"{value:.4g} {unit}" for unit, value in figures.items())
        out.append(f"  {what} | {shown}")
    return out


def _result(name: str, device: torch.device, dry: bool, seconds: float) -> dict[str, Any]:
    """Status, reason and rows of one part."""
    part = PARTS[name]
    missing = [package for package in part.needs if find_spec(package) is None]
    if missing:
        return _said("skipped", f"without {', '.join(missing)}")
    if part.on_gpu and device.type != "cuda":
        return _said("skipped", "needs a GPU")
    if seconds < 10 and not dry:
        return _said("skipped", "no time left")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_text("[]")
        if dry:
            status, reason = _here(part, device, file)
        else:
            status, reason = _in_a_process(name, device, file, min(part.seconds, seconds))
        return {"status": status, "reason": reason, "rows": json.loads(file.read_text())}


def _said(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason, "rows": []}


def _here(part: Part, device: torch.device, file: Path) -> tuple[str, str]:
    try:
        write_rows(part, device, True, file)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    return "measured", ""


def _in_a_process(name: str, device: torch.device, file: Path, seconds: float) -> tuple[str, str]:
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "rehearse",
        "--part",
        name,
        "--json",
        str(file),
        "--device",
        str(device),
    ]
    with open(file.with_name("said"), "w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "out of time", f"stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # and what it had started
                process.wait()
        said.seek(0)
        text = said.read()
    if status or name == "tests":
        print(text[-4000:])
    return ("failed", _last(text)) if status else ("measured", "")


def write_rows(part: Part, device: torch.device, dry: bool, file: Path) -> None:
    """Run a part; ``file`` has at any time what was measured so far."""
    rows: list[Row] = []
    for row in part.run(device, dry):
        rows.append(row)
        file.write_text(json.dumps(rows))
