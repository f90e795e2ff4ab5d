# ruff: noqa: NPY002  the global generator is what these tests are about
from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from protoseg.data.label_spaces import FILE_IGNORED
from protoseg.data.transforms import PAD_IMAGE, A, TrainTransform, largest_class_share, scaled_part
from protoseg.run.build import instances
from protoseg.run.config import CONFIG_DIR
from protoseg.types import ProtosegError

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
LABEL = np.random.default_rng(1).integers(0, 11, (60, 80), dtype=np.uint8)


def encoded() -> tuple[np.ndarray, np.ndarray]:
    """Image and label that say of every pixel where it came from (blocks of 10, so that scaling keeps them)."""
    label = np.arange(48, dtype=np.uint8).reshape(6, 8).repeat(10, 0).repeat(10, 1)
    return np.stack([label * 5] * 3, axis=-1), label


def test_depends_on_the_seed_alone() -> None:
    transform = TrainTransform((32, 48), max_class_share=0.75)
    first = [transform(IMAGE, LABEL, seed) for seed in range(20)]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    other = TrainTransform((32, 48), max_class_share=0.75)
    for seed in reversed(range(20)):
        image, label = other(IMAGE, LABEL, seed)
        assert np.array_equal(image, first[seed][0])
        assert np.array_equal(label, first[seed][1])
    assert len({image.tobytes() for image, _ in first}) == 20


def test_leaves_the_global_generators_and_the_input_alone() -> None:
    image, label = IMAGE.copy(), LABEL.copy()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for seed in range(5):
        TrainTransform((32, 48), max_class_share=0.5)(image, label, seed)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(label, LABEL)


def test_image_and_label_stay_together() -> None:
    image, label = encoded()
    transform = TrainTransform((40, 40), photometric=False)
    for seed in range(30):
        out, ids = transform(image, label, seed)
        inside = ids != FILE_IGNORED
        # Interpolation mixes neighbouring blocks at their borders only.
        assert (np.abs(out[..., 0][inside].astype(int) - ids[inside] * 5) <= 2).mean() > 0.6
        assert (out[~inside] == PAD_IMAGE).all()


def test_crop_larger_than_the_image_is_padded_with_ignore() -> None:
    image, label = TrainTransform((100, 120), scale=(1, 1), photometric=False)(IMAGE, LABEL, 3)
    assert image.shape == (100, 120, 3)
    assert label.shape == (100, 120)
    inside = label != FILE_IGNORED
    assert inside.sum() == LABEL.size
    assert np.array_equal(np.sort(label[inside]), np.sort(LABEL.ravel()))
    assert (image[~inside] == PAD_IMAGE).all()


def test_scale_range() -> None:
    image, label = encoded()
    small = TrainTransform((60, 80), scale=(0.5, 0.5), photometric=False)(image, label, 0)[1]
    assert (small != FILE_IGNORED).sum() == 30 * 40
    sizes = {
        int((TrainTransform((60, 80), scale=(0.5, 1), photometric=False)(image, label, s)[1] != FILE_IGNORED).sum())
        for s in range(20)
    }
    assert len(sizes) > 10
    assert min(sizes) >= 30 * 40
    assert max(sizes) <= 60 * 80


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(x / 7 + c) + 60 * np.cos(y / 5 - c) for c in range(3)]
    return np.stack(waves, -1).round().astype(np.uint8)


@pytest.mark.parametrize("crop_size", [(40, 50), (150, 40), (200, 200)])
@pytest.mark.parametrize("max_class_share", [None, 0.6])
def test_scaling_the_crop_alone_is_scaling_then_cropping(
    crop_size: tuple[int, int], max_class_share: float | None
) -> None:
    """The steps of albumentations one after the other, with the same draws."""
    image, label = smooth(97, 131), np.random.default_rng(0).integers(0, 11, (97, 131), dtype=np.uint8)
    label[:, 60:] = 3
    crop = A.RandomCrop(*crop_size, pad_if_needed=True, pad_position="random", fill=PAD_IMAGE, fill_mask=FILE_IGNORED)
    plain = A.Compose([A.RandomScale((-0.5, 1.0), cv2.INTER_LINEAR, p=1), crop, A.HorizontalFlip(p=0.5)])
    ours = TrainTransform(crop_size, photometric=False, max_class_share=max_class_share)
    compared = 0
    for seed in range(30):
        plain.set_random_state(np.random.default_rng(seed), random.Random(seed))
        wanted = plain(image=image, mask=label)
        if max_class_share is not None and largest_class_share(wanted["mask"]) > max_class_share:
            continue
        out, ids = ours(image, label, seed)
        assert np.array_equal(ids, wanted["mask"])
        difference = np.abs(out.astype(int) - wanted["image"])
        assert difference.max() <= 2
        assert difference.mean() < 0.3
        compared += 1
    assert compared == 30 if max_class_share is None else compared > 10


@pytest.mark.parametrize("factor", [0.5, 0.67, 1.0, 1.37, 2.0])
def test_scaled_part_is_a_slice_of_the_scaled_image(factor: float) -> None:
    image = smooth(97, 131)
    height, width = int(97 * factor), int(131 * factor)
    whole = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(int)
    for left, top, right, bottom in ((0, 0, width, height), (5, 7, 40, 30), (width - 9, height - 5, width, height)):
        part = scaled_part(image, (height, width), (left, top, right, bottom))
        assert part.flags.c_contiguous
        assert np.abs(part - whole[top:bottom, left:right]).max() <= 2


def test_flip_happens_half_the_time_and_goes_with_nothing_else() -> None:
    transform = TrainTransform((60, 80), scale=(1, 1))
    flipped = np.array([np.array_equal(transform(IMAGE, LABEL, s)[1], LABEL[:, ::-1]) for s in range(300)])
    brightness = np.array([transform(IMAGE, LABEL, s)[0].mean() for s in range(300)])
    assert 0.4 < flipped.mean() < 0.6
    assert abs(np.corrcoef(flipped, brightness)[0, 1]) < 0.2


def test_photometric_changes_colours_only() -> None:
    transform = TrainTransform((60, 80), scale=(1, 1))
    changed = 0
    for seed in range(20):
        image, label = transform(IMAGE, LABEL, seed)
        assert np.array_equal(label, LABEL) or np.array_equal(label, LABEL[:, ::-1])
        changed += not (np.array_equal(image, IMAGE) or np.array_equal(image, IMAGE[:, ::-1]))
    assert changed > 15


def test_released_brightness_alone_and_aspect() -> None:
    """ProtoSeg's: one shift of at most 10 for all channels; width by height times 0.9 to 1.1 at the same area."""
    image, label = np.full((40, 60, 3), 100, np.uint8), np.zeros((40, 60), np.uint8)
    shift = TrainTransform((40, 60), (1, 1), photometric=False, brightness=10)
    shifts = {tuple(np.unique(shift(image, label, seed)[0]).tolist()) for seed in range(60)}
    assert all(len(values) == 1 and abs(values[0] - 100) <= 10 for values in shifts)
    assert len(shifts) > 10
    stretched = TrainTransform((200, 300), (1, 1), photometric=False, aspect=(0.81, 0.81))
    out = stretched(image, label, 0)[1] == 0
    rows, columns = int(out.any(1).sum()), int(out.any(0).sum())
    assert (rows, columns) == (int(40 / 0.9), int(60 * 0.9))


def test_largest_class_share_against_a_loop() -> None:
    label = LABEL.copy()
    label[:20] = FILE_IGNORED
    counts = [int((label == c).sum()) for c in range(11)]
    assert largest_class_share(label) == pytest.approx(max(counts) / sum(counts))
    assert largest_class_share(np.full((4, 4), FILE_IGNORED, np.uint8)) == 1


def test_balanced_crop_draws_again() -> None:
    label = np.zeros((200, 200), np.uint8)
    label[:, 100:110] = 1  # a random 20-wide crop mostly holds class 0 alone
    image = np.repeat(label[..., None], 3, axis=2)
    share = {}
    for limit in (None, 0.75):
        transform = TrainTransform((20, 20), scale=(1, 1), max_class_share=limit)
        share[limit] = np.mean([largest_class_share(transform(image, label, s)[1]) <= 0.75 for s in range(60)])
    assert share[None] < 0.3 < 0.5 < share[0.75]
    # No crop can fulfil the limit: the last one stands.
    assert (TrainTransform((20, 20), (1, 1), max_class_share=0.75)(image * 0, label * 0, 0)[1] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": [0, 4]}, "crop_size: expected"),
        ({"crop_size": [4]}, "crop_size: expected"),
        ({"crop_size": [4, 4], "scale": [2.0, 0.5]}, "scale: expected"),
        ({"crop_size": [4, 4], "scale": [0.0, 0.5]}, "scale: expected"),
        ({"crop_size": [4, 4], "max_class_share": 75}, "max_class_share: expected"),
    ],
)
def test_options_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ProtosegError, match=message):
        TrainTransform(**options)


class Wrong(A.DualTransform):
    """What a stranger may write: a mask of floats, or another size."""

    def __init__(self, smaller: bool) -> None:
        super().__init__(p=1.0)
        self.smaller = smaller

    def apply(self, img: np.ndarray, **_: object) -> np.ndarray:
        return img[1:] if self.smaller else img

    def apply_to_mask(self, mask: np.ndarray, **_: object) -> np.ndarray:
        return mask[1:] if self.smaller else mask.astype(np.float32)


def steps_of(name: str) -> list[A.BasicTransform]:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return instances(compose("train", [f"augment={name}"]).augment)


@pytest.mark.parametrize("name", ["aerial", "medical"])
def test_shipped_augmentations_keep_image_and_label_together(name: str) -> None:
    image, label = encoded()
    transform, plain = (TrainTransform((60, 60), (1, 1), False, augment=steps) for steps in (steps_of(name), ()))
    other = TrainTransform((60, 60), (1, 1), False, augment=steps_of(name))
    for seed in range(10):
        out, ids = transform(image, label, seed)
        assert out.dtype == ids.dtype == np.uint8
        assert set(ids.ravel().tolist()) <= set(plain(image, label, seed)[1].ravel().tolist())  # no class in between
        assert (np.abs(out[..., 0].astype(int) - ids * 5) <= 2).mean() > 0.6
        again = other(image, label, seed)
        assert np.array_equal(out, again[0])
        assert np.array_equal(ids, again[1])
        assert torch.from_numpy(out).shape == (60, 60, 3)  # no negative strides
    assert len({transform(image, label, seed)[1].tobytes() for seed in range(10)}) > 5


def test_what_an_own_transform_fills_is_ignored_also_inside_another() -> None:
    image, label = encoded()
    turned = A.OneOf([A.Rotate((45, 45), mask_interpolation=cv2.INTER_LINEAR, fill_mask=3, p=1.0)], p=1.0)
    for wide in (np.uint8, np.uint16):
        out, ids = TrainTransform((60, 60), (1, 1), False, augment=[turned])(image, label.astype(wide), 0)
        ignored = np.iinfo(wide).max
        assert (ids[[0, 0, -1, -1], [0, -1, 0, -1]] == ignored).all()
        assert (ids == ignored).mean() == pytest.approx(3 - 2 * 2**0.5, abs=0.02)  # outside an octagon
        assert set(ids.ravel().tolist()) <= {*range(48), ignored}
        assert (out[ids == ignored] <= 240).all()
    erased = TrainTransform((60, 60), (1, 1), False, augment=[A.CoarseDropout(p=1.0)])(image, label, 0)[1]
    assert (erased != FILE_IGNORED).all()  # by its own default, it leaves the mask as it is


def test_own_transforms_that_change_size_or_type_are_refused() -> None:
    form = r"^augment: expected image and mask of \(40, 60\), uint8 and uint8, got .*; drop what changes size or type"
    for step in (Wrong(True), Wrong(False), A.D4(p=1.0)):
        transform = TrainTransform((40, 60), augment=[step])
        with pytest.raises(ProtosegError, match=form):
            [transform(IMAGE, LABEL, seed) for seed in range(10)]


def test_own_transforms_change_no_draw_of_the_others() -> None:
    mirrored = TrainTransform((32, 48), augment=[A.VerticalFlip(p=1.0)])
    for seed in range(5):
        out, plain = mirrored(IMAGE, LABEL, seed), TrainTransform((32, 48))(IMAGE, LABEL, seed)
        assert np.array_equal(out[0][::-1], plain[0])
        assert np.array_equal(out[1][::-1], plain[1])
