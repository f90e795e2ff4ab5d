"""The file of classes of one's own data: what it says, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protoseg.data import read_class_file
from protoseg.data.label_spaces import FILE_IGNORED, UNKNOWN_ID
from protoseg.types import ProtosegError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "classes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_smallest_file(tmp_path: Path) -> None:
    space, table, colors, *_ = read_class_file(write(tmp_path, "classes: {road: [1, 2, 3], car: [4, 5, 6]}"))
    assert (space.name, space.classes, space.colors) == (tmp_path.name, ("road", "car"), ((1, 2, 3), (4, 5, 6)))
    assert space.things == ()
    assert table[[0, 1, 2, 254, 255]].tolist() == [0, 1, UNKNOWN_ID, UNKNOWN_ID, FILE_IGNORED]
    assert colors == {(1, 2, 3): 0, (4, 5, 6): 1}


def test_all_keys(tmp_path: Path) -> None:
    text = """
        classes: {road: [1, 2, 3], "été": [4, 5, 6]}
        ids: {"été": 0, road: 253}
        void: [9, 255, [0, 0, 0]]
        things: ["été"]
        name: mine
    """
    space, table, colors, *_ = read_class_file(write(tmp_path, text))
    assert (space.name, space.classes, space.things) == ("mine", ("road", "été"), ("été",))
    assert table[[0, 253, 9, 255, 1]].tolist() == [1, 0, FILE_IGNORED, FILE_IGNORED, UNKNOWN_ID]
    assert colors == {(1, 2, 3): 0, (4, 5, 6): 1, (0, 0, 0): FILE_IGNORED}


@pytest.mark.parametrize("classes", ["[road, car, sky]", "{road: , car: [128, 0, 0], sky: }"])
def test_colours_are_made_and_no_mask_is_read_by_them(tmp_path: Path, classes: str) -> None:
    file = read_class_file(write(tmp_path, f"classes: {classes}\nvoid: [[0, 128, 0]]"))
    assert file.label_space.classes == ("road", "car", "sky")
    assert len({*file.label_space.colors, (0, 128, 0), (0, 0, 0)}) == 5
    assert set(file.colors) == {(0, 128, 0), *([(128, 0, 0)] if "car:" in classes else [])}


def test_several_ids_for_one_class_and_large_ones(tmp_path: Path) -> None:
    table = read_class_file(write(tmp_path, TWO + "ids: {a: [0, 255, 65534], b: 300}\nvoid: [1000]")).table
    assert table[[0, 255, 65534, 300, 1000, 65535]].tolist() == [0, 0, 0, 1, FILE_IGNORED, FILE_IGNORED]
    assert (table == UNKNOWN_ID).sum() == (1 << 16) - 6


@pytest.mark.parametrize(("classes", "void"), [(254, 255), (255, 65535), (256, 65535), (1000, 65535)])
def test_many_classes(tmp_path: Path, classes: int, void: int) -> None:
    file = read_class_file(write(tmp_path, f"classes: [{', '.join(f'c{i}' for i in range(classes))}]"))
    assert len(set(file.label_space.colors)) == classes
    assert file.table[:classes].tolist() == [*range(classes)]
    assert file.table[65535] == file.void == void
    assert not file.known(classes + 2)


TWO = "classes: {a: [1, 2, 3], b: [4, 5, 6]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"classes with their colours .*got None"),
        ("classes: road", r"classes with their colours .*or a list of their names, got 'road'"),
        ("classes: [road, road]", r"every class once"),
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
        (TWO + "ids: {a: 1}", r"ids: \{class: id from 0 to 65534, or a list\} for every class"),
        (TWO + "ids: {a: 1, b: 65535}", r"id from 0 to 65534"),
        (TWO + "ids: {a: 1, b: []}", r"id from 0 to 65534"),
        (TWO + "ids: {a: 1, b: 1}", r"every id for one class alone"),
        (TWO + "ids: [1, 2]", r"ids: \{class: id"),
        (TWO + "void: 3", r"void: a list, got 3"),
        (TWO + "void: [1]", r"void ids from 0 to 65535 that no class has, got 1"),
        (TWO + "void: [70000]", r"void ids from 0 to 65535 that no class has, got 70000"),
        (TWO + "void: [[4, 5, 6]]", r"void colours that no class has, got \[4, 5, 6\]"),
        (TWO + "things: [c]", r"things that are classes, got .*things of its classes, got c"),
    ],
)
def test_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ProtosegError, match=rf"^{re.escape(str(path))}: expected .*{message}"):
        read_class_file(path)


def test_too_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protoseg.data.class_file.MAX_CLASSES", 2)
    with pytest.raises(ProtosegError, match="at most 2 classes, got 3"):
        read_class_file(write(tmp_path, "classes: [a, b, c]"))


def test_missing_and_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(
        ProtosegError, match=r"none.yaml, which does not exist: write one, e.g. classes: .*data\.root=FOLDER"
    ):
        read_class_file(tmp_path / "none.yaml")
    path = tmp_path / "classes.yaml"
    path.write_bytes("classes: {é: [1, 2, 3]}".encode("utf-16"))
    with pytest.raises(ProtosegError, match="expected YAML"):
        read_class_file(path)
