"""The frame of the command-line tools: commands that take settings as ``KEY=VALUE`` beside their options."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from protoseg.run.errors import run_with_clear_errors


def call(run: str, settings: Mapping[str, Any], config_name: str) -> None:
    """Import ``run``, a function as ``module:name``, and call it; exit code 1 and one message at wrong input."""
    run_with_clear_errors(lambda: resolve_name(run)(**settings), config_name)


class Tool:
    """``protoseg NAME COMMAND …``; what a command runs is imported when it is called, for torch takes seconds."""

    def __init__(self, name: str, description: str, config_name: str) -> None:
        self.name, self.config_name = name, config_name  # the file of conf/ that a misspelt override is compared with
        self.parser = ArgumentParser(prog=f"protoseg {name}", description=description)
        self._commands = self.parser.add_subparsers(metavar="COMMAND", required=True)

    def command(self, name: str, run: str, text: str, example: str) -> ArgumentParser:
        """Add a command; ``run``, a function as ``module:name``, gets its options by their names."""
        example = f"example: protoseg {self.name} {name} {example}"
        parser: ArgumentParser = self._commands.add_parser(name, help=text, description=text, epilog=example)
        parser.set_defaults(run=run)
        return parser

    def main(self, arguments: Sequence[str] | None) -> None:
        """Parse the command line and run its command; exit code 1 and one message at wrong input."""
        options, overrides = self.parser.parse_known_args(arguments)
        # argparse does not find overrides that follow an option.
        if overrides and not (hasattr(options, "overrides") and all("=" in x and x[0] != "-" for x in overrides)):
            self.parser.error(f"unrecognized arguments: {' '.join(overrides)}")
        settings = vars(options)
        if overrides:
            settings["overrides"] += overrides
        call(settings.pop("run"), settings, self.config_name)


def add_trust(command: ArgumentParser) -> None:
    """Let a command that opens a checkpoint take ``--trust MODULE``."""
    text = "module whose classes the checkpoint may build besides: your own, or one that you have read"
    command.add_argument("--trust", action="append", default=[], metavar="MODULE", help=text)
