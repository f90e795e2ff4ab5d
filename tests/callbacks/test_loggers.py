"""What a dashboard needs arrives in wandb (offline) and TensorBoard."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from protoseg.analysis.activations import activation_rows
from protoseg.analysis.embedding import embedding_plane, plane_picture
from protoseg.analysis.stream import look
from protoseg.callbacks.loggers import memory_statistics, wandb_logger
from protoseg.evaluation.pictures import MARGIN
from protoseg.functional.prototypes import within_class_cosine
from protoseg.nn import PrototypeMemory
from protoseg.run.train import run_training
from protoseg.types import ProtosegError
from tests.analysis.toy import PROTOTYPES, SPACE, Images, Toy
from tests.conftest import DRAWN

SHORT = (*DRAWN, "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.limit_val_batches=2")


def wandb_records(path: Path) -> tuple[dict[str, set[int]], set[str]]:
    """Of a wandb run file the steps at which every key was logged, and the metrics summarised by their maximum."""
    from wandb.proto.wandb_internal_pb2 import Record

    steps: dict[str, set[int]] = defaultdict(set)
    best, data, place, content = set(), path.read_bytes(), 7, b""  # LevelDB's log format behind seven bytes
    while place < len(data):
        if (left := -place % 2**15) and left < 7:  # the end of a block
            place += left
        length, kind = struct.unpack_from("<HB", data, place + 4)
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record, content = Record.FromString(content), b""
            best |= {record.metric.name} if record.metric.summary.max else set()
            row = {(it.key or "/".join(it.nested_key)): json.loads(it.value_json) for it in record.history.item}
            for key in row:
                steps[key.removesuffix("/_type")].add(row["trainer/global_step"])
    return steps, best


def test_wandb_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protoseg.types.find_spec", lambda name: None)
    with pytest.raises(ProtosegError, match=r"expected wandb to be installed, got none: .*'protoseg\[wandb\]'"):
        wandb_logger()


def test_wandb_offline_without_a_key(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_training(configure("train", *SHORT, "logger=wandb"))
    history, best = wandb_records(next((tmp_path / "run" / "wandb").glob("*/*.wandb")))
    assert {key: history[key] for key in ("val/mIoU", "val/predictions", "val/per_class_IoU")} == {
        "val/mIoU": {1},
        "val/predictions": {1},
        "val/per_class_IoU": {1},
    }
    assert best == {"val/mIoU"}
    assert wandb.run is None  # finished, so that the next job of a sweep starts its own
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    media = {path.relative_to(folder / "files" / "media").parts[:3] for path in folder.rglob("media/**/*.*")}
    names = {"/".join(parts) for parts in media}
    assert any("images/val" in name for name in names)
    assert any("images/prototypes" in name for name in names)
    assert any("table/val" in name for name in names)
    assert any("table/prototypes" in name for name in names)
    (file,) = folder.rglob("media/table/prototypes/embedding_table*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["kind", "class", "prototype", "x", "y"]
    assert {row[0] for row in table["data"]} == {"prototype", "pixel"}


def test_wandb_is_online_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert wandb_logger(save_dir=tmp_path)._offline is False
    assert "anonymous" not in wandb_logger(save_dir=tmp_path)._wandb_init  # of which wandb warns
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password key\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert wandb_logger(save_dir=tmp_path)._offline is False
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_logger(save_dir=tmp_path)._offline is True


@pytest.mark.parametrize("log_model", ["true", pytest.param("all", marks=pytest.mark.slow)])
def test_artefact_is_the_best_checkpoint(
    log_model: str, configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    sent: list[str] = []
    start = wandb.init

    def init(**options: Any) -> Any:
        run = start(**{**options, "mode": "disabled"})
        monkeypatch.setattr(run, "log_artifact", lambda it, **_: sent.append(it.metadata["original_filename"]))
        return run

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run_training(configure("train", *SHORT, "logger=wandb", f"logger.wandb.log_model={log_model}"))
    assert sent == ["best.ckpt"]


@pytest.mark.parametrize(("log_model", "message"), [(True, "is offline, got True"), ("best", "expected true, false")])
def test_wrong_artefacts(log_model: bool | str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ProtosegError, match=message):
        wandb_logger(save_dir=tmp_path, log_model=log_model)


def test_embedding_plane_keeps_what_two_components_hold() -> None:
    model, (image, label, _) = Toy().eval(), Images()[0]
    scene = look(model, image, label)
    plane = embedding_plane(model, scene)
    vectors = model.head.memory.prototypes.flatten(0, 1).double().numpy()
    n = plane.prototypes
    assert n == len(vectors) == 3 * PROTOTYPES
    spread = np.linalg.eigvalsh(np.cov(vectors.T, bias=True))
    assert plane.places[:n].double().numpy().var(0) == pytest.approx(spread[::-1][:2], rel=1e-4)
    assert plane.places[:n].mean(0).abs().max() < 1e-6
    again = embedding_plane(model, scene)
    assert torch.equal(plane.places, again.places)
    rows = plane.rows(SPACE)
    assert len(rows) == len(plane.places) > n
    assert [row[:3] for row in rows[:3]] == [
        ["prototype", "road", 0],
        ["prototype", "road", 1],
        ["prototype", "sky", 0],
    ]
    assert plane_picture(plane, SPACE).shape[2] == 3


def test_activation_rows_show_the_classes_of_the_truth() -> None:
    model, (image, label, _) = Toy().eval(), Images()[0]
    label = torch.where(label == 1, 0, label)
    narrow = activation_rows(model, look(model, image, torch.zeros_like(label)), SPACE)
    wide = activation_rows(model, look(model, image, label), SPACE)
    tile = 280 + MARGIN
    assert narrow.shape[1] == MARGIN + 2 * tile
    assert wide.shape[1] == MARGIN + 3 * tile


@pytest.mark.slow
def test_tensorboard(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    score = run_training(configure("train", *SHORT, "logger=tensorboard"))
    written = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    settings = written.PluginTagToContent("hparams")
    assert b"val/best_mIoU" in settings["_hparams_/experiment"]
    assert b"schedule/warmup_steps" in settings["_hparams_/session_start_info"]
    assert [(it.step, it.value) for it in written.Scalars("val/best_mIoU")] == [(2, pytest.approx(score))]
    events = written.Tags()
    assert "hp_metric" not in events["scalars"]
    assert {"val/mIoU", "train/loss", "prototypes/diversity"} <= set(events["scalars"])
    assert {"val/predictions", "prototypes/occupancy", "prototypes/similarity"} <= set(events["images"])
    assert {"prototypes/activations", "prototypes/embedding"} <= set(events["images"])
    assert "custom_scalars__config__" in events["tensors"]
    assert {path.stem for path in (tmp_path / "run" / "panels").glob("*_000002.png")} == {
        f"{name}_000002" for name in ("step", "occupancy", "similarity", "activations", "embedding")
    }
    assert "val/per_class_IoU/text_summary" in events["tensors"]


def test_memory_statistics_by_hand() -> None:
    memory = PrototypeMemory(3, 2, 4)
    memory.occupancy.copy_(memory.occupancy.new_tensor([[5, 5], [8, 0], [0, 0]]))
    statistics = memory_statistics(memory)
    assert float(statistics["moved"]) == pytest.approx(3 / 6)
    assert float(statistics["balance"]) == pytest.approx(0.5)  # of the two classes seen: 1 and 0
    assert float(statistics["diversity"]) == pytest.approx(float(within_class_cosine(memory.prototypes).mean()))
    assert set(memory_statistics(PrototypeMemory(3, 1, 4))) == {"moved"}
