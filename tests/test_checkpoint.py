"""Checkpoints are atomic, and a stranger's checkpoint can do nothing: what it may hold, declare and build."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from protoseg.callbacks.checkpoint import AtomicCheckpointIO
from protoseg.checkpoint import check_same_classes, read_checkpoint, save_checkpoint
from protoseg.trained import open_file
from protoseg.trusted import SLOTS, Slot, checked_sections
from protoseg.types import LabelSpace, ProtosegError
from tests.conftest import CONF, at_most

HEAD = {"_target_": "protoseg.nn.PrototypeHead", "num_prototypes": 2}
EMPTY: dict[str, Any] = {
    "protoseg": {"config": {}, "label_space": {"name": "a", "classes": ["a"], "colors": [[1, 2, 3]]}},
    "state_dict": {},
}


def slots(found: dict[str, Slot] = SLOTS, where: str = "") -> Iterator[tuple[str, Slot]]:
    for key, slot in found.items():
        yield f"{where}{key}", slot
        yield from slots(dict(slot.parts), f"{where}{key}.")


def test_the_closed_list_holds_classes_and_every_config_is_on_it() -> None:
    for key, slot in slots():
        for name in slot.classes:
            kind = get_class(name)
            assert isinstance(kind, type), (key, name)
            assert issubclass(kind, slot.base)
    sections = dict(slots())
    for group in ("encoder", "decoder", "segmentor", "head", "inference"):
        for file in (CONF / group).glob("*.yaml"):
            target = OmegaConf.load(file).get("_target_")
            assert target is None or target in sections[group].classes, file
    for file in (CONF / "data").glob("*.yaml"):
        dataset = OmegaConf.load(file).get("dataset")
        if dataset is not None and "_target_" in dataset:
            assert dataset["_target_"] in sections["data.dataset"].classes, file


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "torch.os.system",
        "protoseg.checkpoint.os.remove",
        "torch.hub.load",
        "torch.nn.Conv2d",
        "pytorch_lightning.Trainer",
        "segmentation_models_pytorch.Unet",
        "torchmetrics.image.fid.FrechetInceptionDistance",
        "timm.create_model",
        "protoseg.run.config.composed",  # our own functions: one composes configs, one writes a file, one opens models
        "protoseg.evaluation.evaluate.write_json",
        "protoseg.api.load",
        "protoseg.load",
        "protoseg.data.SegmentationDataModule",  # a class of another section
        "protoseg.nothing.Here",
        "torch",
        "",
        7,
    ],
)
def test_nothing_else_is_built_at_any_depth(target: Any) -> None:
    for config, key in (
        ({"head": {"_target_": target}}, "head"),
        ({"head": HEAD | {"num_prototypes": {"_target_": target}}}, "head.num_prototypes"),
        ({"segmentor": {"_target_": "protoseg.models.HRDASegmentor", "attention": {"_target_": target}}}, "attention"),
        ({"head": HEAD | {"x": [{"y": {"_target_": target}}]}}, "head.x"),
    ):
        with pytest.raises(ProtosegError, match=key):
            checked_sections(config, [*config])


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "${",
        "{_target_: os.system}",
        {"_args_": [1]},
        {"_convert_": "all"},
        {3: 4},
        float("nan"),
        10**9,
        torch.zeros(1),
        "x" * 5000,
    ],
)
def test_arguments_are_data(value: Any) -> None:
    for config in (HEAD | {"temperature": value}, HEAD | {"a": {"b": [value]}}):
        with pytest.raises(ProtosegError, match=r"checkpoint config head"):
            checked_sections({"head": config}, ["head"])
    deep: Any = value
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ProtosegError, match="16 levels"):
        checked_sections({"head": HEAD | {"a": deep}}, ["head"])


def test_modules_that_the_caller_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_heads.py").write_text(
        "from torch import nn\nfrom protoseg.nn import Head\nimport pathlib\npathlib.Path('imported').touch()\n"
        "class Mine(Head):\n    pass\ndef make():\n    pass\nclass Other:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = {"head": {"_target_": "mine_heads.Mine", "inner": {"_target_": "mine_heads.Mine"}}}
    with pytest.raises(ProtosegError, match=r"mine_heads.Mine' is not one of .* trust=\[mine_heads\]"):
        checked_sections(config, ["head"])
    assert not Path("imported").exists()
    assert checked_sections(config, ["head"], ["mine_heads"])["head"] == config["head"]
    for name, reason in (("make", "derived from Head"), ("Other", "derived from Head"), ("None_", "imported")):
        with pytest.raises(ProtosegError, match=reason):
            checked_sections({"head": {"_target_": f"mine_heads.{name}"}}, ["head"], ["mine_heads"])
    with pytest.raises(ProtosegError, match="not one of"):
        checked_sections({"head": {"_target_": "mine_heads_too.Mine"}}, ["head"], ["mine_heads"])
    with pytest.raises(ProtosegError, match="names of modules"):
        checked_sections(config, ["head"], ["mine heads"])


class Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("pwned",)


class Many:
    def __reduce__(self) -> tuple:
        return bytearray, (10**11,)  # one of the calls that torch's reader allows


def test_pickled_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for payload in (Payload(), Many()):
        torch.save({"protoseg": payload}, "evil.ckpt")
        with pytest.raises(ProtosegError, match=r"it asks for (posix.mkdir|__builtin__.bytearray).*refused"):
            read_checkpoint("evil.ckpt")
    assert not Path("pwned").exists()


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match="no file at"):
        read_checkpoint(tmp_path / "none.ckpt")
    file = tmp_path / "text.ckpt"
    file.write_text("hello")
    with pytest.raises(ProtosegError, match="not readable"):
        read_checkpoint(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ProtosegError, match=r"train\.py"):
        read_checkpoint(file)
    torch.save(EMPTY | {"protoseg": EMPTY["protoseg"] | {"config": None}}, file)
    with pytest.raises(ProtosegError, match="config inside"):
        open_file(file).sections("encoder")


def test_truncated_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"protoseg": {}, "weights": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ProtosegError, match="damaged"):
        read_checkpoint(file)


def rewrite(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Every part of an archive, changed."""
    with zipfile.ZipFile(path) as old:
        parts = {part.filename: change(part.filename, old.read(part)) for part in old.infolist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in parts.items():
            new.writestr(name, data)


def test_archives_that_declare_more_than_they_hold(tmp_path: Path) -> None:
    file = tmp_path / "bomb.ckpt"
    torch.save(EMPTY | {"state_dict": {"w": torch.zeros(10**6)}}, file)
    rewrite(file, lambda _, data: data, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 10**5
    with pytest.raises(ProtosegError, match="it is compressed"):
        read_checkpoint(file)
    torch.save(EMPTY | {"state_dict": {"w": torch.zeros(1000)}}, file)
    rewrite(file, lambda name, data: data[:400] if name.endswith("data/0") else data)
    with pytest.raises(ProtosegError, match="too few bytes"):  # torch would read behind its end
        read_checkpoint(file)
    for tensor in (torch.zeros(1).expand(10**9), torch.zeros(119).as_strided((60, 60), (1, 1))):
        torch.save(EMPTY | {"state_dict": {"w": tensor}}, file)
        with pytest.raises(ProtosegError, match="too few bytes"):
            read_checkpoint(file)
    shared = torch.zeros(10**4)
    torch.save(EMPTY | {"state_dict": {f"w{i}": shared for i in range(100)}}, file)
    with pytest.raises(ProtosegError, match="share them"):
        read_checkpoint(file)


def test_values_that_hold_one_another(tmp_path: Path) -> None:
    file = tmp_path / "laughs.ckpt"
    value: Any = [1]
    for _ in range(40):
        value = [value, value]
    loop: list[Any] = []
    loop.append(loop)
    for hostile in (value, loop):
        torch.save(EMPTY | {"more": hostile}, file)
        with pytest.raises(ProtosegError, match="values, or nests them"):
            read_checkpoint(file)
    content = pickle.dumps(EMPTY, protocol=2)
    torch.save(EMPTY, file)
    rewrite(file, lambda name, data: content[:-1] + b"(" * (9 << 20) if name.endswith("data.pkl") else data)
    with pytest.raises(ProtosegError, match="plain values take"):
        read_checkpoint(file)


BAD_TREES: list[Any] = [
    "ab",
    3,
    [1.0, -1],
    [[1], -1],
    [1],
    [1, -1, -1],
    [1, 0],
    [0, -1],
    [-1, 0],
    [2, -1],
    [1, 1],
    [-2, -1],
]
BAD_PARTS: dict[str, Any] = {
    "label_space": [
        None,
        {},
        {"name": "a", "classes": ["a"]},
        {"name": "a", "classes": ["a"], "colors": [[1, 2, 999]]},
        {"name": "a", "classes": ["a"], "colors": [[1, 2]]},
        {"name": "a", "classes": ["a", "b"], "colors": [[1, 2, 3]]},
        {"name": "a", "classes": ["a", "a"], "colors": [[1, 2, 3], [4, 5, 6]]},
        {"name": "a", "classes": [1], "colors": [[1, 2, 3]]},
        {"name": "a", "classes": "abc", "colors": [[1, 2, 3]] * 3},
        {"name": 3, "classes": ["a"], "colors": [[1, 2, 3]]},
        {"name": "a", "classes": [], "colors": []},
        *({"name": "a", "classes": ["a", "b"], "colors": [[1, 2, 3]] * 2, "parents": tree} for tree in BAD_TREES),
    ],
    "state_dict": [
        "weights",
        None,
        {3: torch.zeros(1)},
        {"w": "text"},
        {"w": torch.tensor([float("nan")])},
        {"w": torch.tensor([float("inf")])},
    ],
    "config": [
        *["text", {"head": "text"}, {"data": 3}, {"method": {"subsets": {"a": "b"}}}],
        *[{"data": where} for where in ({"relabel": "x"}, {"source": {"parts": {"one": {"relabel": {3: "a"}}}}})],
    ],
    "relabel": ["x", {3: "a"}, {"a": 3}],
}


@pytest.mark.parametrize(("part", "value"), [(part, value) for part, values in BAD_PARTS.items() for value in values])
def test_parts_of_another_form(part: str, value: Any, tmp_path: Path) -> None:
    content = {"protoseg": dict(EMPTY["protoseg"]), "state_dict": {}}
    (content if part == "state_dict" else content["protoseg"])[part] = value
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(ProtosegError, match=r"bad.ckpt"):
        read_checkpoint(tmp_path / "bad.ckpt")


@pytest.mark.slow
def test_complex_weights_and_two_million_classes(tmp_path: Path) -> None:
    torch.save(EMPTY | {"state_dict": {"w": torch.zeros(2, dtype=torch.complex64)}}, tmp_path / "bad.ckpt")
    with pytest.raises(ProtosegError, match="ComplexFloat"):
        read_checkpoint(tmp_path / "bad.ckpt")
    names = [str(i) for i in range(2_000_000)]
    space = {"name": "a", "classes": names, "colors": [[0, 0, 0]] * len(names)}
    torch.save(EMPTY | {"protoseg": {"config": {}, "label_space": space}}, tmp_path / "bad.ckpt")
    with at_most(5), pytest.raises(ProtosegError, match=r"bad.ckpt"):
        read_checkpoint(tmp_path / "bad.ckpt")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({**EMPTY, "x": torch.ones(3)}, file)

    def full_disk(checkpoint: object, stream) -> None:  # type: ignore[no-untyped-def]
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(ProtosegError, match="No space left"):
        io.save_checkpoint({"x": torch.zeros(3)}, file)
    assert io.load_checkpoint(file)["x"].tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_full_disk_is_told_with_what_was_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(checkpoint: object, stream: object) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904  as torch's own writer does

    monkeypatch.setattr(torch, "save", full_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_500_000))
    state = {"state_dict": {"a": torch.ones(1000, 1000)}, "optimizer_states": [{"b": torch.ones(250_000)}]}
    with pytest.raises(ProtosegError) as error:
        save_checkpoint(state, tmp_path / "new" / "last.ckpt")
    assert "last.ckpt: No space left on device (5.0 MB wanted, 1.5 MB free). What was written" in str(error.value)


def test_other_classes_are_told_by_where_they_differ() -> None:
    colors = tuple((i, i, i) for i in range(6))
    one, other = LabelSpace("toy", tuple("abcdef"), colors), LabelSpace("toy", tuple("abcdfe"), colors)
    with pytest.raises(ProtosegError, match=r"6 classes \(toy: e, f, …\), the data has 6 classes \(toy: f, e, …\)"):
        check_same_classes("a.ckpt", one, other)
