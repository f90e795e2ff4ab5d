"""The benchmark of reading: it times what training does, against a pipeline that gives the same kind of samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.data import DataSetting, data_steps, photo_like, plain_pipeline
from protoseg.data import TrainTransform
from protoseg.data.dataset import to_sample
from protoseg.data.files import read_image, read_label
from protoseg.data.label_spaces import read_ids

CAMVID_IDS = read_ids("camvid")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_steps_read_every_file_on_one_thread() -> None:
    steps = data_steps(DataSetting(128, 96, 48, 64, images=3), CPU)
    assert torch.get_num_threads() == 1
    assert list(steps) == [
        "Pillow + torchvision v2",
        "protoseg",
        "decoding alone",
        "protoseg, packed",
        "decoding alone, packed",
    ]
    results = {name: step() for name, step in steps.items()}
    assert all(len(result) == 3 for result in results.values())  # type: ignore[arg-type]
    plain, packed = (results[name] for name in ("decoding alone", "decoding alone, packed"))
    for (image, label), (packed_image, packed_label) in zip(plain, packed, strict=True):  # type: ignore[call-overload]
        assert image.shape == (96, 128, 3)
        assert (image == packed_image).all()
        assert (label == packed_label).all()
    assert all(tuple(sample.image.shape) == (3, 48, 64) for sample in results["protoseg"])  # type: ignore[attr-defined]


def test_the_plain_pipeline_gives_what_ours_gives(tmp_path: Path) -> None:
    """Crops of the same form and content: grey levels, classes, and ignored pixels where it was padded."""
    setting = DataSetting(128, 96, 90, 130, images=2)
    files = photo_like(setting, tmp_path)
    plain, ours = plain_pipeline(setting, CAMVID_IDS), TrainTransform((90, 130))
    for image, label in files:
        sample = to_sample(*ours(read_image(image), read_label(label, CAMVID_IDS), seed=0), "")
        photo, ids = plain(image, label)
        assert photo.shape == sample.image.shape == (3, 90, 130)
        assert ids.shape == sample.label.shape
        assert photo.dtype == sample.image.dtype == torch.uint8
        assert ids.dtype == sample.label.dtype == torch.int64
        assert set(ids.unique().tolist()) <= {*range(11), 255}
        assert ids.unique().numel() > 3
        assert image.stat().st_size > 0.7 * 128 * 96  # about as many bytes as a photo has pixels
