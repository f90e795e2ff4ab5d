from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from protoseg.evaluation import metrics
from protoseg.evaluation.evaluate import _percent_rows, summary
from protoseg.evaluation.metrics import SegmentationMetrics, scores, subset_means
from protoseg.types import LabelSpace, ProtosegError


def space(num_classes: int) -> LabelSpace:
    return LabelSpace("toy", tuple("abcdefghij"[:num_classes]), tuple((i, i, i) for i in range(num_classes)))


def random_maps(seed: int, num_classes: int = 5, shape: tuple[int, ...] = (4, 9, 7)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randint(num_classes, shape, generator=generator)
    label = torch.randint(num_classes, shape, generator=generator)
    label[torch.rand(shape, generator=generator) < 0.2] = -1
    return pred, label


def naive_confusion(pred: Tensor, label: Tensor, num_classes: int) -> Tensor:
    out = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for p, t in zip(pred.flatten().tolist(), label.flatten().tolist(), strict=True):
        if t != -1:
            out[t, p] += 1
    return out


def test_confusion_matches_naive_loop() -> None:
    pred, label = random_maps(0)
    got = metrics.confusion_matrix(pred, label, 5)
    assert got.dtype == torch.int64
    assert torch.equal(got, naive_confusion(pred, label, 5))


def test_rows_are_truth() -> None:
    assert metrics.confusion_matrix(torch.tensor([1]), torch.tensor([0]), 2).tolist() == [[0, 1], [0, 0]]


def test_numbers_by_hand() -> None:
    # truth: 4 pixels of a, 3 of b, 1 of c; class d occurs nowhere.
    confusion = torch.tensor([[3, 1, 0, 0], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    got = metrics.scores(confusion)
    assert got["IoU"][:3].tolist() == pytest.approx([3 / 6, 2 / 4, 0.0])
    assert got["IoU"][3].isnan()
    assert got["accuracy"][:3].tolist() == pytest.approx([3 / 4, 2 / 3, 0.0])
    assert got["accuracy"][3].isnan()
    assert got["mIoU"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert got["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)
    assert got["pixel_accuracy"] == pytest.approx(5 / 8)
    assert got["fw_IoU"] == pytest.approx(4 / 8 * 1 / 2 + 3 / 8 * 1 / 2)


def test_scores_match_naive_sets() -> None:
    pred, label = random_maps(1)
    counted = label != -1
    iou = []
    for c in range(5):
        p, t = (pred == c) & counted, (label == c) & counted
        iou.append((p & t).sum().item() / (p | t).sum().item())
    metric = SegmentationMetrics(space(5))
    metric.update(pred, label)
    got = metric.compute()
    assert got["IoU"].tolist() == pytest.approx(iou)
    assert got["mIoU"] == pytest.approx(sum(iou) / 5)
    assert got["pixel_accuracy"] == pytest.approx((pred == label).sum().item() / counted.sum().item())


def test_absent_class_is_nan_and_left_out() -> None:
    metric = SegmentationMetrics(space(3))
    metric.update(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]))
    got = metric.compute()
    assert got["IoU"][2].isnan()
    assert got["mIoU"] == 1.0
    assert got["mean_accuracy"] == 1.0


def test_class_predicted_but_never_true_counts_as_zero() -> None:
    metric = SegmentationMetrics(space(3))
    metric.update(torch.tensor([0, 0, 2]), torch.tensor([0, 0, 0]))
    got = metric.compute()
    assert got["IoU"][2] == 0.0
    assert got["accuracy"][2].isnan()
    assert got["mIoU"] == pytest.approx((2 / 3 + 0) / 2)
    assert got["mean_accuracy"] == pytest.approx(2 / 3)


def test_predictions_on_ignored_pixels_count_nowhere() -> None:
    metric = SegmentationMetrics(space(2))
    metric.update(torch.tensor([0, 1, 7]), torch.tensor([0, -1, -1]))
    assert metric.compute()["confusion"].tolist() == [[1, 0], [0, 0]]


def test_all_ignored_is_nan_without_a_crash() -> None:
    metric = SegmentationMetrics(space(3))
    metric.update(torch.zeros(2, 4, 4, dtype=torch.int64), torch.full((2, 4, 4), -1))
    got = metric.compute()
    assert all(math.isnan(got[key]) for key in ("mIoU", "mean_accuracy", "pixel_accuracy", "fw_IoU"))


def test_batches_and_reset() -> None:
    pred, label = random_maps(2)
    whole, parts = SegmentationMetrics(space(5)), SegmentationMetrics(space(5))
    whole.update(pred, label)
    for i in range(len(pred)):
        parts.update(pred[i], label[i])
    assert torch.equal(whole.compute()["confusion"], parts.compute()["confusion"])
    parts.reset()
    assert parts.confusion.sum() == 0


def test_mean_over_a_subset() -> None:
    pred, label = random_maps(3)
    full = metrics.scores(metrics.confusion_matrix(pred, label, 5))
    found = metrics.subset_means(full["IoU"], space(5), {"two": ["d", "a"]})
    assert found == {"mIoU_two": pytest.approx(full["IoU"][[0, 3]].mean().item())}
    assert found["mIoU_two"] != full["mIoU"]


@pytest.mark.parametrize("classes", [["a", "tram"], []])
def test_wrong_subset(classes: list[str]) -> None:
    with pytest.raises(ProtosegError, match=r"expected classes of the label space 'toy'.*got.*(tram|empty)"):
        metrics.subset_means(torch.ones(3), space(3), {"some": classes})


@pytest.mark.parametrize(
    ("pred", "label", "found"),
    [(0, 3, r"labels \[3\] and predictions \[\]"), (3, 0, r"labels \[\] and predictions \[3\]"), (0, -2, r"\[-2\]")],
)
def test_ids_outside_the_classes(pred: int, label: int, found: str) -> None:
    metric = SegmentationMetrics(space(3))
    with pytest.raises(ProtosegError, match=f"expected ids 0 to 2.*{found}"):
        metric.update(torch.tensor([0, pred]), torch.tensor([0, label]))


def test_shapes_that_differ() -> None:
    with pytest.raises(ProtosegError, match=r"one shape, got \(2, 3\) and \(3, 2\)"):
        SegmentationMetrics(space(3)).update(torch.zeros(2, 3).long(), torch.zeros(3, 2).long())


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metric = SegmentationMetrics(space(5))
    pred, label = random_maps(4)
    # Unequal shares, as when the number of images is odd.
    mine = slice(0, 3) if rank == 0 else slice(3, 4)
    metric.update(pred[mine], label[mine])
    got = metric.compute()
    torch.save((got["confusion"], got["mIoU"]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    one = SegmentationMetrics(space(5))
    one.update(*random_maps(4))
    want = one.compute()
    for rank in range(2):
        confusion, miou = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(confusion, want["confusion"])
        assert miou == want["mIoU"]


def test_a_group_of_which_the_data_label_nothing_has_no_iou() -> None:
    """Classes 0 and 1 are in group 3, class 2 is at the top; of the first two the data can hold no pixel."""
    tree = LabelSpace("tree", ("a", "b", "c", "group"), ((0, 0, 0),) * 4, parents=(3, 3, -1, -1))
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    confusion[2, 2], confusion[2, 0] = 99, 1
    found = scores(confusion, [0, 1], tree.parents)
    assert found["IoU"].isnan().tolist() == [True, True, False, True]
    assert subset_means(found["IoU"], tree, {})["mIoU_level_1"] == found["mIoU"] == pytest.approx(0.99)
    assert scores(confusion, [0], tree.parents)["IoU"][3] == 0  # it can be labelled b
    confusion[3, 0] = 5  # labelled as the group
    found = scores(confusion, [0, 1], tree.parents)
    assert found["IoU"][3] == pytest.approx(5 / 6)
    assert [row["true_pixels"] for row in summary(found, tree)["classes"]] == [0, 0, 100, 5]
    confusion[1, 0] = 7
    found = scores(confusion, [], tree.parents)
    assert [row["true_pixels"] for row in summary(found, tree)["classes"]] == [0, 7, 100, 12]
    rows = _percent_rows(summary(found, tree) | {"classes_in_means": [], "classes_not_labelled": []})
    assert [row[3] for row in rows[:4]] == ["0.00", "6.25", "89.29", "10.71"]  # of 112 pixels
