"""A training, an evaluation with its page, and predictions where every name is hostile."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from protoseg import load
from protoseg.analysis.sweep import last_logged
from protoseg.data.own import LabelledFolder
from protoseg.job_records import Job
from protoseg.run import analyse
from protoseg.run.analyse import picture_name
from protoseg.run.config import check_names, composed, explain, split_choices
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from protoseg.text import override, visible
from protoseg.types import ProtosegError
from tests.conftest import TINY

CLASSES = ("=1+1", "[red]x[/]", "[/]", "a|b`c`", "two\nlines\x1b[31m", "$x^$", "</script><b>\"'", "road/lane=1", "_a_")
LONG = "数" * 83 + "ab"  # 251 bytes
FILES = (f"{LONG}.png", "caf\udce9.png", "[red] :car: lr=0.1,'\".png", "a\nb.png")


def picture(path: Path, high: int, size: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, high, size, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of images whose own name, files and classes have what means something somewhere."""
    folder = tmp_path / "größe [b] lr=0.1,'\""
    for split in ("train", "val"):
        for name in FILES:
            picture(folder / "images" / split / name, 255, (64, 64, 3))
            picture(folder / "masks" / split / name, len(CLASSES), (64, 64))
    colors = {name: [20 * i, 9, 200 - 20 * i] for i, name in enumerate(CLASSES)}
    (folder / "classes.yaml").write_text(yaml.safe_dump({"classes": colors, "name": "[/]|x"}, sort_keys=False))
    return folder


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_everywhere(
    root: Path,
    tmp_path: Path,
    configure: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(analyse, "PROTOTYPE_IMAGES", 2)
    monkeypatch.setattr(analyse, "VIEWS", 1)
    short = ("trainer.max_steps=1", "trainer.val_check_interval=1", "logger=tensorboard", "data=folder")
    cfg = configure("train", *TINY, *short, override("data.root", root))
    run = tmp_path / "run lr=0.1 [/]"
    cfg.paths.output = str(run)
    run_training(cfg)

    # The log, and the command to go on with.
    for name in CLASSES:
        assert last_logged([Job(0, (), run)], f"val/IoU/{visible(name)}")[0] >= 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {f"val/IoU/{visible(name)}" for name in CLASSES} <= set(events.Tags()["scalars"])
    (line,) = re.findall("^Evaluate it: python evaluate.py (.*)$", capsys.readouterr().out, re.MULTILINE)
    words = shlex.split(line)
    assert composed("evaluate", words).ckpt_path == str(run / "checkpoints" / "best.ckpt")

    # The evaluation: tables, pictures and the page.
    run_evaluation(configure("evaluate", *words, "report=true", "num_workers=0", "device=cpu"))
    out = tmp_path / "run"
    printed = capsys.readouterr().out
    assert all(visible(name) in printed for name in CLASSES)
    assert "\x1b" not in printed
    with open(out / "table.csv", newline="", encoding="utf-8") as file:
        named = [row[0] for row in csv.reader(file)]
    assert named == ["class", "'=1+1", *CLASSES[1:], "mean"]
    with open(out / "confusion.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file))[1:] == ["'=1+1", *CLASSES[1:]]
    table = (out / "table.md").read_text(encoding="utf-8").splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in table[: len(CLASSES) + 3])
    assert [entry["name"] for entry in json.loads((out / "metrics.json").read_text())["classes"]] == list(CLASSES)
    for kind, suffix in (("labels", ".png"), ("overlays", ".jpg"), ("panels", ".jpg")):
        assert {path.name for path in (out / kind).iterdir()} == {Path(name).stem + suffix for name in FILES}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    data = re.search('id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["classes"] == list(CLASSES)

    # A model card.
    model = load(run / "checkpoints" / "best.ckpt", device="cpu")
    card = model.save_pretrained(tmp_path / "saved").with_name("README.md").read_text(encoding="utf-8")
    assert r"# \[/\]\|x" in card
    assert r"a\|b\`c\`, two\\nlines" in card

    # Predictions, and again: two images of one name, and one whose name fills the disk's.
    photos = tmp_path / "photos"
    for name in (*FILES, f"{LONG}.PNG"):
        picture(photos / name, 255, (64, 64, 3))
    predict = ["mode=predict", override("images", photos), "num_workers=0", "device=cpu"]
    for found in (f"{len(FILES) + 1} images predicted: ", f"0 images predicted, {len(FILES) + 1} had been before"):
        run_evaluation(configure("evaluate", *words, *predict, output=tmp_path / "predicted"))
        assert found in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "predicted" / "labels").iterdir()}
    assert {name for name in names if "~" not in name} == set(FILES[1:])  # two with endings are too long
    assert len(names) == len(FILES) + 1
    assert picture_name(0, f"{LONG}.png") != picture_name(0, f"{LONG}_2.png")


def test_random_split_of_names_that_are_no_utf8(tmp_path: Path) -> None:
    for name in ("a.png", "caf\udce9.png", "c.png"):
        picture(tmp_path / "images" / name, 255, (8, 8, 3))
        picture(tmp_path / "masks" / name, 1, (8, 8))
    (tmp_path / "classes.yaml").write_text("classes: {a: [1, 2, 3]}")
    make = partial(LabelledFolder, classes=tmp_path / "classes.yaml")
    parts: list[LabelledFolder] = [make(tmp_path, split=split) for split in ("train", "val")]
    assert sorted(len(part) for part in parts) == [1, 2]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["data=streets_day_to_dusk", "data.root=/x"], "unknown override 'data.root'. Did you mean 'data.target.root'"),
        (["+seed=1"], "Either remove + prefix: 'seed=1'"),
        (["launcher.head=1"], "unknown override 'launcher.head'"),
    ],
)
def test_what_was_typed_is_not_suggested(overrides: list[str], wanted: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - Hydra's, of several kinds
        composed("train", overrides)
    message = explain(raised.value, "train") or ""
    assert wanted in message
    typed = overrides[-1].partition("=")[0]
    assert repr(typed) not in message.partition(". ")[2]


def test_group_of_another_program_is_not_suggested() -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        composed("evaluate", ["head=linear"])
    message = explain(raised.value, "evaluate") or ""
    assert message.count("'head'") == 1


@pytest.mark.parametrize("path", ["数据", "v=1", "a'b"])
def test_unreadable_override_shows_its_quotes(path: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        composed("train", [f"data.root={path}"])
    message = explain(raised.value, "train") or ""
    assert "quotes" in message
    (word,) = shlex.split(message.rpartition("quotes: ")[2])
    assert composed("train", [word]).data.root == path


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("+head.num_prototype=5", "unknown override 'head.num_prototype'. Did you mean 'head.num_prototypes'?"),
        ("data.scale=[1,2]", None),
        ("trainer.devices=[0,1]", None),
        ("+head.own=5", None),
    ],
)
def test_a_new_key_that_is_nearly_a_known_one_is_refused(value: str, wanted: str | None) -> None:
    choices, values = split_choices(["head=prototype", value])
    assert (choices, values) == (["head=prototype"], [value])
    with nullcontext() if wanted is None else pytest.raises(ProtosegError, match=f"^{re.escape(wanted)}$"):
        check_names(values, composed("train", choices))
