"""``python -m protoseg.data``: the tool for data sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from protoseg.cli import CONFIG_DIR
from protoseg.cli.dataset_check import add_check
from protoseg.cli.dataset_export import add_export
from protoseg.cli.dataset_info import add_info
from protoseg.cli.dataset_pack import add_pack
from protoseg.cli.dataset_show import add_show
from protoseg.cli.dataset_stats import add_stats
from protoseg.cli.errors import run_with_clear_errors
from protoseg.cli.render import add_render


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``python -m protoseg.data``; ends with exit code 1 and one message at wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.data",
        description=__doc__.replace("``python -m protoseg.data``: the", "The"),  # type: ignore[union-attr]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_info, add_check, add_show, add_stats, add_pack, add_export, add_render):
        add(commands)
    options, overrides = parser.parse_known_args(arguments)
    # argparse does not find overrides that follow an option.
    if overrides and not (hasattr(options, "overrides") and all("=" in x and x[0] != "-" for x in overrides)):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if overrides:
        options.overrides += overrides
    run_with_clear_errors(lambda: options.run(options), CONFIG_DIR, "train")
