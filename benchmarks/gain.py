"""Does a pixel contrast pay? Many short adaptations, one change at a time: ``python -m benchmarks.gain run FOLDER``.

What is run stands in ``gain.yaml``: arms, pairs of data sets, seeds. Every adaptation begins with the weights of the
source-only training of its pair and seed, so that arms are compared from one start. A run is a process with one
thread; as many as ``--jobs`` side by side. What is done stays done: the same command goes on. A run is judged by its
last state, student and teacher, on the target's judged images in the order of their names: the first half is to choose
by, the second to report. ``python -m benchmarks.gain table FOLDER`` prints means over seeds ± their standard deviation,
and differences to ``--against`` by seed, of whatever is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from threading import Lock
from typing import Any, NamedTuple

import torch
import yaml  # type: ignore[import-untyped]

from protoseg.evaluation.metrics import SegmentationMetrics
from protoseg.evaluation.predictor import Predictor, choose_device
from protoseg.files import write_json
from protoseg.trained import open_file
from protoseg.types import ProtosegError

PLAN: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
HALVES = ("choose", "report")
ENDS = ("small_source_only", "small_oracle")
_BUSY: dict[Run, Lock] = defaultdict(Lock)  # many begin with one training


class Run(NamedTuple):
    """One training."""

    pair: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return "-".join(map(str, self))

    @property
    def start(self) -> Run | None:
        """The training whose weights this one begins with."""
        arm = PLAN["arms"][self.arm]
        return None if arm["of"] in ENDS else Run(self.pair, arm.get("start", "source_only"), self.seed)

    def checkpoint(self, folder: Path) -> Path:
        """Its last state."""
        return folder / self.name / "checkpoints" / "last.ckpt"

    def words(self, folder: Path) -> list[str]:
        """Overrides of train.py."""
        arm = PLAN["arms"][self.arm]
        words = [f"experiment={arm['of']}", *PLAN["pairs"][self.pair], *PLAN["base"], *arm.get("set", ())]
        if self.start:
            words.append(f"init_from={self.start.checkpoint(folder)}")
        if arm["of"] in (*ENDS, "small_dacs"):  # they draw no class more often
            words = [word for word in words if not word.startswith("data.rare_classes.")]
        else:
            words.append("method._target_=benchmarks.gain_terms.Watched")
        if variant := arm.get("variant"):
            words.append("contrast._target_=benchmarks.gain_terms.VariantContrast")
            given = {key: PLAN["rare"] if value == "${rare}" else value for key, value in variant.items()}
            words += [f"++contrast.{key}={json.dumps(value)}" for key, value in given.items()]
        return [*words, f"seed={self.seed}"]


def planned(arms: Sequence[str], pairs: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    """Runs of the plan, seeds last, so that what is compared comes early; raises ProtosegError for an unknown name."""
    for name, of in [*((arm, "arms") for arm in arms), *((pair, "pairs") for pair in pairs)]:
        if name not in PLAN[of]:
            raise ProtosegError(f"{of}: expected one of {', '.join(PLAN[of])}, got {name}; see benchmarks/gain.yaml")
    for seed, pair, arm in product(seeds, pairs, arms):
        if pair in PLAN["arms"][arm].get("pairs", pairs):
            yield Run(pair, arm, seed)


def carry_out(run: Run, folder: Path) -> None:
    """Train and judge, in processes of their own, unless it was done; what fails is told and left for another time."""
    with _BUSY[run]:
        if not (folder / f"{run.name}.json").exists():
            if run.start and not run.start.checkpoint(folder).exists():
                (folder / f"{run.start.name}.json").unlink(missing_ok=True)
                carry_out(run.start, folder)
            _carry_out(run, folder)


def _carry_out(run: Run, folder: Path) -> None:
    start = time.perf_counter()
    train = ["train.py", *run.words(folder), f"hydra.run.dir={folder / run.name}", "overwrite=true"]
    judge = ["-m", "benchmarks.gain", "judge", str(run.checkpoint(folder))]
    with open(folder / f"{run.name}.log", "w", encoding="utf-8") as log:
        if subprocess.run([sys.executable, *train], stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            return print(f"{run.name}: training failed, see {log.name}", flush=True)
        seconds = time.perf_counter() - start
        judged = subprocess.run([sys.executable, *judge], stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    if judged.returncode:
        return print(f"{run.name}: could not be judged, see {log.name}", flush=True)
    found = json.loads(judged.stdout.splitlines()[-1])
    words = [word for word in run.words(folder) if not word.startswith("init_from=")]
    write_json(folder / f"{run.name}.json", {"run": run._asdict(), "words": words, "seconds": seconds, "IoU": found})
    said = ", ".join(f"{network} {mean(found[network]['report'].values()):.1f}" for network in found)
    print(f"{run.name}: {said}; {seconds:.0f} s", flush=True)


def judge(checkpoint: Path) -> dict[str, dict[str, dict[str, float]]]:
    """IoU in % of each class that the images have, by network and half."""
    torch.set_num_threads(1)
    file = open_file(checkpoint)
    data = file.datamodule(num_workers=0).target
    predictor, space, dataset = Predictor(**PLAN["inference"]), file.label_space, data.dataset(data.val_split)
    device = choose_device(None)
    middle = len(dataset) // 2
    found: dict[str, dict[str, dict[str, float]]] = {}
    for network in file.networks:
        model, found[network] = file.model(network).to(device), {}
        for half, part in zip(HALVES, (range(middle), range(middle, len(dataset))), strict=True):
            metric = SegmentationMetrics(space)
            for image, label, _ in map(dataset.__getitem__, part):
                size = torch.tensor([label.shape])
                metric.update(predictor.predict(model, image[None].to(device), size)[0].cpu(), label)
            iou = zip(space.classes, metric.compute()["IoU"].tolist(), strict=True)
            found[network][half] = {name: round(100 * value, 2) for name, value in iou if value == value}
    return found


def table(folder: Path, against: str, half: str) -> str:
    """Markdown of all that is done: mIoU of student and teacher, of the rare classes, and differences by seed."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        run, iou = Run(**kept["run"]), {network: kept["IoU"][network][half] for network in kept["IoU"]}
        judged = iou.get("teacher", iou["student"])
        found[run.pair, run.arm][run.seed] = {
            "student": mean(iou["student"].values()),
            "teacher": mean(judged.values()),
            "rare": mean(judged[name] for name in PLAN["rare"] if name in judged),
            "seconds": kept["seconds"],
        }
    columns = ("student", "teacher", "rare")
    lines = [
        f"| pair | arm | seeds | student | teacher | rare (teacher) | teacher − {against} | rare − {against} | s |"
    ]
    lines.append("|---" * 9 + "|")
    for pair, arm in ((pair, arm) for pair in PLAN["pairs"] for arm in PLAN["arms"] if (pair, arm) in found):
        runs, other = found[pair, arm], found.get((pair, against), {})
        cells = [_spread([one[key] for one in runs.values()]) for key in columns]
        both = sorted(runs.keys() & other.keys())
        for key in ("teacher", "rare"):
            cells.append(_spread([runs[seed][key] - other[seed][key] for seed in both], "+") if both else "–")
        seconds = f"{mean(one['seconds'] for one in runs.values()):.0f}"
        lines.append(f"| {' | '.join([pair, arm, ', '.join(map(str, sorted(runs))), *cells, seconds])} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], sign: str = "") -> str:
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Entry of ``python -m benchmarks.gain``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, shown, one = (commands.add_parser(name) for name in ("run", "table", "judge"))
    for command in (run, shown):
        command.add_argument("folder", type=Path)
    run.add_argument("--arms", nargs="+", default=[*PLAN["arms"]], metavar="ARM")
    run.add_argument("--pairs", nargs="+", default=[*PLAN["pairs"]], metavar="PAIR")
    run.add_argument("--seeds", nargs="+", type=int, default=PLAN["seeds"], metavar="SEED")
    run.add_argument("--jobs", type=int, default=2, help="side by side; 2")
    shown.add_argument("--against", default="daformer", choices=PLAN["arms"], help="daformer")
    shown.add_argument("--half", default="report", choices=HALVES, help="report")
    one.add_argument("checkpoint", type=Path)
    options = parser.parse_args()
    if options.command == "judge":
        print(json.dumps(judge(options.checkpoint)))
    elif options.command == "table":
        print(table(options.folder, options.against, options.half))
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        runs = list(planned(options.arms, options.pairs, options.seeds))
        print(f"{len(runs)} runs", flush=True)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda each: carry_out(each, options.folder), runs))


if __name__ == "__main__":
    main()
