"""Hierarchies of classes from YAML to the report: terms, prototypes of groups, prediction, metrics."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

import protoseg
from protoseg.data import CAMVID, CamVid, ConcatDataModule, SegmentationDataModule
from protoseg.data.class_file import in_tree
from protoseg.evaluation.metrics import SegmentationMetrics, confusion_matrix, scores, subset_means
from protoseg.functional import contrast as formulas
from protoseg.functional.resize import upsample_logits
from protoseg.losses import CrossEntropy, Seen, Step
from protoseg.losses.contrast import TreeTriplet
from protoseg.models.segmentor import Segmentor
from protoseg.nn import PrototypeHead
from protoseg.run.build import build_module
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from protoseg.teach.edit import editable_memories
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError, SegOutput
from tests.conftest import TINY
from tests.data.test_hierarchy import SPACE, tree
from tests.functional.test_hierarchy import PARENTS, below, line, naive_tree_min
from tests.models.test_segmentor import FinestMap, PoolEncoder

Configure = Callable[..., DictConfig]


# Terms


class Toy(nn.Module):
    stride = 4

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head


def step(logits: Tensor, embeddings: Tensor, label: Tensor) -> Step:
    return Step(Toy(None), Seen(SegOutput(logits, embeddings), label, 4))


def scene(seed: int = 0, nodes: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and embeddings on a grid of stride 4, and labels, of groups too."""
    torch.manual_seed(seed)
    label = torch.randint(-1, nodes, (2, 4, 5)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return torch.randn(2, nodes, 4, 5, dtype=torch.double), torch.randn(2, 6, 4, 5, dtype=torch.double), label


@pytest.mark.parametrize("gamma", [None, 2.0])
@pytest.mark.parametrize("all_pixels", [False, True])
def test_cross_entropy_in_a_tree_is_the_tree_min_loss(gamma: float | None, all_pixels: bool) -> None:
    logits, embeddings, label = scene()
    weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    term = CrossEntropy(class_weights=weights, focal_gamma=gamma, all_pixels=all_pixels)
    term.prepare(None, tree())
    valid = label >= 0
    full = upsample_logits(logits, (16, 20), 4)
    losses = naive_tree_min(full, label.clamp_min(0), PARENTS, gamma or 0.0)
    weight = torch.tensor(weights)[label.clamp_min(0)].double() * valid
    want = (losses * weight).sum() / (label.numel() if all_pixels else weight.sum())
    torch.testing.assert_close(term(step(logits, embeddings, label)), want)
    ignored = torch.full_like(label, IGNORE_INDEX)
    logits.requires_grad_()
    nothing = term(step(logits, embeddings, ignored))
    nothing.backward()
    assert nothing == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_label_that_is_a_group_says_nothing_of_its_classes() -> None:
    logits, embeddings, label = scene()
    term = CrossEntropy()
    term.prepare(None, tree())
    label = torch.full_like(label, 5)
    logits.requires_grad_()
    term(step(logits, embeddings, label)).backward()
    assert logits.grad is not None
    moved = logits.grad.flatten(2).abs().sum((0, 2)) > 0
    assert moved.tolist() == [False, False, True, True, True, True, True, True]


def test_options_of_softmax_are_refused_in_a_tree() -> None:
    for options in ({"label_smoothing": 0.1}, {"ohem_threshold": 0.7}, {"recall": True}):
        with pytest.raises(ProtosegError, match="hierarchy: expected ohem_threshold, label_smoothing and recall"):
            CrossEntropy(**options).prepare(None, tree())  # type: ignore[arg-type]


class Embedding(nn.Module):
    embedding_dim, memory = 6, None


@pytest.mark.parametrize("space", [tree(), SPACE], ids=["tree", "flat"])
def test_tree_triplets(space: LabelSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of labelled pixels, by the distances in the tree, all pairs of nodes that there are."""
    nodes = space.num_classes
    parents = space.parents or (-1,) * nodes
    term = TreeTriplet(dim=4, anchors=7, margin=0.1).double()
    term.prepare(Toy(Embedding()), space)
    term.double()
    seen: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(formulas, "tree_triplet", lambda *given: seen.append(given) or given[0].sum() * 0)
    drawn: dict[int, set[tuple[int, int]]] = {}
    for seed in range(60):
        logits, embeddings, label = scene(0, nodes)
        label[label == 3] = IGNORE_INDEX
        torch.manual_seed(seed)
        assert term(step(logits, embeddings, label)) == 0
        anchor, near, far, margin, valid = seen.pop()
        pixels = F.normalize(term.projection(embeddings.movedim(1, -1).flatten(0, 2)), dim=1)
        of = label[:, 2::4, 2::4].flatten()
        for i in valid.nonzero().flatten().tolist():
            a, p, n = (int(of[(pixels - x[i]).abs().sum(1).argmin()]) for x in (anchor, near, far))
            assert a == i // 7
            apart = [edges(a, other, parents) for other in (p, n)]
            assert apart[0] < apart[1]
            height = max(len(line(each, parents)) for each in range(nodes))
            assert float(margin[i]) == pytest.approx(0.1 + 0.5 * (apart[1] - apart[0]) / (2 * height))
            drawn.setdefault(a, set()).add((p, n))
        assert valid.view(nodes, 7).sum(1).tolist() == [min(7, int((of == each).sum())) for each in range(nodes)]
    there = [each for each in range(nodes) if (of == each).any()]
    for a, pairs in drawn.items():
        far = {(p, n) for p in there for n in there if edges(a, p, parents) < edges(a, n, parents)}
        assert pairs == far


def edges(a: int, b: int, parents: tuple[int, ...]) -> int:
    above_a, above_b = [*line(a, parents), -1], [*line(b, parents), -1]
    shared = next(node for node in above_a if node in above_b)
    return above_a.index(shared) + above_b.index(shared)


def test_tree_triplet_has_a_gradient_and_is_0_where_there_is_nothing_to_compare() -> None:
    term = TreeTriplet(dim=4)
    term.prepare(Toy(Embedding()), tree())
    term.double()
    logits, embeddings, label = scene()
    embeddings.requires_grad_()
    value = term(step(logits, embeddings, label))
    value.backward()
    assert value > 0
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
    for only in (IGNORE_INDEX, 2):
        assert term(step(logits, embeddings, torch.full_like(label, only))) == 0


# Prototypes


def test_a_group_has_prototypes_that_its_classes_pixels_move() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, 8, 2, offset=0.5, momentum=0.0, momentum_warmup=0, init="random").double()
    _, features, label = scene()
    output = head.train()(features)
    torch.testing.assert_close(
        output.logits, (head.memory.similarity(rows(output)).scores - 0.5).view(2, 4, 5, 8).movedim(3, 1) / 0.1
    )
    head.memory.parents = PARENTS
    clustering, observed = head.memory.assign(output, label, 4)
    of = label[:, 2::4, 2::4].flatten()
    called = output.logits[:, :5].argmax(1).flatten()
    n = len(of)
    assert len(observed.label) == len(observed.embeddings) == 3 * n
    for i in range(n):
        own = [*(line(int(of[i])) if of[i] >= 0 else []), -1, -1, -1][:3]
        for level, node in enumerate(own):
            assert observed.label[level * n + i] == node
            if node >= 0:
                assert observed.correct[level * n + i] == (node in line(int(called[i])))
                assert observed.member[level * n + i] // 2 == node
                torch.testing.assert_close(observed.embeddings[level * n + i], rows(output)[i])
            else:
                assert observed.member[level * n + i] == -1
        assert clustering.target[i] == observed.member[i]
    head.memory.observe_accumulated([observed, observed])
    head.memory.step()
    occupancy = head.memory.occupancy.sum(1)
    for node in range(8):
        right = sum(int(of[i]) in below(node) and node in line(int(called[i])) for i in range(n))
        assert occupancy[node] == 2 * right


def rows(output: SegOutput) -> Tensor:
    return output.embeddings.movedim(1, -1).flatten(0, 2)


# Prediction


def model(head: Any = None) -> Segmentor:
    torch.manual_seed(0)
    return Segmentor(PoolEncoder(), FinestMap, head or partial(PrototypeHead, num_prototypes=2), 8)  # type: ignore[arg-type]


def test_in_evaluation_the_path_of_the_highest_score_is_found() -> None:
    network, image = model().eval(), torch.rand(2, 3, 40, 56)
    memory = network.head.memory
    assert memory is not None
    memory.cared_for = True
    nodes = network(image).logits
    network.arrange(PARENTS)
    assert memory.parents == PARENTS
    assert not [name for name in network.state_dict() if "paths" in name]
    found = network(image).logits
    s = F.logsigmoid(nodes)
    to = [torch.stack([s[:, i] for i in line(node)]).sum(0) for node in range(8)]
    torch.testing.assert_close(found[:, :5], torch.stack([*to[:3], to[3] + s[:, 3], to[4] + 2 * s[:, 4]], 1))
    assert found.argmax(1).max() < 5
    torch.testing.assert_close(deepcopy(network).half().decided(nodes.half()), found, atol=0.02, rtol=0.02)
    network.arrange(PARENTS, 1.0)
    assert {*network(image).logits.argmax(1).unique().tolist()} <= {4, 7}
    assert torch.equal(network.train().decided(nodes), nodes)
    network.eval().arrange(())
    torch.testing.assert_close(network(image).logits, nodes)


# Metrics


def test_scores_are_those_of_every_node() -> None:
    torch.manual_seed(0)
    pred, label = torch.randint(0, 8, (4, 20, 20)), torch.randint(-1, 8, (4, 20, 20))
    found = scores(confusion_matrix(pred, label, 8), parents=PARENTS)
    pairs = [(p, t) for p, t in zip(pred.flatten().tolist(), label.flatten().tolist(), strict=True) if t >= 0]
    for node in range(8):
        known = [(p, t) for p, t in pairs if t not in line(node)[1:]]  # not labelled as one of its groups
        is_true, is_found = [t in below(node) for _, t in known], [p in below(node) for p, _ in known]
        hit = sum(a and b for a, b in zip(is_true, is_found, strict=True))
        either = sum(a or b for a, b in zip(is_true, is_found, strict=True))
        assert float(found["IoU"][node]) == pytest.approx(hit / either)
        assert float(found["accuracy"][node]) == pytest.approx(hit / sum(is_true))
    leaves = [(p, t) for p, t in pairs if t < 5]
    assert found["pixel_accuracy"] == pytest.approx(sum(p == t for p, t in leaves) / len(leaves))
    assert found["mIoU"] == pytest.approx(float(found["IoU"][:5].mean()))
    assert found["mean_accuracy"] == pytest.approx(float(found["accuracy"][:5].mean()))
    means = subset_means(found["IoU"], tree(), {"x": ["a", "ab"]})
    iou = found["IoU"].tolist()
    assert means == pytest.approx(
        {
            "mIoU_x": (iou[0] + iou[5]) / 2,
            "mIoU_level_1": (iou[4] + iou[7]) / 2,
            "mIoU_level_2": (iou[3] + iou[4] + iou[5] + iou[6]) / 4,
        }
    )


def test_a_wrong_class_of_the_right_group_is_right_on_its_level() -> None:
    metrics = SegmentationMetrics(tree())
    metrics.update(torch.tensor([1, 0, 5]), torch.tensor([0, 1, 0]))
    found = metrics.compute()
    assert found["mIoU"] == 0
    assert found["IoU"][5] == found["IoU"][7] == 1


# Data


def test_a_part_may_label_groups_alone(camvid: Path) -> None:
    given: dict[str, Any] = {"num_workers": 0, "root": str(camvid), "scale": (1.0, 1.0)}
    movers = ["Car", "Pedestrian", "Bicyclist"]
    weak = SegmentationDataModule(CamVid, 2, [24, 32], relabel=dict.fromkeys(movers, "moving"), val_split=None, **given)
    strong = SegmentationDataModule(CamVid, 2, [24, 32], **given)
    groups = {"moving": movers, "ground": ["Road", "Sidewalk"]}
    data = ConcatDataModule({"weak": weak, "strong": strong}, [24, 32], batch_size=2, num_workers=0, hierarchy=groups)
    space = data.label_space
    assert space.classes == (*CAMVID.classes, "moving", "ground")
    assert weak.label_space.classes == strong.label_space.classes == space.classes
    assert data.unlabelled == []
    assert weak.unlabelled == [CAMVID.classes.index(name) for name in movers]
    labels = weak.dataset("train").read_label(0), strong.dataset("train").read_label(0)
    assert np.array_equal(labels[0], np.where(np.isin(labels[1], [8, 9, 10]), 11, labels[1]))
    alone = SegmentationDataModule(CamVid, 2, [24, 32], hierarchy=groups, **given)
    assert (alone.label_space.classes, alone.label_space.parents) == (space.classes, space.parents)
    assert len(set(space.colors)) == 13
    with pytest.raises(ProtosegError, match="hierarchy: expected"):
        SegmentationDataModule(CamVid, 2, [24, 32], hierarchy={"x": ["y"]}, **given)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A few images of CamVid's form with blocks of all classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            for folder in (split, f"{split}annot"):
                (tmp_path / folder).mkdir(exist_ok=True)
            mask = random.integers(0, 12, (6, 8), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            image = (mask[..., None] * 20 + random.integers(0, 20, (96, 128, 3))).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / split / f"0001TP_{i:06d}.png")
            Image.fromarray(mask).save(tmp_path / f"{split}annot" / f"0001TP_{i:06d}.png")
    return tmp_path


# All of it


@pytest.mark.parametrize(
    "recipe", ["camvid_hierarchy", pytest.param("camvid_hierarchy_prototype", marks=pytest.mark.slow)]
)
def test_train_evaluate_predict(recipe: str, camvid: Path, configure: Configure, tmp_path: Path) -> None:
    tiny = [word for word in TINY if "num_prototypes" not in word]
    run_training(configure("train", f"experiment={recipe}", f"data.root={camvid}", *tiny))
    with open(tmp_path / "run" / "logs" / "metrics.csv") as file:
        row = [*csv.DictReader(file)][-1]
    assert float(row["val/mIoU_level_1"]) >= 0
    assert float(row["val/IoU/moving objects"]) >= 0
    assert float(row["train/contrast"]) > 0
    ckpt = f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    found = {}
    for name, words in {"classes": [], "groups": ["fall_back=1.0"]}.items():
        cfg = configure("evaluate", ckpt, "num_workers=0", "device=cpu", *words, output=tmp_path / name)
        run_evaluation(cfg)
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())
        assert len(found[name]["classes"]) == 13
        assert found[name]["fall_back"] == (1.0 if words else None)
        assert {*found[name]["classes_in_means"]} <= {*CAMVID.classes}
        assert "mIoU_level_1" in (tmp_path / name / "table.md").read_text()
        ids = np.unique(np.stack([np.asarray(Image.open(file)) for file in (tmp_path / name).glob("labels/*.png")]))
        assert {*ids.tolist()} <= ({*range(11)} if name == "classes" else {0, 3, 11, 12})
    opened = protoseg.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    above = {**dict.fromkeys(CAMVID.classes, 11), "Sky": -1, "Road": -1}
    above |= dict.fromkeys(("Car", "Pedestrian", "Bicyclist"), 12)
    assert opened.label_space.parents == (*above.values(), -1, -1)
    with pytest.raises(ProtosegError, match="got a hierarchy: only training can change these"):
        editable_memories(opened.file)
    assert opened.predict(next((camvid / "val").glob("*.png"))).labels.max() < 11


def test_what_knows_no_hierarchy_refuses_it(configure: Configure, camvid: Path, tmp_path: Path) -> None:
    space = in_tree(CAMVID, {"moving": ["Car"]})
    for words in (["method=dacs", "head=linear"], ["head=prototype"], ["loss=[linear,dice]", "head=linear"]):
        cfg = configure("train", "encoder.pretrained=false", *words)
        with pytest.raises(
            ProtosegError, match="hierarchy: expected method=supervised and loss=hierarchical, got others"
        ):
            build_module(cfg, space)
    flat = build_module(configure("train", "head=linear", *TINY[:4]), CAMVID)
    flat.save(tmp_path / "flat.ckpt")
    cfg = configure("evaluate", f"ckpt_path={tmp_path}/flat.ckpt", "fall_back=0.5", "device=cpu")
    with pytest.raises(
        ProtosegError, match="fall_back: expected a checkpoint trained with a hierarchy, got one without"
    ):
        run_evaluation(cfg)


@pytest.mark.slow
def test_a_part_with_groups_alone_is_trained_on_and_judged(camvid: Path, configure: Configure, tmp_path: Path) -> None:
    parts = [f"+data@data.parts.{name}=camvid" for name in ("weak", "strong")]
    parts += [f"data.parts.{name}.root={camvid}" for name in ("weak", "strong")]
    words = ["data.parts.weak.relabel={Car: moving, Pedestrian: moving, Bicyclist: moving}", "data.batch_size=4"]
    words += ["data.hierarchy={moving: [Car, Pedestrian, Bicyclist]}", "head=parametric", "loss=hierarchical"]
    tiny = [word for word in TINY if "num_prototypes" not in word and "batch_size" not in word]
    run_training(configure("train", "data=concat", *parts, *tiny, *words, "trainer.max_steps=2"))
    cfg = configure("evaluate", f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt", "num_workers=0", "device=cpu")
    run_evaluation(cfg)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    pixels = {row["name"]: row["true_pixels"] for row in found["classes"]}
    assert pixels["moving"] == 2 * sum(pixels[c] for c in ("Car", "Pedestrian", "Bicyclist")) > 0  # of both parts
    assert found["mIoU_level_1"] >= 0
