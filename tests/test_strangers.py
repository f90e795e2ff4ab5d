"""Every door that opens a checkpoint, given a stranger's: no network, no file written, one sentence where it is bad."""

from __future__ import annotations

import copy
import math
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

import protoseg
from protoseg import notebook
from protoseg.checkpoint import save_checkpoint
from protoseg.cli.main import run_tool
from protoseg.data import CAMVID
from protoseg.run.build import build_module
from protoseg.run.convert import export
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from protoseg.trained import open_file
from protoseg.types import ProtosegError
from tests.conftest import TINY, at_most

SMALL = (*(o for o in TINY if not o.startswith("encoder.name")), "encoder.name=test_resnet")
_made: dict[Path, dict[str, Any]] = {}  # by the folder of its data: what 60 tests begin with takes a second to make
_allowed: list[str] | None = None  # where files may be written while the guard is on


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        raise PermissionError(f"guard: {event} {arguments}")
    writes = {"os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "shutil.rmtree": 1, "os.symlink": 2}
    paths = arguments[: writes.get(event, 0)]
    if event == "open" and (set("wax+") & set(arguments[1] or "") or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        paths = arguments[:1]
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)) and not _is_allowed(os.path.abspath(os.fsdecode(path))):
            raise PermissionError(f"guard: {event} {path!r}")


def _is_allowed(path: str) -> bool:
    return path == os.devnull or "__pycache__" in path or any(path.startswith(place) for place in _allowed or ())


@contextmanager
def blocked(*writable: Path) -> Iterator[None]:
    """No sockets, no programs, and no file written outside ``writable``."""
    global _allowed
    _allowed = [str(place) for place in writable]
    try:
        yield
    finally:
        _allowed = None


@pytest.fixture(autouse=True, scope="module")
def _install_guard() -> None:
    sys.addaudithook(_guard)


def test_the_guard_guards(tmp_path: Path) -> None:
    import socket

    with blocked(tmp_path / "out"):
        with pytest.raises(PermissionError, match="guard"):
            (tmp_path / "file").write_text("x")
        with pytest.raises(PermissionError, match="guard"), socket.socket() as s:
            s.connect(("127.0.0.1", 9))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("x")


@pytest.fixture
def content(configure: Callable[..., DictConfig], few_streets: Path) -> dict[str, Any]:
    """A checkpoint of adaptation, with a teacher."""
    if few_streets not in _made:
        few = (f"data.source.root={few_streets}", f"data.target.root={few_streets}")
        module = build_module(configure("train", *SMALL, "data=streets_day_to_dusk", "method=dacs", *few), CAMVID)
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        _made[few_streets] = checkpoint
    return copy.deepcopy(_made[few_streets])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folders of images and masks."""
    for folder, array in (("images", np.full((48, 64, 3), 90, np.uint8)), ("masks", np.ones((48, 64), np.uint8))):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "a.png")
    return tmp_path


def save(content: dict[str, Any], path: Path) -> Path:
    save_checkpoint(content, path)
    return path


def _command(tool: str, *arguments: object) -> None:
    try:
        run_tool(tool, [str(argument) for argument in arguments])
    except SystemExit as error:
        if error.code:
            raise ProtosegError("told on the terminal") from None


Door = Callable[[Path, Path, Path, Callable[..., DictConfig]], object]
ADDED = ("--name", "new", "--color", "1,2,3")

DOORS: dict[str, Door] = {
    "load": lambda ckpt, images, out, configure: protoseg.load(ckpt, "cpu").predict(images / "images" / "a.png"),
    "load teacher": lambda ckpt, images, out, configure: protoseg.load(ckpt, "cpu", network="teacher"),
    "evaluate": lambda ckpt, images, out, configure: run_evaluation(
        configure("evaluate", f"ckpt_path={ckpt}", "num_workers=0", "max_overlays=0", "save=[]", output=out)
    ),
    "predict": lambda ckpt, images, out, configure: run_evaluation(
        configure("evaluate", f"ckpt_path={ckpt}", "mode=predict", f"images={images / 'images'}", output=out)
    ),
    "analysis prototypes": lambda ckpt, images, out, configure: _command(
        "analyse", "prototypes", f"ckpt_path={ckpt}", "num_workers=0", "--images", 1, "--skip", "activations",
        "--skip", "patches", "--skip", "embedding", "--out", out,
    ),
    "analysis uncertainty": lambda ckpt, images, out, configure: _command(
        "analyse", "uncertainty", f"ckpt_path={ckpt}", "num_workers=0", "--images", 1, "--out", out
    ),
    "analysis adaptation": lambda ckpt, images, out, configure: _command(
        "analyse", "adaptation", f"ckpt_path={ckpt}", "num_workers=0", "--source-only", ckpt, "--images", 1,
        "--out", out,
    ),
    "classes add": lambda ckpt, images, out, configure: (
        _command("teach", "statistics", ckpt, "--out", out / "ready.ckpt"),
        _command(
            "teach", "add", out / "ready.ckpt", "--images", images / "images", "--masks", images / "masks", *ADDED,
            "--out", out / "new.ckpt",
        ),
    ),
    "classes remove": lambda ckpt, images, out, configure: _command(
        "teach", "remove", ckpt, "--name", "Car", "--out", out / "new.ckpt"
    ),
    "classes merge": lambda ckpt, images, out, configure: _command(
        "teach", "merge", ckpt, "--name", "Car", "--name", "Tree", "--into", "x", "--out", out / "new.ckpt"
    ),
    "classes show": lambda ckpt, images, out, configure: _command("teach", "show", ckpt),
    "notebook": lambda ckpt, images, out, configure: notebook.open_run(ckpt, limit=1),
    "export": lambda ckpt, images, out, configure: export(str(ckpt), out / "model.onnx", None, "student", []),
    **{
        key: lambda ckpt, images, out, configure, key=key: run_training(
            configure("train", *SMALL, "data=streets_day_to_dusk", "method=dacs", f"{key}={ckpt}", output=out)
        )
        for key in ("resume", "init_from")
    },
}  # fmt: skip
"""All that opens a checkpoint; SECURITY.md lists them."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protoseg.run.convert.require", lambda *names: None)
    monkeypatch.setattr("protoseg.teach.statistics.MAX_IMAGES", 3)

    def not_here(*arguments: object) -> None:
        raise ProtosegError("opened; the rest takes minutes")

    monkeypatch.setattr("protoseg.run.convert.export_onnx", not_here)


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("door", DOORS)
def test_no_door_reaches_the_network_or_the_disk(
    door: str, content: dict[str, Any], images: Path, tmp_path: Path, configure: Callable[..., DictConfig]
) -> None:
    config = content["protoseg"]["config"]
    config["encoder"] |= {"pretrained": True, "weights": str(tmp_path / "secret.pth")}
    (tmp_path / "secret.pth").write_text("not weights")
    path = save(content, tmp_path / "stranger.ckpt")
    with blocked(tmp_path / "out"), pytest.raises(ProtosegError) if door in ("export", "resume") else nullcontext():
        DOORS[door](path, images, tmp_path / "out", configure)


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("door", DOORS)
def test_no_door_builds_what_is_not_on_the_list(
    door: str,
    content: dict[str, Any],
    images: Path,
    tmp_path: Path,
    configure: Callable[..., DictConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    marker = {
        "_target_": "protoseg.evaluation.evaluate.write_json",
        "path": str(tmp_path / "out" / "marker"),
        "value": 1,
    }
    for section in ("encoder", "decoder", "head", "inference", "data", "segmentor", "auxiliary"):
        content["protoseg"]["config"][section] = marker
    path = save(content, tmp_path / "stranger.ckpt")
    if door in ("classes show", "resume", "init_from"):  # these build nothing of what is inside
        return
    with pytest.raises(ProtosegError) as error:
        DOORS[door](path, images, tmp_path / "out", configure)
    assert "is not one of the classes that a checkpoint may build" in str(error.value) + capsys.readouterr().err
    assert not (tmp_path / "out" / "marker").exists()


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("encoder", {"name": "no_such_model"}),
        ("encoder", {"name": "hf-hub:timm/resnet18.a1_in1k"}),
        ("encoder", {"name": "../../secret"}),
        ("encoder", {"name": "vit_giant_patch14_dinov2"}),
        ("encoder", {"checkpoint_path": "secret.pth"}),
        ("encoder", {"pretrained_cfg": {"file": "secret.pth"}}),
        ("encoder", {"depths": [60_000] * 4, "name": "swin_tiny_patch4_window7_224"}),
        ("encoder", {"img_size": 60_000, "name": "swin_tiny_patch4_window7_224"}),
        ("encoder", {"_target_": "protoseg.models.encoders.MiTEncoder", "variant": "b5"}),
        ("encoder", {"act_layer": "os.system"}),
        ("decoder", {"pyramid_channels": 65_536}),
        ("decoder", {"_target_": "protoseg.models.decoders.FCNDecoder", "num_convs": 65_536}),
        ("head", {"num_prototypes": 10**9}),
        ("head", {"num_prototypes": 65_000}),
        ("head", {"num_prototypes": "many"}),
        ("head", {"num_prototypes": -1}),
        ("head", {"unknown": 1}),
        ("segmentor", {"_target_": "protoseg.models.HRDASegmentor", "detail_size": 0}),
        ("inference", {"mode": "slide", "crop_size": 0}),
        ("inference", {"scales": [1e6]}),
        ("inference", {"scales": "big"}),
        ("inference", {"_partial_": True}),
        ("encoder", {"_partial_": True}),
        ("data", {"_partial_": True}),
        ("data", {"crop_size": 0}),
        ("data", {"target": None}),
        ("data", {"mapping": "no_such_mapping"}),
    ],
)
def test_configs_that_cannot_be(section: str, values: dict[str, Any], content: dict[str, Any], tmp_path: Path) -> None:
    own = content["protoseg"]["config"]
    own[section] = (own[section] if "_target_" not in values else {}) | values
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with blocked(), at_most(10), pytest.raises(ProtosegError):  # Swin of 240 000 blocks: 4.6, up to the limit of parts
        open_everything(save_blocked(content, tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1e6  # kB


def save_blocked(content: dict[str, Any], folder: Path) -> Path:
    global _allowed
    kept, _allowed = _allowed, None
    path = save(content, folder / "stranger.ckpt")
    _allowed = kept
    return path


def open_everything(path: Path) -> None:
    """All that may be built of a checkpoint."""
    file = open_file(path)
    file.model()
    file.predictor()
    file.datamodule()
    if "teacher" in file.networks:
        file.model("teacher")


def test_the_callers_random_numbers_stay(content: dict[str, Any], tmp_path: Path) -> None:
    path = save(content, tmp_path / "a.ckpt")
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    protoseg.load(path, "cpu")
    assert torch.equal(torch.rand(3), want)


def test_a_missing_folder_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with blocked():
        with pytest.raises(ProtosegError, match=r"no such file; a model on the Hugging Face hub is hf://runs/demo"):
            protoseg.load("runs/demo")
        with pytest.raises(ProtosegError, match="expected hf://user/name"):
            protoseg.load("hf://../../etc")


VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 255, 2**31, 2**63, -(2**70), 0.0, 1e-300, 1e300, math.nan, math.inf, "", "a",
    "${x}", "os.system", "protoseg.api.load", "\x1b[31m", "\udcff", "/etc/passwd", "x" * 10**5, [], [0], [[]], {},
    {"_target_": "os.mkdir"}, {"_target_": "protoseg.evaluation.evaluate.write_json", "path": "marker", "value": 1},
    {"_partial_": True}, {1: 2}, b"bytes", (1, 2), "resnet50", "hf-hub:a/b",
    "protoseg.nn.PrototypeHead", [1e9] * 3, "data", "_target_",
)  # fmt: skip


def mutated(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one to three changes of its plain values or its tensors."""
    content = copy.copy(content) | {
        "protoseg": copy.deepcopy(content["protoseg"]),
        "state_dict": dict(content["state_dict"]),
    }
    for _ in range(rng.randint(1, 3)):
        (_mutate_tensor if rng.random() < 0.3 else _mutate_value)(content, rng)
    return content


def _mutate_value(content: dict[str, Any], rng: random.Random) -> None:
    node: Any = content if rng.random() < 0.1 else content["protoseg"]
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and key != "state_dict" and rng.random() < 0.85:
            node = node[key]
            continue
        action = rng.random()
        if action < 0.7 or not isinstance(node, dict):
            node[key] = rng.choice(VALUES)
        elif action < 0.8:
            del node[key]
        else:
            node[rng.choice(["new", "weights", "pretrained", "_args_", "_recursive_", "checkpoint_path"])] = rng.choice(
                VALUES
            )
        return


def _mutate_tensor(content: dict[str, Any], rng: random.Random) -> None:
    state = content["state_dict"]
    if not isinstance(state, dict) or not state:
        return
    name = rng.choice(list(state))
    tensor = state[name]
    if not isinstance(tensor, torch.Tensor):
        return
    changes: list[Callable[[], Any]] = [
        lambda: tensor.double(),
        lambda: tensor.to(torch.complex64),
        lambda: torch.full_like(tensor, math.nan) if tensor.is_floating_point() else tensor,
        lambda: tensor[None],
        lambda: torch.zeros(0),
        lambda: torch.zeros(1).expand(10**8),
        lambda: "text",
        lambda: tensor.to_sparse() if tensor.ndim else tensor,
        lambda: tensor * 2,
    ]
    if rng.random() < 0.3:
        state[rng.choice([f"{name}x", "model.x", 3])] = state.pop(name)
    else:
        state[name] = rng.choice(changes)()


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_fuzz(count: int, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutations of a real checkpoint end in a ProtosegError or a right load, and leave no marker."""
    monkeypatch.chdir(tmp_path)
    rng, path, outcomes = random.Random(0), tmp_path / "fuzz.ckpt", {"refused": 0, "loaded": 0}
    whole = save(content, path).read_bytes()
    before = set(tmp_path.iterdir())
    for number in range(count):
        if rng.random() < 0.15:  # of the bytes
            data = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data) if rng.random() < 0.5 else 60_000)] = rng.randrange(256)
            path.write_bytes(data)
        else:
            try:
                torch.save(mutated(content, rng), path)
            except Exception:  # not a file that could be written
                continue
        with blocked(), at_most(5, number):
            try:
                open_everything(path)
                outcomes["loaded"] += 1
            except ProtosegError:
                outcomes["refused"] += 1
    assert set(tmp_path.iterdir()) == before
    assert min(outcomes.values()) > count / 20, outcomes
    print(outcomes)
