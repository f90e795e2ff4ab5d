"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from benchmarks.adaptation import AdaptationSetting, adaptation_steps
from benchmarks.against import AgainstSetting, against_steps
from benchmarks.contrast import ContrastSetting, contrast_steps
from benchmarks.data import DataSetting, data_steps
from benchmarks.head import HeadSetting, head_steps
from benchmarks.inference import InferenceSetting, inference_steps
from benchmarks.labelling import LabellingSetting, labelling_steps
from benchmarks.loader import LoaderSetting, loader_steps
from benchmarks.machine import about
from benchmarks.measure import Steps, measure
from benchmarks.precision import PrecisionSetting, precision_steps
from benchmarks.predicting import PredictingSetting, predicting_steps
from benchmarks.report import plot, table, write_json
from benchmarks.sinkhorn import SinkhornSetting, sinkhorn_steps
from benchmarks.step import StepSetting, step_steps
from benchmarks.tuning import TuningSetting, tuning_steps
from benchmarks.twins import TwinSetting, twin_steps
from protoseg.types import ProtosegError


class Benchmark(NamedTuple):
    """What ``--help`` says, the sizes it takes, and what makes its alternatives."""

    text: str
    sizes: Any
    steps: Steps


BENCHMARKS = {
    "head": Benchmark("the prototype core: plain products (the floor), ours, class by class", HeadSetting, head_steps),
    "sinkhorn": Benchmark("clustering: all classes at once, class by class", SinkhornSetting, sinkhorn_steps),
    "contrast": Benchmark("pixel_to_pixel: in pieces, all pairs at once", ContrastSetting, contrast_steps),
    "twins": Benchmark("training step of the head alone: softmax, prototype", TwinSetting, twin_steps),
    "step": Benchmark("whole training step: softmax twin, prototype model", StepSetting, step_steps),
    "precision": Benchmark("whole training step: fp32, bf16, bf16 + compile", PrecisionSetting, precision_steps),
    "tuning": Benchmark("whole step on a ViT-S: kept maps, frozen, LoRA, full", TuningSetting, tuning_steps),
    "adaptation": Benchmark("whole training step: DACS, DAFormer, and + pgpc", AdaptationSetting, adaptation_steps),
    "against": Benchmark("whole step by Lightning: smp with cross-entropy, ours", AgainstSetting, against_steps),
    "data": Benchmark("reading and augmenting on one core: Pillow + torchvision, ours", DataSetting, data_steps),
    "labelling": Benchmark("memory of labelling a large image: ours, its scores", LabellingSetting, labelling_steps),
    "loader": Benchmark("JPEGs by the DataLoader: decoded before, 0, 1, 2 workers", LoaderSetting, loader_steps),
    "predicting": Benchmark("a folder of photos: a loop of smp, ours", PredictingSetting, predicting_steps),
    "inference": Benchmark("label map of an image from its embeddings", InferenceSetting, inference_steps),
}


def main() -> None:
    """Entry of ``python -m benchmarks``."""
    parser = _parser()
    options = vars(parser.parse_args())
    benchmark, device = BENCHMARKS[options["command"]], torch.device(options["device"])
    setting = benchmark.sizes(**{name: options[name] for name in benchmark.sizes._fields})
    if options["plot"] and not options["over"]:
        parser.error("--plot: expected it together with --over SIZE=A,B,…, which says what to plot against")
    steps = benchmark.steps
    if options.get("against"):
        steps = partial(steps, against=options["against"])
    try:
        runs = measure(steps, _settings(setting, options["over"]), options["pairs"], device, options["busy"])
    except ProtosegError as error:
        parser.error(str(error))
    machine = about(device)
    where = f"{machine['device']}, {machine['threads']} threads"
    for run in runs:
        Console().print(table(run, f"{options['command']}, {run.setting.describe()}, {where}"))
    machine["time"] = "of the processor, all threads" if options["busy"] else "by the clock"
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    if options["json"]:
        write_json(options["json"], runs, {**machine, "pairs": options["pairs"]})
    if options["plot"]:
        plot(options["plot"], runs, options["over"].split("=")[0], f"{options['command']}, {where}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="rehearse: all that is to be measured on a GPU, by itself",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for size, default in benchmark.sizes._field_defaults.items():
            command.add_argument(f"--{size.replace('_', '-')}", type=int, default=default)
        if name == "head":
            command.add_argument("--against", metavar="FILE", type=Path, help="the released module, which you have")
        command.add_argument("--pairs", type=int, default=5, help="runs of each; medians and paired ratios are shown")
        command.add_argument("--busy", action="store_true", help="processor time, for a CPU that others use as well")
        command.add_argument("--over", metavar="SIZE=A,B,…", help="measure at several values of one size")
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--json", type=Path, help="also write the result here")
        command.add_argument("--plot", type=Path, help="with --over: time and memory against that size, a PNG")
    return parser


def _settings(setting: Any, over: str | None) -> list[Any]:
    if over is None:
        return [setting]
    size, _, values = over.partition("=")
    if size not in setting._fields or not all(value.isdecimal() for value in values.split(",")):
        raise ProtosegError(
            f"--over: expected one of {', '.join(setting._fields)} with whole numbers, e.g. "
            f"{setting._fields[0]}=100,1000, got {over!r}"
        )
    return [setting._replace(**{size: int(value)}) for value in values.split(",")]
