"""The frame of the command-line tools: subcommands that take settings as ``KEY=VALUE`` beside their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from protoseg.run.errors import run_with_clear_errors
from protoseg.text import override


def run_tool(
    prog: str,
    description: str,
    commands: Sequence[Callable[[Any], None]],
    config_name: str,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse the command line and run the command's ``run``; exit code 1 and one message at wrong input.

    Args:
        prog: how the tool is called.
        description: one sentence for ``--help``.
        commands: each adds one subcommand to the parser's and sets its ``run``.
        config_name: file of ``conf/`` whose keys a misspelt override is compared with.
        arguments: of the command line, unless given.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for add in commands:
        add(subparsers)
    options, overrides = parser.parse_known_args(arguments)
    # argparse does not find overrides that follow an option.
    if overrides and not (hasattr(options, "overrides") and all("=" in x and x[0] != "-" for x in overrides)):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if overrides:
        options.overrides += overrides
    run_with_clear_errors(lambda: options.run(options), config_name)


def add_trust(command: argparse.ArgumentParser) -> None:
    """Let a command that opens a checkpoint take ``--trust MODULE``."""
    command.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE",
        help="module whose classes the checkpoint may build besides: your own, or one that you have read",
    )


def named(words: Sequence[str], places: Sequence[str]) -> list[str]:
    """Hydra's overrides for words given by their place: ``RUN/best.ckpt`` becomes ``ckpt_path=RUN/best.ckpt``.

    A word with ``=`` before any ``/`` is an override itself, one that begins with ``-`` an option.
    """
    free, result = list(places), []
    for word in words:
        is_override = "=" in word.partition("/")[0] or word.startswith(("-", "~", "+"))
        result.append(word if is_override or not free else override(free.pop(0), word))
    return result
