from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from protoseg import distributed
from protoseg.data import CamVid, SegmentationDataModule, Streets
from protoseg.data import statistics as module
from protoseg.data.label_spaces import mapping_table
from protoseg.data.statistics import class_statistics, count_pixels, image_sizes, rare_class_probability
from protoseg.types import LabelSpace, ProtosegError

GOLDEN = Path(__file__).parents[1] / "golden" / "rare_class_probability.json"


def test_probability_against_the_reference() -> None:
    golden = json.loads(GOLDEN.read_text())
    pixels = np.array([golden["pixel_counts"][str(c)] for c in range(19)])
    for case in golden["cases"]:
        expected = [case["probability"][str(c)] for c in range(19)]
        found = rare_class_probability(pixels, case["temperature"])
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
        assert found.sum() == pytest.approx(1, abs=1e-12)


def test_probability_of_absent_classes_is_0() -> None:
    pixels = np.array([0, 30, 70, 0])
    weights = [0, np.exp(0.7 / 0.1), np.exp(0.3 / 0.1), 0]
    np.testing.assert_allclose(rare_class_probability(pixels, 0.1), weights / np.sum(weights), rtol=1e-12)
    # exp(1 / T) alone would overflow.
    np.testing.assert_allclose(rare_class_probability(pixels, 1e-6), [0, 1, 0, 0], rtol=0, atol=1e-12)
    with pytest.raises(ProtosegError, match="expected labelled pixels, got none"):
        rare_class_probability(np.zeros(3, np.int64), 0.01)


def test_counts_against_a_loop(camvid: Path) -> None:
    data = CamVid(camvid, "train")
    expected = [[int((data[i].label == c).sum()) for c in range(11)] for i in range(len(data))]
    counts = count_pixels(data)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected


def test_a_bad_mask_is_named(camvid: Path) -> None:
    bad = camvid / "trainannot" / "0001TP_000003.png"
    cv2.imwrite(str(bad), np.full((24, 32), 77, np.uint8))
    with pytest.raises(ProtosegError, match=rf"{bad}: expected class ids"):
        class_statistics(CamVid(camvid, "train"))


def test_the_file_is_made_once_and_read(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CamVid(camvid, "train")
    first = class_statistics(data)
    assert first.path is not None
    assert first.path.parent == camvid
    assert first.path.name.startswith("protoseg_statistics_train_camvid_")
    assert first.names[0] == "train/0001TP_000001.jpg"
    monkeypatch.setattr(module, "count_pixels", lambda *_: pytest.fail("counted again"))
    again = class_statistics(CamVid(camvid, "train"))
    assert again.path == first.path
    assert (again.names, again.classes) == (first.names, first.classes)
    assert np.array_equal(again.counts, first.counts)
    assert len(CamVid(camvid, "train")) == 7  # the file is no image or mask


def test_every_choice_of_images_and_classes_has_its_file(camvid: Path) -> None:
    dusk, all_drives = CamVid(camvid, "train", ["0001TP"]), CamVid(camvid, "train")
    mapped = CamVid(camvid, "train")
    two = LabelSpace("two", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    other = dict.fromkeys(mapped.label_space.classes, "a") | {"Sky": "b", "Tree": None}
    mapped.map_classes(two, mapping_table(mapped.label_space, two, other))
    found = [class_statistics(data) for data in (dusk, all_drives, CamVid(camvid, "val"), mapped)]
    assert len({statistics.path for statistics in found}) == 4
    assert len(found[0].names) == 3
    counts = found[1].counts
    assert found[3].classes == ("a", "b")
    assert found[3].counts[:, 1].tolist() == counts[:, 0].tolist()
    assert found[3].counts[:, 0].tolist() == (counts.sum(axis=1) - counts[:, 0] - counts[:, 5]).tolist()


def test_another_mapping_to_the_same_classes_has_its_file(camvid: Path) -> None:
    plain, mapped = CamVid(camvid, "train"), CamVid(camvid, "train")
    without_sky = {name: name for name in plain.label_space.classes} | {"Sky": None}
    mapped.map_classes(plain.label_space, mapping_table(plain.label_space, plain.label_space, without_sky))
    assert class_statistics(plain).pixels[0] > 0
    assert class_statistics(mapped).pixels[0] == 0


@pytest.mark.parametrize("damage", ["cut", "names", "classes", "count", "shape"])
def test_a_file_that_does_not_fit_is_made_anew(camvid: Path, damage: str) -> None:
    first = class_statistics(CamVid(camvid, "train"))
    assert first.path is not None
    text = first.path.read_text()
    content = json.loads(text)
    if damage == "names":
        content["pixels"][0][0] = "train/else.png"
    elif damage == "classes":
        content["classes"][0] = "Heaven"
    elif damage == "count":
        del content["pixels"][0]
    elif damage == "shape":
        content["pixels"][0][-1].append(3)
    first.path.write_text(text[:200] if damage == "cut" else json.dumps(content))
    again = class_statistics(CamVid(camvid, "train"))
    assert np.array_equal(again.counts, first.counts)
    assert first.path.read_text() == text


def test_another_image_is_counted(camvid: Path) -> None:
    first = class_statistics(CamVid(camvid, "train"))
    for path in (camvid / "train" / "0001TP_000001.jpg", camvid / "trainannot" / "0001TP_000001.png"):
        path.unlink()
    assert len(class_statistics(CamVid(camvid, "train")).names) == len(first.names) - 1


def test_masks_of_another_folder_are_counted(camvid: Path) -> None:
    """Also where they have the size and the time of the first."""
    first, files = CamVid(camvid, "train"), []
    class_statistics(first)
    for image, mask in first.samples:
        assert mask is not None
        other = camvid / "fine" / mask.name
        other.parent.mkdir(exist_ok=True)
        shutil.copy2(mask, other)
        files.append((image, other))
    second = CamVid(camvid, "train")
    second.samples = files
    assert class_statistics(second).path != class_statistics(first).path


def test_a_changed_mask_is_counted_anew_and_no_other(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CamVid(camvid, "train")
    before = class_statistics(data).counts
    mask = data.samples[2][1]
    assert mask is not None
    stamp = mask.stat()
    os.utime(mask, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1000))
    read: list[int] = []
    monkeypatch.setattr(CamVid, "read_label", _noting(CamVid.read_label, read))
    assert np.array_equal(class_statistics(CamVid(camvid, "train")).counts, before)
    assert read == [2]
    cv2.imwrite(str(mask), np.full((24, 32), 5, np.uint8))
    after = class_statistics(CamVid(camvid, "train")).counts
    assert read == [2, 2]
    assert after[2].tolist() == [24 * 32 if c == 5 else 0 for c in range(11)]
    assert np.array_equal(np.delete(after, 2, 0), np.delete(before, 2, 0))


def test_read_only_data_use_the_cache(camvid: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = module.write_text

    def refuse(path: Path, text: str) -> None:
        if camvid in path.parents:
            raise ProtosegError("read-only")
        write_text(path, text)

    monkeypatch.setattr(module, "write_text", refuse)
    data = CamVid(camvid, "train")
    first = class_statistics(data)
    assert first.path is not None
    assert first.path.parent == cache / "protoseg"
    # The same names in another folder are other images.
    shutil.copytree(camvid, camvid / "copy", ignore=shutil.ignore_patterns("copy"))
    assert class_statistics(CamVid(camvid / "copy", "train")).path != first.path
    monkeypatch.setattr(module, "count_pixels", lambda *_: pytest.fail("counted again"))
    assert np.array_equal(class_statistics(data).counts, first.counts)


def test_nowhere_to_write_is_a_warning(camvid: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise ProtosegError("disk full")

    monkeypatch.setattr(module, "write_text", refuse)
    with pytest.warns(UserWarning, match="will be counted again: disk full"):
        found = class_statistics(CamVid(camvid, "train"))
    assert found.path is None
    assert found.counts.sum() > 0


def test_built_in_data_use_the_cache(cache: Path) -> None:
    path = class_statistics(Streets(split="val")).path
    assert path is not None
    assert path.parent == cache / "protoseg"


def test_only_the_first_rank_shows_progress(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(module, "_PROGRESS_BAR_FROM", 1)
    monkeypatch.setattr(module, "track", lambda rows, *_, disable, **__: shown.append(not disable) or rows)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        count_pixels(CamVid(camvid, "train"))
    assert shown == [True, False]


def test_frequencies_come_from_the_file(camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = SegmentationDataModule(CamVid, batch_size=1, crop_size=[8, 8], root=str(camvid))
    found = data.class_frequencies()
    assert f"the counts are kept in {camvid}" in capsys.readouterr().err
    (path,) = camvid.glob("protoseg_statistics_*.json")
    content = json.loads(path.read_text())
    content["pixels"] = [[*key, [1] + [0] * 10] for *key, _ in content["pixels"]]
    path.write_text(json.dumps(content))
    assert found[0] < 0.5
    assert data.class_frequencies()[0] == 1


def test_a_folder_made_read_only_stays_as_it_is(camvid: Path, cache: Path) -> None:
    """Also for root, whom the mode would not stop."""
    before = sorted(camvid.iterdir())
    camvid.chmod(0o555)
    try:
        statistics = class_statistics(CamVid(camvid, "train"))
    finally:
        camvid.chmod(0o755)
    assert sorted(camvid.iterdir()) == before
    assert statistics.path is not None
    assert statistics.path.parent == cache / "protoseg"


def test_a_count_that_was_stopped_goes_on(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_pixels(CamVid(camvid, "train"))
    monkeypatch.setattr(module, "_KEEP_EVERY", 0)
    bad = camvid / "trainannot" / "0006R0_f00004.png"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    with pytest.raises(ProtosegError, match="0006R0_f00004"):
        class_statistics(CamVid(camvid, "train"))
    (file,) = camvid.glob("protoseg_statistics_*.json")
    kept = len(json.loads(file.read_text())["pixels"])
    assert 0 < kept < 7
    bad.write_bytes(good)
    read = []
    monkeypatch.setattr(CamVid, "read_label", _noting(CamVid.read_label, read))
    found = class_statistics(CamVid(camvid, "train"))
    assert sorted(read) == list(range(kept, 7))
    assert np.array_equal(found.counts, whole)
    assert found.path == file
    assert len(json.loads(file.read_text())["pixels"]) == 7


def _noting(read: Callable[..., Any], noted: list[int]) -> Callable[..., Any]:
    return lambda self, index: noted.append(index) or read(self, index)


def test_sizes(camvid: Path) -> None:
    cv2.imwrite(str(camvid / "train" / "0006R0_f00000.png"), np.zeros((5, 9, 3), np.uint8))
    assert image_sizes(CamVid(camvid, "train")) == {(32, 24): 6, (9, 5): 1}
