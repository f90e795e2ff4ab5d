# ruff: noqa: NPY002  the global generator is what these tests are about
from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from protoseg import distributed
from protoseg.data import CAMVID, CITYSCAPES, CamVid, Cityscapes, ImageFolder, SegmentationDataModule, Streets
from protoseg.data.loading import collate, seed_worker
from protoseg.data.transforms import A
from protoseg.types import IGNORE_INDEX, ProtosegError
from tests.data.helpers import Recorder, StopAndSave, batches, equal, trainer


def module(root: Path, **options: Any) -> SegmentationDataModule:
    options = {"batch_size": 2, "crop_size": [16, 24], "num_workers": 0, "root": str(root), **options}
    return SegmentationDataModule(CamVid, **options)


def test_train_batches(camvid: Path) -> None:
    for batch in batches(module(camvid)):
        assert batch.image.shape == (2, 3, 16, 24)
        assert batch.image.dtype == torch.uint8
        assert batch.label.shape == (2, 16, 24)
        assert batch.label.dtype == torch.int64
        assert batch.size.tolist() == [[16, 24]] * 2
        assert all(Path(name).is_file() for name in batch.name)


def test_batches_do_not_depend_on_workers_or_global_state(camvid: Path) -> None:
    augment = [A.VerticalFlip(p=0.5), A.ElasticTransform(p=0.5)]
    reference = batches(module(camvid, augment=augment))
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert equal(batches(module(camvid, num_workers=2, augment=augment)), reference)
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(batches(module(camvid, seed=1, augment=augment)), reference)
    assert not equal(batches(module(camvid)), reference)


def test_ranks_see_the_batch_of_one_process(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = batches(module(camvid, batch_size=4))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(batches(module(camvid, batch_size=2)))
    joined = [torch.cat([a.image, b.image]) for a, b in zip(*parts, strict=True)]
    assert all(torch.equal(x, y.image) for x, y in zip(joined, one, strict=True))


def test_eval_covers_every_image_once_over_ranks(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    names = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        names += [name for batch in module(camvid, val_batch_size=2).val_dataloader() for name in batch.name]
    assert sorted(names) == [str(image) for image, _ in CamVid(camvid, "val").samples]
    with pytest.raises(ProtosegError, match="got 1 images for 2 processes"):
        module(camvid).eval_dataloader("test")


def test_eval_pads_images_of_different_sizes(
    tmp_path: Path, write_mask: Callable[..., None], write_image: Callable[..., None]
) -> None:
    for name, size in (("a", (10, 30)), ("b", (20, 12))):
        write_image(tmp_path / "val" / f"{name}.png", *size)
        write_mask(tmp_path / "valannot" / f"{name}.png", *size, ids=11)
    (batch,) = module(tmp_path, val_batch_size=4).val_dataloader()
    assert batch.image.shape == (2, 3, 20, 30)
    assert batch.size.tolist() == [[10, 30], [20, 12]]
    for i, (image, label, _) in enumerate(CamVid(tmp_path, "val")):
        h, w = batch.size[i].tolist()
        assert torch.equal(batch.image[i, :, :h, :w], image)
        assert torch.equal(batch.label[i, :h, :w], label)
        outside = torch.ones(20, 30, dtype=torch.bool)
        outside[:h, :w] = False
        assert (batch.label[i][outside] == IGNORE_INDEX).all()
        assert (batch.image[i, :, outside] == 0).all()


def test_collate_keeps_equal_sizes(camvid: Path) -> None:
    data = CamVid(camvid, "val")
    batch = collate([data[0], data[1]])
    assert torch.equal(batch.image, torch.stack([data[0].image, data[1].image]))


def test_label_space_needs_no_files() -> None:
    nowhere = {"batch_size": 1, "crop_size": [4, 4], "root": "/nowhere"}
    assert SegmentationDataModule(CamVid, **nowhere).label_space is CAMVID
    assert SegmentationDataModule(partial(Cityscapes), **nowhere).label_space is CITYSCAPES
    assert SegmentationDataModule(partial(ImageFolder, label_space=CITYSCAPES), **nowhere).label_space is CITYSCAPES
    with pytest.raises(ProtosegError, match="with a label_space"):
        SegmentationDataModule(ImageFolder, **nowhere)


def test_missing_data_is_told_in_setup(tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match=r"does not exist.*data\.root"):
        module(tmp_path / "nowhere").setup("fit")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_file_is_named_in_one_message(camvid: Path, num_workers: int) -> None:
    bad = camvid / "val" / "0006R0_f00000.png"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(ProtosegError, match=rf"^image {bad}: expected a complete") as error:
        list(module(camvid, num_workers=num_workers).val_dataloader())
    assert "Traceback" not in str(error.value)


def test_class_frequencies_against_a_loop(camvid: Path) -> None:
    data = CamVid(camvid, "train")
    counts = [sum(int((data[i].label == c).sum()) for i in range(len(data))) for c in range(11)]
    found = module(camvid).class_frequencies()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([n / sum(counts) for n in counts], dtype=torch.float32))


def test_class_frequencies_of_void_masks(
    tmp_path: Path, write_mask: Callable[..., None], write_image: Callable[..., None]
) -> None:
    write_image(tmp_path / "train" / "a.png")
    write_mask(tmp_path / "trainannot" / "a.png")
    cv2.imwrite(str(tmp_path / "trainannot" / "a.png"), np.full((24, 32), 11, np.uint8))
    with pytest.raises(ProtosegError, match="expected labelled pixels, got 1 masks in which every pixel"):
        module(tmp_path).class_frequencies()


def test_workers_are_seeded_apart() -> None:
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    threads = cv2.getNumThreads()
    draws = set()
    for seed, rank, worker in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        seed_worker(worker, seed, rank)
        draws.add((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert [len({d[i] for d in draws}) for i in range(3)] == [4, 4, 4]
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    cv2.setNumThreads(threads)


# With Lightning


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_pass_is_the_whole_training(camvid: Path, tmp_path: Path, num_workers: int, accumulate: int) -> None:
    model = Recorder()
    run = trainer(tmp_path, max_steps=3, accumulate_grad_batches=accumulate)
    run.fit(model, module(camvid, num_workers=num_workers))
    assert run.global_step == 3
    assert len(model.seen) == 3 * accumulate
    assert run.current_epoch <= 1


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_exception"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_sees_the_batches_that_follow(camvid: Path, tmp_path: Path, hook: str, num_workers: int) -> None:
    options: dict[str, Any] = {"val_check_interval": 4, "limit_val_batches": 1.0, "check_val_every_n_epoch": None}
    whole = Recorder()
    trainer(tmp_path, **options).fit(whole, module(camvid, num_workers=num_workers))
    assert len(whole.seen) == 8

    path = tmp_path / "stop.ckpt"
    first = Recorder(fail_at=4 if hook == "on_exception" else None)
    stop = StopAndSave(4, path, hook)
    run = trainer(tmp_path, callbacks=[stop], **options)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):  # Lightning 2.6 exits, others return
        run.fit(first, module(camvid, num_workers=num_workers))
    assert torch.load(path, weights_only=True)["SegmentationDataModule"]["batches"] == 4

    second = Recorder()
    run = trainer(tmp_path, **options)
    run.fit(second, module(camvid, num_workers=num_workers), ckpt_path=str(path), weights_only=True)
    assert first.seen[:4] + second.seen == whole.seen
    assert run.global_step == 8
    assert torch.equal(second.weight, whole.weight)

    # Resuming twice still counts from the beginning.
    run.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["SegmentationDataModule"]["batches"] == 8


def test_ranks_and_workers_resumed_in_mid_epoch_repeat_no_sample_and_skip_none(
    camvid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks with two loader workers each, stopped after 5 of 7 batches of 2: four epochs of 7 images in all."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    def seen(start: int) -> list[list[str]]:
        names = []
        for rank in range(2):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            data = module(camvid, num_workers=2)
            data.load_state_dict({**data.state_dict(), "batches": start})
            names.append([name for batch in batches(data, 7) for name in batch.name])
        return names

    whole, rest = seen(0), seen(5)
    assert [rank[: 5 * 2] + more for rank, more in zip(whole, rest, strict=True)] == whole
    assert sorted(Counter(name for rank in whole for name in rank).values()) == [4] * 7


def test_resume_with_more_steps_goes_on_after_the_last_batch(camvid: Path, tmp_path: Path) -> None:
    whole = Recorder()
    trainer(tmp_path, max_steps=8).fit(whole, module(camvid))
    first, second = Recorder(), Recorder()
    run = trainer(tmp_path, max_steps=5)
    run.fit(first, module(camvid))
    run.save_checkpoint(tmp_path / "end.ckpt")
    trainer(tmp_path, max_steps=8).fit(second, module(camvid), ckpt_path=str(tmp_path / "end.ckpt"), weights_only=True)
    assert first.seen + second.seen == whole.seen


def test_resume_refuses_another_stream(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = module(camvid).state_dict()
    assert state["batches"] == 0
    for option, value in (("batch_size", 3), ("seed", 1)):
        with pytest.raises(ProtosegError, match=rf"expected {option}={state[option]}, .* got {option}={value}"):
            module(camvid, **{option: value}).load_state_dict(state)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ProtosegError, match="expected world_size=1, as in the checkpoint, got world_size=2"):
        module(camvid).load_state_dict(state)
    monkeypatch.undo()
    for path in [*(camvid / "train").glob("0001TP*"), *(camvid / "trainannot").glob("0001TP*")]:
        path.unlink()
    with pytest.raises(ProtosegError, match="expected num_samples=7, as in the checkpoint, got num_samples=4"):
        module(camvid).load_state_dict(state)


def test_validation_ignores_the_checkpoints_position(camvid: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2)
    run.fit(Recorder(), module(camvid))
    run.save_checkpoint(tmp_path / "a.ckpt")
    trainer(tmp_path, limit_val_batches=1.0).validate(
        Recorder(), module(camvid, batch_size=1), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True, verbose=False
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": -1, "max_epochs": 2}, "counted in steps.*got max_steps=-1"),
        ({"limit_train_batches": 3}, "expected no trainer.limit_train_batches, got 3"),
    ],
)
def test_training_is_counted_in_steps(camvid: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ProtosegError, match=message):
        trainer(tmp_path, **options).fit(Recorder(), module(camvid))


def test_fast_dev_run_and_overfit_batches(camvid: Path, tmp_path: Path) -> None:
    for options in ({"fast_dev_run": True}, {"overfit_batches": 2, "max_epochs": -1}):
        model = Recorder()
        trainer(tmp_path, **{"max_steps": 4, **options}).fit(model, module(camvid))
        assert len(model.seen) == (1 if "fast_dev_run" in options else 4)
    assert model.seen[:2] == model.seen[2:]  # overfitting: the same batches again


def test_lightning_may_not_replace_the_sampler(camvid: Path) -> None:
    data = module(camvid)
    batches(data)
    data.trainer._accelerator_connector.is_distributed = True  # type: ignore[union-attr]
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(ProtosegError, match=r"expected trainer\.use_distributed_sampler=false"):
            loader()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"val_batch_size": 0}, {"num_workers": -1}, {"seed": -1}])
def test_options_that_make_no_sense(camvid: Path, options: dict[str, int]) -> None:
    with pytest.raises(ProtosegError, match="expected batch_size and val_batch_size of at least 1"):
        module(camvid, **options)


def test_streets_default_root() -> None:
    data = SegmentationDataModule(partial(Streets, style="dusk"), batch_size=2, crop_size=[240, 320], num_workers=0)
    data.setup("validate")
    assert len(data.dataset("val")) == 60
    assert list(data._datasets) == [("val", True)]
