"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from protoseg.benchmark.adaptation import AdaptationSetting, compare_adaptations
from protoseg.benchmark.head import HeadSetting, compare_heads
from protoseg.benchmark.paired import Timing

COMMANDS: dict[str, tuple[str, Any, Callable[..., dict[str, Timing]]]] = {
    "head": (
        "forward, loss, backward and prototype update of the prototype head against its softmax twin",
        HeadSetting,
        compare_heads,
    ),
    "adaptation": (
        "whole training steps of DACS, DAFormer, and DAFormer with the pgpc pixel contrast",
        AdaptationSetting,
        compare_adaptations,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m protoseg.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (text, sizes, _) in COMMANDS.items():
        command = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for size, default in sizes._field_defaults.items():
            command.add_argument(f"--{size.replace('_', '-')}", type=int, default=default)
        command.add_argument("--pairs", type=int, default=5, help="paired runs; medians are reported")
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--json", type=Path, help="also write the result here")
    arguments = vars(parser.parse_args())
    _, sizes, compare = COMMANDS[arguments["command"]]
    setting = sizes(**{name: arguments[name] for name in sizes._fields})
    result = compare(setting, arguments["pairs"], torch.device(arguments["device"]))

    threads = torch.get_num_threads()
    table = Table(title=f"{arguments['command']} step, {setting.describe()}, {arguments['device']}, {threads} threads")
    for column in ("", "median ms", f"over {next(iter(result))}", "over the one above"):
        table.add_column(column, justify="right")
    for name, timing in result.items():
        table.add_row(name, f"{timing.milliseconds:.1f}", f"{timing.over_first:.2f}", f"{timing.over_previous:.2f}")
    Console().print(table)
    if arguments["json"]:
        arguments["json"].write_text(json.dumps({"setting": setting._asdict(), "result": result}, indent=2))


if __name__ == "__main__":
    main()
