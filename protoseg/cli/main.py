"""``protoseg COMMAND``: one door to all tools. A command's modules are imported when it is called."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from protoseg.run.config import named
from protoseg.text import command, say

COMMANDS: dict[str, str] = {
    "train": "train as configured; -m sweeps over values",
    "evaluate": "CHECKPOINT: scores on labelled images, tables and pictures",
    "predict": "CHECKPOINT IMAGES: label maps and overlays of a folder, an image or a video",
    "report": "CHECKPOINT: evaluate, and write a page to look into",
    "teach": "CHECKPOINT: add, refresh, remove or merge classes without training",
    "analyse": "CHECKPOINT: prototypes, uncertainty, what adaptation changed; the table of a sweep",
    "export": "CHECKPOINT: write ONNX, compared with the model",
    "convert": "FILE OUT: published weights (DAFormer, HRDA, MIC, ProtoSeg, SegFormer) as a checkpoint",
    "data": "look at a data set, check, count, pack, hand it in",
    "render": "draw labelled street scenes",
}
"""What each command is for; those that take a checkpoint take it first."""

_HYDRA = {"train": (), "evaluate": ("ckpt_path",), "predict": ("ckpt_path", "images"), "report": ("ckpt_path",)}
_SET = {"predict": ["mode=predict"], "report": ["report=true"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg``; exit code 2 at an unknown command."""
    name, *rest = (list(sys.argv[1:] if arguments is None else arguments)) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        from protoseg import __version__

        print(f"protoseg {__version__}")
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        say(f"error: unknown command {name!r}.{hint} There are {', '.join(COMMANDS)}", stderr=True)
        sys.exit(2)
    elif name in _HYDRA:
        from protoseg import cli

        sys.argv = [f"protoseg {name}", *named(rest, _HYDRA[name]), *_SET.get(name, [])]
        cli.train() if name == "train" else cli.evaluate()
    elif name == "render":
        import_module("protoseg.cli.data").main(["render", *rest])
    else:
        import_module(f"protoseg.cli.{name}").main(rest)


def _help() -> str:
    lines = ["usage: protoseg COMMAND …", "", "Semantic segmentation with class prototypes.", "", "commands:"]
    lines += [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    example = command("protoseg", "evaluate", "RUN/checkpoints/best.ckpt", "split=val")
    return "\n".join([*lines, "", "protoseg COMMAND --help says more.", f"example: {example}"])
