"""Imports run one way, and the mathematics imports without the data libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "protoseg"

FLOORS = (
    {"types", "text", "files", "distributed", "archive", "checkpoint", "job_records", "lightning", "allocator", "lazy"},
    {"functional", "data"},
    {"nn"},
    {"losses", "models", "trusted"},
    {"evaluation"},
    {"trained"},
    {"analysis", "api", "export"},
    {"callbacks", "page", "render", "teach"},
    {"training"},
    {"run"},
    {"cli"},
    {"notebook"},
)
"""A file imports from its own room or from a lower floor; on the ground floor files may know one another."""

DOORS = {"__main__"}
"""Files that only call the command line."""


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
    if {file.stem, room} & DOORS:
        return
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for other in imports(file) - {room}:
        assert floor[other] < floor[room] or floor[other] == floor[room] == 0, f"{room} must not import {other}"


def test_mathematics_needs_no_data_library() -> None:
    rooms = ("functional.prototypes", "nn", "losses", "models.segmentor", "models.hrda", "evaluation.predictor")
    code = (
        "import sys\nfor name in ('albumentations', 'cv2', 'wandb'): sys.modules[name] = None  # as if not installed\n"
    )
    code += "".join(f"import protoseg.{room}\n" for room in rooms)
    for room in ("nn", "losses"):
        code += f"[getattr(protoseg.{room}, name) for name in protoseg.{room}.__all__]\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("room", ["", ".callbacks", ".data", ".losses", ".nn", ".teach"])
def test_what_a_room_offers_is_there(room: str) -> None:
    package = import_module(f"protoseg{room}")
    assert package.__all__
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert {*package.__all__} <= {*dir(package)}
    with pytest.raises(AttributeError, match="no attribute 'Street'"):
        package.Street  # noqa: B018


INTERNALS = ("fit_loop", "epoch_loop", "trainer._", "_connector", "_batches_that_stepped")


def test_lightning_is_leaned_on_in_one_file() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file != PACKAGE / "lightning.py":
            text = "".join(line for line in file.read_text().splitlines(True) if '["fit_loop"]' not in line)
            assert not [name for name in INTERNALS if name in text], f"{file}: see protoseg/lightning.py"


def test_no_file_imports_in_a_circle() -> None:
    names = {file: ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for file, name in names.items()}
    handed = {}  # names that a room hands on, and the module of each
    for stub in PACKAGE.rglob("__init__.pyi"):
        room = ".".join(stub.parent.relative_to(PACKAGE.parent).parts)
        found = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
        handed |= {f"{room}.{alias.name}": node.module for node in found for alias in node.names}
    graph = {}
    for name, file in modules.items():
        found = set()
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                parts = {handed.get(part, part) for part in parts} & modules.keys()
                found |= parts or ({node.module} & modules.keys())
        graph[name] = found - {name, "protoseg"}
    order = TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


def test_a_file_of_a_room_is_reached_through_the_room() -> None:
    code = "import protoseg.nn; protoseg.nn.heads.PrototypeHead; protoseg.losses.term.Step"
    subprocess.run([sys.executable, "-c", code], check=True)
