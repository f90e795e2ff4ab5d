"""Imports run one way, and the mathematics imports without the data libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "protoseg"

LAYER = {
    "types": 0, "text": 0, "files": 0, "distributed": 0, "functional": 0, "allocator": 0, "archive": 0,
    "sweep": 1, "nn": 1, "metrics": 1, "visualize": 1, "checkpoint": 1,
    "losses": 2, "models": 2, "inference": 2, "trusted": 2, "report": 2, "curves": 2,
    "analysis": 3, "export": 3,
    "callbacks": 4, "evaluation": 4, "trained": 4, "report_page": 4,
    "training": 5, "classes": 5, "prediction": 5, "api": 5, "convert": 5, "cli": 6, "benchmark": 6, "notebook": 7,
}  # fmt: skip
"""A module imports from its own room or from a lower layer; ``data`` stands beside them and knows only layer 0. A
``__main__`` is a door to ``cli``."""

ALLOWED_TO_KNOW_DATA = {"api", "benchmark", "classes", "cli", "data", "prediction", "trained"}
"""``api`` and ``prediction`` read plain images, ``classes`` a few with masks; ``benchmark`` times reading."""


def imports(file: Path) -> set[str]:
    """Rooms of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("protoseg"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found - {"__version__"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_way(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imports(file) - {room}:
        if other == "data":
            assert room in ALLOWED_TO_KNOW_DATA
        elif other == "cli" and file.name == "__main__.py":
            continue
        elif room == "data":
            assert other in {"types", "text", "files", "distributed"}
        else:
            assert room in LAYER, f"{room} has no layer yet"
            assert LAYER[other] < LAYER[room] or LAYER[other] == LAYER[room] == 0, f"{room} must not import {other}"


def test_mathematics_needs_no_data_library() -> None:
    rooms = ("functional.prototypes", "nn", "losses", "models.segmentor", "models.hrda", "benchmark.__main__")
    code = (
        "import sys\nfor name in ('albumentations', 'cv2', 'wandb'): sys.modules[name] = None  # as if not installed\n"
    )
    code += "".join(f"import protoseg.{room}\n" for room in rooms)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
