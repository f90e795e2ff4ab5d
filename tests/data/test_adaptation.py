from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from protoseg import distributed
from protoseg.data import (
    CAMVID,
    AdaptationDataModule,
    CamVid,
    Cityscapes,
    DarkZurich,
    RareClasses,
    SegmentationDataModule,
)
from protoseg.types import IGNORE_INDEX, AdaptationBatch, Batch, ProtosegError
from tests.data.helpers import Recorder, StopAndSave, batches, equal, trainer

DAY = partial(CamVid, sequences=["0006R0"])
DUSK = partial(CamVid, sequences=["0001TP"])


def part(root: Path, dataset: Any = DAY, **options: Any) -> partial[SegmentationDataModule]:
    return partial(SegmentationDataModule, dataset, photometric=False, root=str(root), **options)


def module(root: Path, **options: Any) -> AdaptationDataModule:
    parts = {"source": part(root), "target": part(root, DUSK, val_split="train")}
    return AdaptationDataModule(**{**parts, "batch_size": 2, "crop_size": [16, 24], "num_workers": 0, **options})


def test_batches_hold_labelled_source_and_bare_target(camvid: Path) -> None:
    data = module(camvid)
    found = batches(data)
    assert len(data.train_dataloader()) == len(found) == 6
    for batch in found:
        assert isinstance(batch, AdaptationBatch)
        for half, prefix in ((batch.source, "0006R0"), (batch.target, "0001TP")):
            assert half.image.shape == (2, 3, 16, 24)
            assert half.label.shape == (2, 16, 24)
            assert all(Path(name).name.startswith(prefix) for name in half.name)
        assert (batch.source.label < 11).any()
        assert (batch.target.label == IGNORE_INDEX).all()


def test_target_masks_are_never_opened_in_training(camvid: Path) -> None:
    for mask in (camvid / "trainannot").glob("0001TP*"):
        mask.write_bytes(b"unreadable")
    data = module(camvid)
    data.setup("fit")
    batches(data)
    with pytest.raises(ProtosegError, match=r"mask .*0001TP"):  # evaluation reads them
        list(data.val_dataloader())  # type: ignore[arg-type]


def test_target_without_any_mask(camvid: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(camvid / "train", bare / "train")
    data = module(camvid, target=part(bare, DUSK))
    assert all(name.startswith(str(bare)) for batch in batches(data) for name in batch.target.name)


def test_each_stream_is_that_of_its_own_module(camvid: Path) -> None:
    own = {"batch_size": 2, "crop_size": [16, 24], "num_workers": 0}
    both = batches(module(camvid, seed=3))
    assert equal([batch.source for batch in both], batches(part(camvid)(**own, seed=6)))
    assert equal([batch.target for batch in both], batches(part(camvid, DUSK)(**own, seed=7, labels=False)))
    # Apart even on the same images.
    same = batches(module(camvid, target=part(camvid), seed=3))
    assert not any(torch.equal(batch.source.image, batch.target.image) for batch in same)


def test_shared_settings_overrule_those_of_the_parts(camvid: Path) -> None:
    data = module(camvid, source=part(camvid, batch_size=9, seed=5, num_workers=3), val_batch_size=4)
    assert (data.source.batch_size, data.source.num_workers, data.source.val_batch_size) == (2, 0, 4)
    assert data.source.seed == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_see_disjoint_parts_of_the_batch_of_one_process(
    camvid: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    one = batches(module(camvid, batch_size=4), 4)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        ranks.append(batches(module(camvid, num_workers=num_workers), 4))
    for whole, a, b in zip(one, *ranks, strict=True):
        for name in ("source", "target"):
            joined = torch.cat([getattr(a, name).image, getattr(b, name).image])
            assert torch.equal(joined, getattr(whole, name).image)


def test_evaluation_is_the_targets(camvid: Path) -> None:
    data = module(camvid)
    assert data.label_space is CAMVID
    assert data.target.val_split == "train"
    seen = list(data.target.eval_dataloader("train"))
    assert [Path(name).name[:6] for batch in seen for name in batch.name] == ["0001TP"] * 3
    assert all((batch.label != IGNORE_INDEX).any() for batch in seen)
    assert equal(list(data.val_dataloader()), seen)  # type: ignore[arg-type]


def test_validation_on_the_source_too(camvid: Path) -> None:
    data = module(camvid, validate_source=True, val_batch_size=2)
    data.setup("fit")
    target, source = data.val_dataloader()  # type: ignore[misc]
    assert {Path(name).name[:6] for batch in target for name in batch.name} == {"0001TP"}
    assert {Path(name).parent.name for batch in source for name in batch.name} == {"val"}


def test_source_validation_data_need_not_be_there(camvid: Path) -> None:
    for folder in ("val", "valannot"):
        shutil.rmtree(camvid / folder)
    module(camvid).setup("fit")
    with pytest.raises(ProtosegError, match="val, which does not exist"):
        module(camvid, validate_source=True).setup("fit")


def test_statistics_and_rare_classes_are_the_sources(camvid: Path) -> None:
    data = module(camvid, rare_classes=RareClasses(min_pixels=40, temperature=0.1))
    own = part(camvid)(batch_size=1, crop_size=[4, 4])
    assert torch.equal(data.source.class_frequencies(), own.class_frequencies())
    assert data.source.class_statistics().names == own.class_statistics().names
    assert data.source.rare_classes is not None
    assert data.target.rare_classes is None
    assert len(batches(data)) == 6


# Classes


@pytest.fixture
def cities(cityscapes: Path) -> partial[SegmentationDataModule]:
    return part(cityscapes, Cityscapes)


def mapping() -> dict[str, str | None]:
    everything = dict.fromkeys(Cityscapes.label_space.classes)
    return {**everything, "road": "Road", "sky": "Sky", "car": "Car", "bus": "Car"}


def test_source_labels_are_mapped(camvid: Path, cities: partial[SegmentationDataModule]) -> None:
    data = module(camvid, source=cities, mapping=mapping())
    assert data.source.label_space is CAMVID
    plain = cities(batch_size=2, crop_size=[16, 24], num_workers=0, seed=0)
    expected = {name: CAMVID.classes.index(to) for name, to in mapping().items() if to is not None}
    for batch, original in zip(batches(data), batches(plain), strict=True):
        wanted = torch.full_like(original.label, IGNORE_INDEX)
        for name, train_id in expected.items():
            wanted[original.label == Cityscapes.label_space.classes.index(name)] = train_id
        assert torch.equal(batch.source.label, wanted)
        assert torch.equal(batch.source.image, original.image)
    assert torch.nonzero(data.source.class_frequencies()).flatten().tolist() == sorted({*expected.values()})
    assert plain.dataset("train").label_space.num_classes == 19  # nobody else is affected


def test_classes_that_differ_without_mapping(camvid: Path, cities: partial[SegmentationDataModule]) -> None:
    with pytest.raises(ProtosegError, match=r"the same classes, got 'cityscapes' .* and 'camvid' .*data\.mapping"):
        module(camvid, source=cities)
    with pytest.raises(ProtosegError, match=r"every class of 'cityscapes' .* got none for bicycle, .*wall"):
        module(camvid, source=cities, mapping={"road": "Road"})


# Errors


def test_target_folder_without_images(camvid: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(ProtosegError, match=r"CamVid: .*empty/train: expected images .* got none"):
        module(camvid, target=part(tmp_path / "empty", CamVid)).setup("fit")


def test_source_without_masks(dark_zurich: Path) -> None:
    night = part(dark_zurich, DarkZurich)
    with pytest.raises(ProtosegError, match=r"images with masks to train on, got .*which has none"):
        module(dark_zurich, source=night, target=night).setup("fit")


@pytest.mark.parametrize("options", [{"seed": -1}, {"batch_size": 0}, {"num_workers": -1}])
def test_options_that_make_no_sense(camvid: Path, options: dict[str, int]) -> None:
    with pytest.raises(ProtosegError, match=r"expected .* of at least"):
        module(camvid, **options)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("prefix", ["0006R0", "0001TP"])
def test_a_bad_file_of_either_is_one_message_at_once(
    camvid: Path, num_workers: int, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 60.0)  # so long for workers left alone
    for path in (camvid / "train").glob(f"{prefix}*"):
        path.write_bytes(path.read_bytes()[:100])
    data, before = module(camvid, num_workers=num_workers), {*active_children()}
    started = time.perf_counter()
    with pytest.raises(ProtosegError, match=rf"^image .*{prefix}.*: expected a complete") as error:
        batches(data)
    assert "Traceback" not in str(error.value)
    assert {*active_children()} <= before
    del data, error
    assert time.perf_counter() - started < 30


# With Lightning


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_pass_is_the_whole_training(camvid: Path, tmp_path: Path, num_workers: int) -> None:
    model, data, before = Recorder(), module(camvid, num_workers=num_workers), {*active_children()}
    run = trainer(tmp_path, max_steps=3, accumulate_grad_batches=2, limit_val_batches=1.0)
    run.fit(model, data)
    assert run.global_step == 3
    assert len(model.seen) == 6
    assert all(len(seen) == 2 for seen in model.seen)
    assert data.source.trainer is data.target.trainer is data.trainer is run
    assert {*active_children()} <= before


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_exception"])
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_sees_the_batches_that_follow(camvid: Path, tmp_path: Path, hook: str, num_workers: int) -> None:
    options: dict[str, Any] = {"val_check_interval": 4, "limit_val_batches": 1.0, "check_val_every_n_epoch": None}
    make: Callable[[], AdaptationDataModule] = partial(module, camvid, num_workers=num_workers, validate_source=True)
    whole = Recorder()
    trainer(tmp_path, **options).fit(whole, make())

    path = tmp_path / "stop.ckpt"
    first = Recorder(fail_at=4 if hook == "on_exception" else None)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer(tmp_path, callbacks=[StopAndSave(4, path, hook)], **options).fit(first, make())
    state = torch.load(path, weights_only=True)["AdaptationDataModule"]
    assert (state["source"]["batches"], state["target"]["batches"]) == (4, 4)

    second = Recorder()
    run = trainer(tmp_path, **options)
    run.fit(second, make(), ckpt_path=str(path), weights_only=True)
    assert len(whole.seen) == 8
    assert first.seen[:4] + second.seen == whole.seen
    assert run.global_step == 8


def test_resume_refuses_other_streams(camvid: Path) -> None:
    state = module(camvid).state_dict()
    with pytest.raises(ProtosegError, match="expected seed=0, as in the checkpoint, got seed=1"):
        module(camvid, seed=1).load_state_dict(state)
    with pytest.raises(ProtosegError, match=r"data\.source: resume: expected batch_size=2"):
        module(camvid, batch_size=3).load_state_dict(state)
    with pytest.raises(ProtosegError, match=r"data\.target: resume: expected num_samples=3, .* got num_samples=4"):
        module(camvid, target=part(camvid)).load_state_dict(state)


def test_validation_ignores_the_checkpoints_position(camvid: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2)
    run.fit(Recorder(), module(camvid))
    run.save_checkpoint(tmp_path / "a.ckpt")
    trainer(tmp_path, limit_val_batches=1.0).validate(
        Recorder(), module(camvid, batch_size=1), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True, verbose=False
    )


def test_the_trainer_must_count_in_steps(camvid: Path, tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match=r"expected no trainer\.limit_train_batches"):
        trainer(tmp_path, limit_train_batches=3).fit(Recorder(), module(camvid))


def test_batches_move_as_a_whole(camvid: Path) -> None:
    (batch, *_) = batches(module(camvid))
    moved = pl.LightningModule().transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, AdaptationBatch)
    assert isinstance(moved.target, Batch)
    assert moved.target.image.device.type == "meta"
    assert moved.source.name == batch.source.name
