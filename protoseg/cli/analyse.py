"""``protoseg analyse``: what prototypes stand for, where a model errs, what adaptation changed."""

from __future__ import annotations

from collections.abc import Sequence

from protoseg.cli.analyse_adaptation import add_adaptation
from protoseg.cli.analyse_prototypes import add_prototypes
from protoseg.cli.analyse_sweep import add_sweep
from protoseg.cli.analyse_uncertainty import add_uncertainty
from protoseg.cli.tool import run_tool


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg analyse``; ends with exit code 1 and one message at wrong input."""
    run_tool(
        "protoseg analyse",
        "Look into a trained model: its prototypes, its errors, what adaptation or the number of prototypes changed.",
        (add_prototypes, add_uncertainty, add_adaptation, add_sweep),
        "evaluate",
        arguments,
    )
