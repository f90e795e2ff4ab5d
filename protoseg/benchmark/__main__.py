"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from protoseg.benchmark.head import HeadSetting, compare_heads


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m protoseg.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    head = commands.add_parser(
        "head",
        help="forward, loss, backward and prototype update of the prototype head against its softmax twin",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, default in HeadSetting._field_defaults.items():
        head.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    head.add_argument("--pairs", type=int, default=5, help="paired runs; medians are reported")
    head.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    head.add_argument("--json", type=Path, help="also write the result here")
    arguments = vars(parser.parse_args())
    setting = HeadSetting(**{name: arguments[name] for name in HeadSetting._fields})
    result = compare_heads(setting, arguments["pairs"], torch.device(arguments["device"]))

    table = Table(title=f"Head step, {setting.describe()}, {arguments['device']}, {torch.get_num_threads()} threads")
    for column in ("head", "median ms", "over softmax twin"):
        table.add_column(column, justify="right")
    for name, (milliseconds, ratio) in result.items():
        table.add_row(name, f"{milliseconds:.1f}", f"{ratio:.2f}")
    Console().print(table)
    if arguments["json"]:
        arguments["json"].write_text(json.dumps({"setting": setting._asdict(), "result": result}, indent=2))


if __name__ == "__main__":
    main()
