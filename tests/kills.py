"""Kill (-9) a short training at random moments, resume it each time, and compare its end with the run never killed.

    python tests/kills.py --kills 50 --method supervised
    python tests/kills.py --kills 50 --method adaptation

Compared are the bits of weights, prototypes, queues, teacher, optimizer and schedule, of the last and of the best
checkpoint, and all that was logged. Each run is forked off this process, which has read the libraries once. A row of
the log is written a moment after the checkpoint of its step; one lost in between is counted, and is no failure.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from protoseg.checkpoint import read_checkpoint
from protoseg.evaluation.curves import read_log
from protoseg.run.train import run_training
from tests.conftest import CONF, TINY

SETTINGS = {
    "supervised": (*TINY, "head.assignment=gumbel", "decoder.dropout=0.1"),
    "adaptation": (
        *(setting for setting in TINY if not setting.startswith("head.")),
        "experiment=small_pgpc",
        "method.threshold=0.1",
        "contrast.reliable=0.1",
    ),
}
SHORT = (
    "trainer.max_steps=20",
    "trainer.val_check_interval=5",
    "trainer.limit_val_batches=2",
    "callbacks.last.every_n_train_steps=2",
    "data.num_workers=1",
    "threads=1",
    "resume=auto",
)


def configure(method: str, output: Path) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*SETTINGS[method], *SHORT, f"paths.output={output}", "data.val_batch_size=1"])


def start(cfg: DictConfig) -> int:
    """Train in a child process, which writes what it says to a file; its id."""
    output = Path(cfg.paths.output)
    output.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(output / "output.txt", "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        run_training(cfg)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_to_end(cfg: DictConfig) -> None:
    wait(start(cfg), cfg, None)


def wait(child: int, cfg: DictConfig, seconds: float | None) -> bool:
    """Wait for the end, or kill after ``seconds``; whether it was killed."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise SystemExit(f"a run failed:\n{(Path(cfg.paths.output) / 'output.txt').read_text()[-3000:]}")
    return False


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from leaves(value, f"{prefix}.{i}")
    else:
        yield prefix, node


def differences(straight: Path, killed: Path) -> tuple[list[str], int]:
    """What differs between the ends of two runs, and how many logged rows the second has lost."""
    found: list[str] = []
    for name in ("last", "best"):
        a, b = (read_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for folder in (straight, killed))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            ours, theirs = dict(leaves(a[part], part)), dict(leaves(b[part], part))
            found += [f"{name}: {key}" for key in ours.keys() ^ theirs.keys()]
            found += [f"{name}: {key}" for key in ours.keys() & theirs.keys() if not same(ours[key], theirs[key])]
    rows, resumed = ({row["step"]: row for row in read_log(folder)} for folder in (straight, killed))
    lost = 0
    for step, row in rows.items():
        mine = resumed.get(step, {})
        keys = [key for key, value in row.items() if value and key not in ("epoch", "train/images_per_s")]
        missing = [key for key in keys if not mine.get(key)]
        found += [f"step {step}: {key}" for key in missing if key.startswith("val/")]
        found += [f"step {step}: {key}" for key in set(keys) - set(missing) if mine[key] != row[key]]
        lost += any(key.startswith("train/") for key in missing)
    return found, lost


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--method", choices=list(SETTINGS), default="supervised")
    parser.add_argument("--kills-per-run", type=int, default=5, help="a run that was killed so often may end")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    folder, moments = Path(tempfile.mkdtemp(prefix="kills_")), random.Random(options.seed)
    straight = configure(options.method, folder / "straight")
    started = time.monotonic()
    run_to_end(straight)
    seconds = time.monotonic() - started
    print(f"never killed: {seconds:.1f} s", flush=True)
    kills = good = run = lost = 0
    while kills < options.kills:
        run += 1
        cfg = configure(options.method, folder / str(run))
        steps: list[str] = []
        while len(steps) < min(options.kills_per_run, options.kills - kills):
            if not wait(start(cfg), cfg, moments.uniform(0, seconds)):
                break
            last = Path(cfg.paths.output) / "checkpoints" / "last.ckpt"
            steps.append(str(read_checkpoint(last)["global_step"]) if last.is_file() else "-")
        run_to_end(cfg)
        kills += len(steps)
        found, rows = differences(Path(straight.paths.output), Path(cfg.paths.output))
        lost += rows
        good += 0 if found else len(steps)
        verdict = f"DIFFERENT: {', '.join(found[:8])}" if found else "same bits"
        print(f"run {run}: killed {len(steps)} times, checkpoints of steps {' '.join(steps)}: {verdict}", flush=True)
        shutil.rmtree(cfg.paths.output) if not found else print(f"kept: {cfg.paths.output}")
    print(f"{good}/{kills} kills resumed to the same end ({options.method}, {run} runs, {lost} rows of the log lost)")
    if good == kills:
        shutil.rmtree(folder)
    sys.exit(good < kills)


if __name__ == "__main__":
    main()
