"""The picture of the rooms: nothing runs back, and the page speaks of the rooms that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import rooms

PAGE = Path(rooms.__file__).with_name("house.md")


def test_the_picture_is_drawn_and_no_arrow_runs_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rooms, "PICTURE", tmp_path / "rooms.png")
    rooms.main()
    assert rooms.PICTURE.read_bytes().startswith(b"\x89PNG")
    named, printed = (
        re.findall(r"^\| \d+ \| `(\w+)`", text, re.MULTILINE) for text in (PAGE.read_text(), capsys.readouterr().out)
    )
    assert named == printed


def test_an_arrow_that_runs_back_is_found() -> None:
    floor, _, below = rooms.rooms()
    assert rooms.running_back(floor, below) == []
    assert rooms.running_back(floor, below | {"nn": {"training", "functional"}}) == [("nn", "training")]
    assert rooms.running_back(floor, below | {"losses": {"models"}}) == [("losses", "models")]


def test_an_arrow_that_follows_from_others_is_not_drawn() -> None:
    arrows = {"c": {"b", "a"}, "b": {"a"}, "a": set()}
    assert rooms.reduced(arrows) == {"c": {"b"}, "b": {"a"}, "a": set()}


def test_boxes_do_not_touch() -> None:
    assert rooms.apart([0, 0, 5], [1, 1, 1]) == [-0.5, 0.5, 5]
    assert rooms.apart([3, 1], [2, 2]) == [1, 3]
