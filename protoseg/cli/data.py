"""``protoseg data``: the tool for data sets."""

from __future__ import annotations

from collections.abc import Sequence

from protoseg.cli.data_check import add_check
from protoseg.cli.data_export import add_export
from protoseg.cli.data_info import add_info
from protoseg.cli.data_pack import add_pack
from protoseg.cli.data_show import add_show
from protoseg.cli.data_stats import add_stats
from protoseg.cli.render import add_render
from protoseg.cli.tool import run_tool


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg data``; ends with exit code 1 and one message at wrong input."""
    run_tool(
        "protoseg data",
        "The tool for data sets.",
        (add_info, add_check, add_show, add_stats, add_pack, add_export, add_render),
        "train",
        arguments,
    )
