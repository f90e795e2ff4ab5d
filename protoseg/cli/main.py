"""``protoseg COMMAND``: one door to the tools of ``commands.yaml``. A tool's modules are imported when it is called."""

import difflib
import math
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from protoseg import __version__, cli
from protoseg.files import existing_checkpoint
from protoseg.run.config import check_ranges, composed, named, run_with_clear_errors
from protoseg.text import command, say, tables_as_json
from protoseg.types import ProtosegError, yaml_beside

COMMANDS: dict[str, dict[str, Any]] = yaml_beside(__file__, "commands.yaml")
"""By name; what the keys mean is written in that file."""
_CODES = "exit codes: 0 done, 1 wrong input or a job that failed, 2 words that are no command or option, 130 Ctrl-C."


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg``; exit code 2 at an unknown command."""
    name, *rest = (list(sys.argv[1:] if arguments is None else arguments)) or ["--help"]
    entry = COMMANDS.get(name, {})
    if name in ("-h", "--help"):
        lines = ["usage: protoseg COMMAND …", "", "Semantic segmentation with class prototypes.", "", "commands:"]
        lines += [f"  {known:<11}{COMMANDS[known]['summary']}" for known in COMMANDS]
        example = command("protoseg", "evaluate", "RUN/checkpoints/best.ckpt", "split=val")
        print(*lines, "", "protoseg COMMAND --help says more.", _CODES, f"example: {example}", sep="\n")
    elif name == "--version":
        print(f"protoseg {__version__}")
    elif "settings" in entry:
        sys.argv = [f"protoseg {name}", *named(rest, entry.get("places", ())), *entry.get("set", ())]
        cli.train() if name == "train" else cli.evaluate(places=())
    elif "tool" in entry:
        run_tool(entry["tool"], [name, *rest])
    elif entry:
        run_tool(name, rest)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        say(f"error: unknown command {name!r}.{hint} There are {', '.join(COMMANDS)}", stderr=True)
        sys.exit(2)


def completion() -> None:
    """Print what bash completes commands and, below them, files by."""
    print(Path(__file__).with_name("completion.bash").read_text("utf-8"), end="")


def run_tool(name: str, arguments: Sequence[str] | None = None) -> None:
    """``protoseg NAME …``; exit code 1 and one message at wrong input, exit code 2 at words that are no options."""
    entry = COMMANDS[name]
    parser = ArgumentParser(prog=f"protoseg {name}", description=entry["description"])
    if "commands" in entry:
        commands = parser.add_subparsers(metavar="COMMAND", required=True)
        for each, of in entry["commands"].items():
            example = f"example: protoseg {name} {each} {of['example']}"
            command = commands.add_parser(each, help=of["text"], description=of["text"], epilog=example)
            command.set_defaults(run=of.get("run", f"{entry['run']}:{each}"))
            _add_options(command, {key: entry["options"][key] for key in of.get("uses", ())} | of.get("options", {}))
    else:
        parser.set_defaults(run=entry["run"])
        _add_options(parser, entry["options"])
    options, overrides = parser.parse_known_args(arguments)
    # argparse does not find overrides that follow an option.
    if overrides and not (hasattr(options, "overrides") and all("=" in x and x[0] != "-" for x in overrides)):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    settings = vars(options)
    if overrides:
        settings["overrides"] += overrides
    run_with_clear_errors(lambda: _call(settings, entry), entry["config"])


def _add_options(parser: ArgumentParser, options: Mapping[str, dict[str, Any]]) -> None:
    for name, given in options.items():
        of_type: dict[str, Any] = {"type": _TYPES[given["type"]]} if "type" in given else {}
        parser.add_argument(name, **{**given, **of_type})


def _call(settings: dict[str, Any], entry: Mapping[str, Any]) -> None:
    """Check the names that were given, then import the command's function, and with it torch, which takes seconds."""
    run = settings.pop("run")
    printing = tables_as_json() if settings.pop("as_json", False) else nullcontext()
    if "places" in entry and "overrides" in settings:
        words = settings.pop("overrides")
        for option, key in entry["places"].items():
            words = named([settings[option], *words] if settings[option] else words, (key,))
            if not any(word.startswith(f"{key}=") for word in words):
                raise ProtosegError(f"expected a {option}, got none; give RUN/checkpoints/best.ckpt")
        for option in ("images", "count"):
            if (number := settings.get(option)) is not None and number < 1:
                raise ProtosegError(f"--{option}: expected at least 1 image, got {number}")
        settings["cfg"] = composed(entry["config"], words)
        check_ranges(settings["cfg"])
    said = [settings.get(option) for option in ("checkpoint", "softmax", "source_only", "trained")]
    if "cfg" in settings and settings.pop("checkpoint", None) is not None:
        said[0] = settings["cfg"].ckpt_path
    for path in said:
        if path is not None and not Path(path).is_dir() and not str(path).startswith("hf://"):
            existing_checkpoint(path)
    with printing:
        resolve_name(run)(**settings)


def _share(text: str) -> Fraction:
    with suppress(ValueError, ZeroDivisionError):
        if (share := Fraction(text)) > 0 and (share < 1 or text.isdecimal()):
            return share
    raise ArgumentTypeError(f"expected a share above 0 and below 1, e.g. 1/8, or how many, e.g. 20, got {text!r}")


def _numbers(form: str, separator: str, count: int, most: float, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.lower().split(separator)]
    if len(parts) != count or not all(part.isdecimal() and int(part) <= most for part in parts):
        raise ArgumentTypeError(f"expected {form}, got {text!r}")
    return tuple(map(int, parts))


_TYPES = {
    "int": int,
    "float": float,
    "path": Path,
    "share": _share,
    "height x width": partial(_numbers, "HEIGHTxWIDTH, e.g. 512x1024", "x", 2, math.inf),
    "width x height": partial(_numbers, "WIDTHxHEIGHT, e.g. 640x480", "x", 2, math.inf),
    "color": partial(_numbers, "three numbers from 0 to 255, e.g. 0,0,142", ",", 3, 255),
}
