"""Exported files are what the servers want: their own code reads them, and counts what we count."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from protoseg.data import CITYSCAPES, Cityscapes
from protoseg.data.export import export_predictions, wanted_ids
from protoseg.evaluation.metrics import SegmentationMetrics
from protoseg.types import ProtosegError


def write(path: Path, ids: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """Cityscapes' val, three images of two cities in the official layout, and label PNGs as evaluate.py writes them.

    Truth: all void ids occur, "train" does not. Prediction: mostly right; "bus" is predicted but never true, "train"
    neither.
    """
    random = np.random.default_rng(0)
    true_ids = [i for i in range(34) if i not in (28, 31)]
    for name in ("lindau_000000_000019", "lindau_000001_000019", "munster_000000_000019"):
        city = name.split("_")[0]
        ids = np.kron(random.choice(true_ids, (8, 10)), np.ones((6, 6))).astype(np.uint8)
        image = tmp_path / "leftImg8bit/val" / city / f"{name}_leftImg8bit.png"
        write(image, np.zeros((48, 60, 3)))
        write(tmp_path / "gtFine/val" / city / f"{name}_gtFine_labelIds.png", ids)
        right = Cityscapes.id_table[ids]
        guess = random.choice([i for i in range(19) if i != 16], ids.shape)
        prediction = np.where((random.random(ids.shape) < 0.7) & (right < 19), right, guess)
        write(tmp_path / "labels" / city / f"{name}_leftImg8bit.png", prediction)
    return tmp_path


def our_scores(root: Path) -> tuple[dict, torch.Tensor, torch.Tensor]:
    metrics = SegmentationMetrics(CITYSCAPES)
    data = Cityscapes(root, "val")
    labels, predictions = [], []
    for _, label, name in data:
        path = root / "labels" / Path(name).parent.name / Path(name).name
        predictions.append(torch.from_numpy(np.array(Image.open(path)).astype(np.int64)))
        labels.append(label)
        metrics.update(predictions[-1], label)
    return metrics.compute(), torch.stack(predictions), torch.stack(labels)  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore")
def test_the_numbers_of_cityscapes_own_evaluation(predicted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    official = pytest.importorskip(scripts, reason="pip install cityscapesscripts")
    export_predictions(predicted / "labels", predicted / "submission", "cityscapes")
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(predicted / "submission"))
    args = official.args
    for name, value in {"quiet": True, "JSONOutput": False, "evalInstLevelScore": False}.items():
        monkeypatch.setattr(args, name, value)
    for name in ("predictionPath", "predictionWalk"):
        monkeypatch.setattr(args, name, None)
    truths = [str(mask) for _, mask in Cityscapes(predicted, "val").samples]
    wanted = official.evaluateImgLists([official.getPrediction(args, truth) for truth in truths], truths, args)
    found, _, _ = our_scores(predicted)
    assert found["mIoU"] == pytest.approx(wanted["averageScoreClasses"], abs=1e-9)
    assert 0.3 < found["mIoU"] < 0.9
    for name, iou in zip(CITYSCAPES.classes, found["IoU"].tolist(), strict=True):
        assert iou == pytest.approx(wanted["classScores"][name], abs=1e-9, nan_ok=True), name
    assert math.isnan(found["IoU"][CITYSCAPES.classes.index("train")])
    assert found["IoU"][CITYSCAPES.classes.index("bus")] == 0


def test_the_numbers_of_torchmetrics_jaccard_index(predicted: Path) -> None:
    found, predictions, labels = our_scores(predicted)
    jaccard = MulticlassJaccardIndex(19, average="none", ignore_index=-1, validate_args=False)
    theirs = jaccard(predictions, labels).double()
    defined = ~found["IoU"].isnan()
    assert int(defined.sum()) == 18
    # torchmetrics computes in fp32.
    torch.testing.assert_close(found["IoU"][defined], theirs[defined], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "stem", "wanted", "ids"),
    [
        ("cityscapes", "ulm_000000_000019_leftImg8bit", "ulm_000000_000019_pred_labelIds", {0: 7, 5: 17, 18: 33}),
        ("acdc", "GOPR0475_frame_000001_rgb_anon", "GOPR0475_frame_000001_rgb_anon", {0: 0, 18: 18}),
        ("dark_zurich", "GP010364_frame_000001_rgb_anon", "GP010364_frame_000001_rgb_anon", {0: 0, 18: 18}),
        ("ade20k", "ADE_test_00000001", "ADE_test_00000001", {0: 1, 149: 150}),
        # labels.txt: 1 person, 90 toothbrush, 92 banner, 182 wood
        ("coco_stuff", "000000000139", "000000000139", {0: 1, 79: 90, 80: 92, 170: 182}),
    ],
)
def test_names_and_ids(name: str, stem: str, wanted: str, ids: dict[int, int], tmp_path: Path) -> None:
    write(tmp_path / "labels" / "sub" / f"{stem}.png", np.array([[*ids]]))
    (path,) = export_predictions(tmp_path / "labels", tmp_path / "out", name)
    assert path == tmp_path / "out" / f"{wanted}.png"
    with Image.open(path) as picture:
        assert picture.mode == "L"
        assert np.asarray(picture).tolist() == [[*ids.values()]]
    assert len(set(wanted_ids(name).tolist())) == len(wanted_ids(name)) > max(ids)


def wrong_name(labels: Path) -> None:
    write(labels / "photo.png", np.zeros((2, 2)))


def other_classes(labels: Path) -> None:
    write(labels / "ulm_0_0_leftImg8bit.png", np.full((2, 2), 19))


def void(labels: Path) -> None:
    write(labels / "ulm_0_0_leftImg8bit.png", np.full((2, 2), 255))


def twice(labels: Path) -> None:
    for folder in ("a", "b"):
        write(labels / folder / "ulm_0_0_leftImg8bit.png", np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda labels: labels.mkdir(), "expected a folder with label PNGs, got .*has none"),
        (lambda labels: None, "expected a folder with label PNGs, got"),
        (wrong_name, "expected names as cityscapes's images have them, e.g. berlin_.*, got .*photo.png"),
        (other_classes, "expected class ids 0 to 18, got 19"),
        (void, "expected class ids 0 to 18, got 255"),
        (twice, "expected one file per name, got"),
    ],
)
def test_wrong_labels(plant: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    plant(tmp_path / "labels")
    with pytest.raises(ProtosegError, match=message):
        export_predictions(tmp_path / "labels", tmp_path / "out", "cityscapes")
    assert not list(tmp_path.glob("out/*"))
