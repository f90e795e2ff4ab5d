"""Teaching by clicks: what a click does, that it is kept, and that the same clicks make the same model."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from PIL import Image

import protoseg
from examples.labelling_page.clicks import NONE, Session
from examples.labelling_page.commands import replay
from examples.labelling_page.evidence import blank_file
from protoseg.checkpoint import read_checkpoint, save_checkpoint
from protoseg.data import LabelledFolder
from protoseg.data.class_masks import ClassMasks
from protoseg.data.export import convert
from protoseg.models.encoders import TimmEncoder
from protoseg.run.config import composed
from protoseg.teach import add_classes, apply_edit
from protoseg.trained import TrainedFile, open_file
from protoseg.types import ProtosegError
from tests.teach import conftest as made

make_checkpoint = made.make_checkpoint
base = made.base
patches = made.patches


ENCODER = {"_target_": "protoseg.models.encoders.TimmEncoder", "name": "test_efficientnet"}
Folders = tuple[Path, Path]


@pytest.fixture
def session(patches: Folders, tmp_path: Path) -> Iterator[Session]:
    """Four pictures, and a network without a class of its own."""
    found = Session(nothing(), patches[0], tmp_path / "out")
    yield found
    found.close()


@pytest.fixture(params=["checkpoint", "blank"])
def either(request: pytest.FixtureRequest, patches: Folders, tmp_path: Path) -> Iterator[Session]:
    """The same, or with the classes of a checkpoint."""
    blank = request.param == "blank"
    file = nothing() if blank else open_file(request.getfixturevalue("base"))
    found = Session(file, patches[0], tmp_path / "either")
    yield found
    found.close()


def nothing() -> TrainedFile:
    torch.manual_seed(0)
    return blank_file("encoder", ENCODER, TimmEncoder(**{k: v for k, v in ENCODER.items() if k != "_target_"}))


def truth(session: Session, i: int) -> np.ndarray:
    return np.array(Image.open(session.paths[0].parent.with_name("masks") / session.names[i]))


def teach_green(session: Session, images: int = 2) -> int:
    """Click on the green patch of some pictures, and beside it where no class is there yet; the class."""
    green = session.add_class("green")
    rest = session.add_class("rest") if session.blank else -1
    for i in range(images):
        inside = np.argwhere(truth(session, i) == 1)
        y, x = inside[len(inside) // 2]
        session.click(i, int(x), int(y), green)
        for x in (4, 90) if session.blank else ():
            session.click(i, x, 2, rest)
    return green


def iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / (found | true).sum())


def test_clicks_teach_a_class_and_the_saved_model_is_the_one_that_is_shown(either: Session) -> None:
    if either.blank:
        assert (either.labels(3) == NONE).all()
    before = either.labels(3)
    green = teach_green(either)
    after = either.labels(3)
    assert (before != green).all()
    assert 0 < (after == green).mean() < 0.9
    y, x = np.argwhere(truth(either, 0) == 1)[len(np.argwhere(truth(either, 0) == 1)) // 2]
    assert either.labels(0)[y, x] == green
    model = protoseg.load(str(either.save()["checkpoint"]), "cpu")
    assert list(model.classes) == list(either.space.classes)
    assert (model.predict(either.paths[3]).labels == after).mean() > 0.995
    again = open_file(either.out / "taught.ckpt")  # an ordinary checkpoint, to be taught again
    assert again.statistics() is not None


def test_a_taught_class_is_what_teach_add_makes_of_these_pixels(base: Path, patches: Folders, tmp_path: Path) -> None:
    session = Session(open_file(base), patches[0], tmp_path / "out")
    teach_green(session)
    stride, masks = session.model.stride, tmp_path / "few"
    masks.mkdir()
    for folder, i in (("few", 0), ("few", 1)):
        cells = session.evidence(i).repeat(stride, 0).repeat(stride, 1)[: session.sizes[i][0], : session.sizes[i][1]]
        Image.fromarray((cells != NONE).astype(np.uint8)).save(tmp_path / folder / session.names[i])
    two = tmp_path / "two"
    two.mkdir()
    for i in (0, 1):
        (two / session.names[i]).write_bytes(session.paths[i].read_bytes())
    file = open_file(base)
    edit, _ = add_classes(file, ClassMasks(two, masks, ["green"], [(0, 9, 0)], [1]), ["green"])
    added, clicked = apply_edit(file.content, edit), session.content()
    for name in ("means", "classes", "taught", "bias"):
        mine, its = (each["protoseg"]["statistics"]["student"][name] for each in (clicked, added))
        assert torch.allclose(mine.double(), its.double(), atol=1e-5), name
    shown = session.taught()
    assert shown is not None
    assert torch.allclose(shown.known.means[-1], clicked["protoseg"]["statistics"]["student"]["means"][-1], atol=0.05)
    session.close()


def test_a_click_corrects_a_class_that_was_there(base: Path, patches: Folders, tmp_path: Path) -> None:
    session = Session(open_file(base), patches[0], tmp_path / "out")
    y, x = np.argwhere(truth(session, 0) == 1)[300]
    old = int(session.labels(0)[y, x])
    other = (old + 1) % 11
    session.click(0, int(x), int(y), other)
    assert session.labels(0)[y, x] == other
    content = session.content()
    known = content["protoseg"]["statistics"]["student"]
    assert content["protoseg"]["label_space"]["classes"] == list(session.space.classes)
    assert known["classes"][-1] == other
    assert known["taught"][-1]
    assert (known["classes"] == other).sum() == 2  # what the training images said of it stays
    session.close()


def test_not_this_class_takes_it_away_where_it_looks_like_that(either: Session) -> None:
    green = teach_green(either)
    i, before = 3, either.labels(3)
    y, x = np.argwhere(before == green)[len(np.argwhere(before == green)) // 2]
    either.click(i, int(x), int(y), green, is_not=True)
    assert either.labels(i)[y, x] != green
    assert either.actions[-1]["not"] == "green"
    assert (either.labels(i) == green).sum() < (before == green).sum()


def test_not_this_needs_another_class(patches: Folders, tmp_path: Path) -> None:
    session = Session(nothing(), patches[0], tmp_path / "out")
    session.add_class("only")
    session.click(0, 5, 5, 0)
    with pytest.raises(ProtosegError, match="expected another class that it could be, got 'only' alone"):
        session.click(0, 5, 5, 0, is_not=True)
    assert len(session.actions) == 2
    session.close()


def test_undo_and_redo(session: Session) -> None:
    with pytest.raises(ProtosegError, match="undo: expected an action before it, got none"):
        session.act({"do": "undo"})
    seen = [session.labels(1)]
    teach_green(session, 1)
    seen.append(session.labels(1))
    assert (seen[0] != seen[1]).any()
    steps = len(session.actions)
    for _ in range(steps):
        session.act({"do": "undo"})
    assert (session.labels(1) == seen[0]).all()
    for _ in range(steps):
        session.act({"do": "redo"})
    assert (session.labels(1) == seen[1]).all()
    session.act({"do": "undo"})
    session.stroke(1, [[3, 3], [20, 3]], 3, session.space.num_classes - 1)
    with pytest.raises(ProtosegError, match="redo"):
        session.act({"do": "redo"})


@pytest.mark.parametrize("what", ["a correction", "that it is no longer accepted"])
def test_an_accepted_label_stays_when_something_is_undone(session: Session, what: str) -> None:
    if session.blank:
        with pytest.raises(ProtosegError, match="accept: expected a label with classes, got none"):
            session.accept(1)
    green = teach_green(session, 1)
    session.accept(1)
    before = session.labels(1)
    session.stroke(0, [[5, 5], [90, 5]], 5, green)
    if what == "a correction":
        session.correct(1, [[3, 3], [60, 60]], 20, green)
        assert (session.labels(1) != before).any()
    else:
        session.accept(1, done=False)
        assert (session.labels(1) != before).any()  # what was taught counts
    session.act({"do": "undo"})
    assert (session.labels(1) == before).all()
    mask = (session.out / "labelled" / "masks" / session.names[1]).with_suffix(".png")
    assert (np.asarray(Image.open(mask)) == before).all()


def test_a_stroke_teaches_what_it_covers(session: Session) -> None:
    green = session.add_class("green")
    stride = session.model.stride
    session.stroke(0, [[10, 10], [40, 10]], 6, green)
    cells = session.evidence(0) == green
    assert cells[10 // stride, 10 // stride : 40 // stride].all()
    assert cells.sum() * stride**2 == pytest.approx(30 * 13 + 3.14 * 42, rel=0.35)
    session.stroke(1, [[10, 10]], 0, green)
    assert (session.evidence(1) == green).sum() == 1
    for points, radius in (([[1, 1]], None), ([[float("nan"), 1]], 3), ([], 3), ([[1, 1]], -1)):
        with pytest.raises(ProtosegError, match="expected a line, or a polygon"):
            session.correct(0, points, radius, green)


def test_opened_again_it_goes_on(session: Session) -> None:
    teach_green(session)
    session.accept(2)
    session.act({"do": "undo"})
    labels, done, space = session.labels(3), session.done, session.space
    session.close()
    again = Session(nothing(), session.paths[0].parent, session.out)
    assert (again.labels(3) == labels).all()
    assert (again.done, again.space, again.version) == (done, space, session.version)
    again.act({"do": "redo"})
    assert again.done == {session.names[2]}
    again.close()


def test_a_folder_is_taught_by_one_session_at_a_time(session: Session) -> None:
    teach_green(session)
    of = (nothing(), session.paths[0].parent, session.out)
    with pytest.raises(ProtosegError, match="expected a folder that no other page writes to, got one in use"):
        Session(*of)
    onlooker = Session(*of, read_only=True)
    assert (onlooker.labels(3) == session.labels(3)).all()
    with pytest.raises(ProtosegError, match="--read-only"):
        onlooker.add_class("blue")
    onlooker.close()


def test_clicks_of_another_network_are_refused(session: Session, patches: Folders, tmp_path: Path) -> None:
    teach_green(session, 1)
    session.close()
    torch.manual_seed(1)
    other = blank_file("encoder", ENCODER, TimmEncoder("test_efficientnet"))
    with pytest.raises(
        ProtosegError,
        match=r"expected clicks on .* that taught encoder, got others \(of encoder, another network or oth",
    ):
        Session(other, patches[0], session.out)


@pytest.mark.parametrize("lost", [0, 1, 15])
def test_of_a_line_that_was_cut_short_the_rest_is_there(session: Session, lost: int) -> None:
    teach_green(session)
    session.close()
    journal = session.out / "clicks.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: len(whole) - lost])
    again = Session(nothing(), session.paths[0].parent, session.out)
    assert len(again.actions) == len(session.actions) - (lost > 0)
    again.click(0, 1, 1, 0)
    assert all(map(json.loads, journal.read_bytes().splitlines()))
    again.close()


@pytest.mark.slow
def test_a_killed_program_loses_no_action_that_was_answered(base: Path, patches: Folders, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from examples.labelling_page.clicks import Session; from protoseg.trained import open_file\n"
        "s = Session(open_file(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))\n"
        "for i in range(9): s.click(0, 5 + i, 5, i); print(i, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    out = tmp_path / "out"
    run = subprocess.run([sys.executable, "-c", code, base, patches[0], out], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert (out / ".maps").is_dir()
    again = Session(open_file(base), patches[0], out)  # the lock went with the program
    assert len(again.actions) == run.stdout.count("\n") == 9
    assert not (out / ".maps").exists()
    again.close()


@pytest.mark.slow
def test_the_same_clicks_make_the_same_model(base: Path, patches: Folders, tmp_path: Path) -> None:
    session = Session(open_file(base), patches[0], tmp_path / "out")
    teach_green(session)
    session.click(3, 4, 4, 2)
    session.click(3, 50, 4, 5, is_not=True)
    session.act({"do": "undo"})
    session.save()
    session.close()
    again = tmp_path / "again.ckpt"
    replay(tmp_path / "out" / "clicks.jsonl", (), again, "cpu")
    assert again.read_bytes() == (tmp_path / "out" / "taught.ckpt").read_bytes()
    with pytest.raises(ProtosegError, match="expected the clicks of"):
        replay(base, (), again, "cpu")


def test_clicks_alone_make_the_same_model(patches: Folders, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        session = Session(nothing(), patches[0], tmp_path / "out")
        if name == "one":
            teach_green(session)
        save_checkpoint(session.content(), tmp_path / name)
        made.append((tmp_path / name).read_bytes())
        session.close()
    assert made[0] == made[1]


def test_a_full_disk_is_told_and_what_was_said_counts(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    green = teach_green(session, 1)
    journal, lines = session.out / "clicks.jsonl", len(session.actions) + 1

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ProtosegError, match=r"No space left.*What you did counts"):
            session.click(2, 5, 5, green)
    assert session.labels(2)[5, 5] == green
    session.click(2, 60, 5, green)
    written = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(written) == lines + 2
    assert written[1:] == session.actions


def test_a_damaged_image_is_told_and_the_rest_goes_on(base: Path, patches: Folders, tmp_path: Path) -> None:
    (patches[0] / "1.png").write_bytes((patches[0] / "1.png").read_bytes()[:300])
    (patches[0] / "no.jpg").write_text("nothing")
    session = Session(open_file(base), patches[0], tmp_path / "out")
    while session.rank_one():
        pass
    assert sorted(session.names[i] for i in session.errors) == ["1.png", "no.jpg"]
    assert "expected a complete image file" in session.errors[1]
    assert sorted(session.order()) == [0, 2, 3]
    with pytest.raises(ProtosegError, match="expected a complete image file"):
        session.accept(1)
    green = session.add_class("green")
    session.click(2, 5, 5, green)
    assert session.labels(0).shape == (64, 96)
    session.close()


def test_what_makes_no_class_and_no_click(session: Session) -> None:
    session.add_class("green", [1, 2, 3])
    for name in ("green", " ", "", "x" * 201, "${oc.env:HOME}"):
        with pytest.raises(ProtosegError, match="expected a name of 1 to 200 letters that no class has"):
            session.add_class(name)
    for color in ([1, 2, 3], [1, 2], [1, 2, 256], [1, 2, -1]):
        with pytest.raises(ProtosegError, match="expected a colour"):
            session.add_class("blue", color)
    for x, y in ((-1, 0), (96, 0), (0, 64), (float("nan"), 0)):
        with pytest.raises(ProtosegError, match="expected a pixel of 96 x 64"):
            session.click(0, x, y, 0)
    assert len(session.actions) == 1


def test_folders_that_cannot_be_labelled(tmp_path: Path, patches: Folders) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ProtosegError, match="expected a folder with images"):
        Session(nothing(), empty, tmp_path / "out")
    Image.new("RGB", (8, 8)).save(patches[0] / "0.jpg")
    with pytest.raises(ProtosegError, match="expected one file per name"):
        Session(nothing(), patches[0], tmp_path / "out")


NAMES = ("</script><b>\"&'", "no", "a\nb", "d: [x]", "é,;#")


def test_accepted_labels_are_a_data_set(session: Session, tmp_path: Path) -> None:
    ids = [session.add_class(name) for name in NAMES]
    for i, class_id in enumerate(ids):
        session.click(0, 10 + 15 * i, 10, class_id)
    for i in (0, 1, 2):
        session.accept(i)
    session.correct(1, [[0, 0], [60, 0], [60, 40]], None, ids[0])
    session.correct(1, [[90, 60]], 3, NONE)
    label = session.labels(1)
    assert label[2, 50] == ids[0]
    assert label[60, 90] == NONE
    session.click(3, 5, 5, ids[1])  # what is taught later changes no accepted label
    assert (session.labels(1) == label).all()
    written = session.save()
    root = Path(str(written["folder"]))
    data = LabelledFolder(root, root / "classes.yaml", labels=True)
    assert data.label_space.classes == session.space.classes
    found = {Path(data.samples[i][0]).name: data.read_label(i) for i in range(len(data))}
    found |= {Path(p).name: LabelledFolder(root, root / "classes.yaml", "val").read_label(k)
              for k, (p, _) in enumerate(LabelledFolder(root, root / "classes.yaml", "val").samples)}  # fmt: skip
    assert (found["1.png"] == label).all()
    module = instantiate(composed("train", ["data=folder", f"data.root={root}"]).data)
    assert module.label_space.classes == session.space.classes
    for form, place in (("coco", root / "coco.json"), ("labelme", root / "images")):
        convert([place], tmp_path / form, root / "images", form, "void")
        names = yaml.safe_load((tmp_path / form / "classes.yaml").read_text())["classes"]
        again = np.array(Image.open(tmp_path / form / "masks" / "1.png"))
        known = {k: session.space.classes.index(name) for k, name in enumerate(names)}
        assert (np.vectorize(lambda v, known=known: known.get(v, NONE))(again) == label).all(), form
    session.act({"do": "undo"})
    session.act({"do": "undo"})
    assert (np.array(Image.open(root / "masks" / "1.png")) != label).any()
    for _ in range(2):
        session.act({"do": "undo"})
    session.accept(1, False)
    assert not list(root.rglob("1.*"))


def test_doubt_ranks_pixels_and_images(session: Session) -> None:
    if session.blank:
        assert session.worth(0) == (0.0, [])
    teach_green(session, 1)
    while session.rank_one():
        pass
    assert sorted(session.order()) == [0, 1, 2, 3]
    best = [session.worth(i)[1][0][2] for i in session.order()]
    assert best == sorted(best, reverse=True)
    assert all(0 < session.worth(i)[0] < 1 for i in range(4))
    points = session.worth(3)[1]
    assert 0 < len(points) <= 8
    assert all(0 <= x < 96 and 0 <= y < 64 and score > 0 for x, y, score in points)
    assert session.changed() == []
    session.click(2, 50, 30, 0)
    assert session.changed(2)


def test_a_checkpoint_without_statistics_learns_by_those_of_the_folder(
    base: Path, patches: Folders, tmp_path: Path
) -> None:
    content = read_checkpoint(base)
    del content["protoseg"]["statistics"]
    save_checkpoint(content, base)
    session = Session(open_file(base), patches[0], tmp_path / "out")
    green = teach_green(session)
    assert session.taught().known.taught.sum() == 1
    assert (session.labels(0) == green).any()
    assert protoseg.load(str(session.save()["checkpoint"])).classes[-1] == "green"
    session.close()
