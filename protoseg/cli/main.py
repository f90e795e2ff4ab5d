"""``protoseg COMMAND``: one door to all tools. A command's modules are imported when it is called."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from protoseg import __version__, cli
from protoseg.cli.tool import COMMANDS, run_tool
from protoseg.run.config import named
from protoseg.text import command, say


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg``; exit code 2 at an unknown command."""
    name, *rest = (list(sys.argv[1:] if arguments is None else arguments)) or ["--help"]
    entry = COMMANDS.get(name, {})
    if name in ("-h", "--help"):
        print(_help())
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


def _help() -> str:
    lines = ["usage: protoseg COMMAND …", "", "Semantic segmentation with class prototypes.", "", "commands:"]
    lines += [f"  {name:<11}{entry['summary']}" for name, entry in COMMANDS.items()]
    example = command("protoseg", "evaluate", "RUN/checkpoints/best.ckpt", "split=val")
    codes = "exit codes: 0 done, 1 wrong input or a job that failed, 2 words that are no command or option, 130 Ctrl-C."
    return "\n".join([*lines, "", "protoseg COMMAND --help says more.", codes, f"example: {example}"])
