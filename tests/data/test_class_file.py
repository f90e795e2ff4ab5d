"""The file of classes of one's own data: what it says, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protoseg.data import read_class_file
from protoseg.data.label_spaces import UNKNOWN_ID
from protoseg.data.label_spaces.tables import FILE_IGNORED
from protoseg.types import ProtosegError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "classes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_smallest_file(tmp_path: Path) -> None:
    space, table, color_ids = read_class_file(write(tmp_path, "classes: {road: [1, 2, 3], car: [4, 5, 6]}"))
    assert (space.name, space.classes, space.colors) == (tmp_path.name, ("road", "car"), ((1, 2, 3), (4, 5, 6)))
    assert space.things == ()
    assert table[[0, 1, 2, 254, 255]].tolist() == [0, 1, UNKNOWN_ID, UNKNOWN_ID, FILE_IGNORED]
    assert color_ids == {(1, 2, 3): 0, (4, 5, 6): 1}


def test_all_keys(tmp_path: Path) -> None:
    text = """
        classes: {road: [1, 2, 3], "été": [4, 5, 6]}
        ids: {"été": 0, road: 253}
        void: [9, 255, [0, 0, 0]]
        things: ["été"]
        name: mine
    """
    space, table, color_ids = read_class_file(write(tmp_path, text))
    assert (space.name, space.classes, space.things) == ("mine", ("road", "été"), ("été",))
    assert table[[0, 253, 9, 255, 1]].tolist() == [1, 0, FILE_IGNORED, FILE_IGNORED, UNKNOWN_ID]
    assert color_ids == {(1, 2, 3): 253, (4, 5, 6): 0, (0, 0, 0): FILE_IGNORED}


TWO = "classes: {a: [1, 2, 3], b: [4, 5, 6]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"classes with their colours .*got None"),
        ("classes: [road, car]", r"classes with their colours .*got \['road', 'car'\]"),
        ("- road", r"the keys name, classes, ids, void, things, got \['road'\]"),
        ("klasses: {a: [1, 2, 3]}", r"the keys .*got \['klasses'\]"),
        ("classes: {a: [1, 2, 3]", r"YAML, got"),
        ("classes: {a: [1, 2, 3], a: [4, 5, 6]}", r"YAML, got .*duplicate key a"),
        ("classes: {a: [1, 2]}", r"a: \[red, green, blue\], each from 0 to 255, got \[1, 2\]"),
        ("classes: {a: [1, 2, 256]}", r"each from 0 to 255"),
        ("classes: {a: [1, 2, true]}", r"each from 0 to 255"),
        ("classes: {a: '#102030'}", r"a: \[red, green, blue\]"),
        ("classes: {no: [1, 2, 3]}", r"names of classes in quotes .*got False"),
        ("classes: {a: [1, 2, 3], b: [1, 2, 3]}", r"a colour of its own for every class, got \[1, 2, 3\] twice"),
        ("classes: {" + ", ".join(f"c{i}: [{i}, 0, 0]" for i in range(255)) + "}", "at most 254 classes, got 255"),
        (TWO + "ids: {a: 1}", r"ids: \{class: id from 0 to 253\} for every class"),
        (TWO + "ids: {a: 1, b: 254}", r"id from 0 to 253"),
        (TWO + "ids: {a: 1, b: 1}", r"an id of its own for every class"),
        (TWO + "ids: [1, 2]", r"ids: \{class: id"),
        (TWO + "void: 3", r"void: a list, got 3"),
        (TWO + "void: [1]", r"void ids from 0 to 255 that no class has, got 1"),
        (TWO + "void: [300]", r"void ids from 0 to 255 that no class has, got 300"),
        (TWO + "void: [[4, 5, 6]]", r"void colours that no class has, got \[4, 5, 6\]"),
        (TWO + "things: [c]", r"things that are classes, got .*out of its classes, got c"),
    ],
)
def test_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ProtosegError, match=rf"^{re.escape(str(path))}: expected .*{message}"):
        read_class_file(path)


def test_missing_and_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(
        ProtosegError, match=r"none.yaml, which does not exist: write one, e.g. classes: .*data\.root=FOLDER"
    ):
        read_class_file(tmp_path / "none.yaml")
    path = tmp_path / "classes.yaml"
    path.write_bytes("classes: {é: [1, 2, 3]}".encode("utf-16"))
    with pytest.raises(ProtosegError, match="expected YAML"):
        read_class_file(path)
