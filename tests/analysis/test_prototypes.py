"""Occupancy, patches, activation maps and the description of prototypes, against loops over every cell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.analysis.activations import (
    PATCH_PIXELS,
    Patch,
    PatchCollector,
    activation,
    activation_panel,
    assignment_picture,
    cut,
    patch_sheet,
)
from protoseg.analysis.stream import collect, look, prototype_memory, scenes
from protoseg.analysis.structure import (
    Occupancy,
    OccupancyCollector,
    between_figure,
    describe,
    occupancy_figure,
    within_figure,
)
from protoseg.evaluation.pictures import PAPER, WRONG
from protoseg.types import LabelSpace, ProtosegError
from tests.analysis.toy import PROTOTYPES, SPACE, Images, Toy, loader
from tests.functional.dense import dense


def cells(model: Toy, count: int = 5) -> list[dict[str, Any]]:
    """Every cell of every image with its cosines ``c k``, from the model's embeddings one by one."""
    found = []
    for i, (image, label, _) in enumerate(Images(count).items):
        with torch.no_grad():
            output = model.eval()(image.unsqueeze(0))
        h, w = output.logits.shape[2:]
        for y in range(h):
            for x in range(w):
                cosines = torch.einsum("ckd,d->ck", model.head.memory.prototypes, output.embeddings[0, :, y, x])
                row, column = min(4 * y + 2, len(label) - 1), min(4 * x + 2, label.shape[1] - 1)
                predicted = int(output.logits[0, :, y, x].argmax())
                found.append({"image": i, "y": row, "x": column, "cosines": cosines,
                              "label": int(label[row, column]), "predicted": predicted})  # fmt: skip
    return found


def test_a_stream_does_not_depend_on_the_batch_size_and_leaves_the_mode() -> None:
    model = Toy().train()
    one, three = (list(scenes(model, loader(batch))) for batch in (1, 3))
    assert model.training
    assert [scene.number for scene in one] == [0, 1, 2, 3, 4]
    for a, b, (image, label, name) in zip(one, three, Images().items, strict=True):
        assert torch.equal(a.output.logits, b.output.logits)
        assert torch.equal(a.image, image)
        assert torch.equal(a.label, label)
        assert a.name == b.name == name


def occupancy(model: Toy, **options: bool) -> Occupancy:
    collector = OccupancyCollector(3, PROTOTYPES)
    collect(scenes(model, loader(**options)), collector)
    return collector.compute()


def test_occupancy_counts_the_nearest_prototype_of_the_class() -> None:
    model, want = Toy(), torch.zeros(2, 3, PROTOTYPES, dtype=torch.int64)
    right = torch.zeros(5, 3)
    for cell in cells(model):
        for kind, i in enumerate((cell["label"], cell["predicted"])):
            if i != -1:
                want[kind, i, cell["cosines"][i].argmax()] += 1
        if cell["label"] == cell["predicted"]:
            right[cell["image"], cell["label"]] += 1
    found = occupancy(model)
    assert torch.equal(found.true, want[0])
    assert torch.equal(found.predicted, want[1])
    assert torch.equal(found.most_cells, right.amax(0).long())
    for i in range(3):
        assert right[found.example[i], i] == right[:, i].max()
    assert torch.allclose(found.share(found.true).sum(1), torch.ones(3, dtype=torch.float64))


def test_occupancy_of_images_without_labels_is_the_predicted_one() -> None:
    found = occupancy(Toy(), void=True)
    assert not found.true.any()
    assert torch.equal(found.counted, found.predicted)
    assert (found.example[found.predicted.sum(1) > 0] >= 0).all()


def test_a_class_that_is_nowhere_right_has_no_example() -> None:
    collector = OccupancyCollector(3, PROTOTYPES)
    for scene in scenes(Toy(), loader()):
        predicted = scene.at_pixels(scene.output.logits[0]).argmax(0)
        collector.update(scene._replace(label=torch.full_like(predicted, int(predicted[0, 0] == 0))))
    found = collector.compute()
    assert torch.equal(found.example == -1, found.most_cells == 0)
    assert found.example[2] == -1


@pytest.mark.parametrize("n", [1, 3, 8])
def test_nearest_patches_are_the_best_of_all_cells_one_an_image(n: int) -> None:
    model = Toy()
    collector = PatchCollector(3, PROTOTYPES, n)
    collect(scenes(model, loader()), collector)
    found = collector.compute()
    seen = cells(model)
    for c in range(3):
        for k in range(PROTOTYPES):
            best: dict[int, dict[str, Any]] = {}
            for cell in seen:
                takes = cell["predicted"] == c and int(cell["cosines"][c].argmax()) == k
                if (
                    takes
                    and cell["cosines"][c, k] > best.get(cell["image"], {"cosines": -torch.ones(3, 2)})["cosines"][c, k]
                ):
                    best[cell["image"]] = cell
            want = sorted(best.values(), key=lambda cell: -float(cell["cosines"][c, k]))[:n]
            assert [p.image for p in found[c][k]] == [cell["image"] for cell in want]
            for patch, cell in zip(found[c][k], want, strict=True):
                assert patch.cosine == pytest.approx(float(cell["cosines"][c, k]), abs=1e-5)
                assert (patch.y, patch.x, patch.label) == (cell["y"], cell["x"], cell["label"])
                image = Images().items[patch.image][0]
                assert patch.name == f"/photos/{patch.image}.png"
                assert np.array_equal(patch.picture, cut(image, patch.y, patch.x))


def test_patches_do_not_depend_on_the_order_of_the_images() -> None:
    model = Toy()
    stream = list(scenes(model, loader()))
    results = []
    for order in (stream, stream[::-1]):
        collector = PatchCollector(3, PROTOTYPES, 2)
        collect(order, collector)
        results.append([[[patch.cosine for patch in own] for own in of_class] for of_class in collector.compute()])
    assert results[0] == results[1]


def test_a_patch_has_its_pixel_in_the_middle_and_paper_beyond_the_border() -> None:
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[:, 3:8, 3:8] = torch.tensor([10, 200, 30], dtype=torch.uint8).view(3, 1, 1)
    picture = cut(image, 5, 5)
    assert picture.shape == (PATCH_PIXELS, PATCH_PIXELS, 3)
    middle = PATCH_PIXELS // 2
    assert np.abs(picture[middle, middle].astype(int) - (10, 200, 30)).max() < 8
    assert tuple(picture[2, 2]) == PAPER
    assert tuple(picture[-3, -3]) == (0, 0, 0)


def test_the_sheet_marks_patches_of_another_class() -> None:
    picture = np.zeros((PATCH_PIXELS, PATCH_PIXELS, 3), np.uint8)
    right = Patch(0.9, 0, "a.png", 3, 3, 1, picture)

    def red(patches: list[list[Patch]]) -> int:
        return int((patch_sheet(patches, 1, SPACE, [0.5, 0.5]) == WRONG).all(2).sum())

    assert red([[right], [right]]) == 0
    assert red([[right], [right._replace(label=-1)]]) == 0
    assert red([[right], [right._replace(label=0)]]) > PATCH_PIXELS
    assert 0 < red([[right], []]) < PATCH_PIXELS * 4  # in words: no pixel takes it


def test_activation_maps_are_the_cosines_at_the_pixels() -> None:
    model = Toy().eval()
    image = Images().items[1][0]
    scene = look(model, image)
    maps = torch.stack([activation(model, scene, i).cosines for i in range(3)])
    of_all = dense(scene.cosines).view(*scene.grid, 3, PROTOTYPES).permute(2, 3, 0, 1)
    assert maps.shape == (3, PROTOTYPES, *image.shape[1:])
    want = torch.stack([scene.at_pixels(of_class) for of_class in of_all])
    assert torch.allclose(maps, want, atol=1e-5)


def test_the_assignment_covers_the_pixels_predicted_as_the_class() -> None:
    model = Toy().eval()
    image = Images().items[0][0]
    scene = look(model, image)
    predicted = scene.at_pixels(scene.output.logits[0]).argmax(0)
    for i in range(3):
        found = activation(model, scene, i)
        assert torch.equal(found.assignment >= 0, predicted == i)
        inside = found.assignment >= 0
        assert torch.equal(found.assignment[inside], found.cosines.argmax(0)[inside])
        if inside.any():
            assert float(found.shares.sum()) == pytest.approx(1)
            colors = assignment_picture(image, found, alpha=1.0)[inside.numpy()]
            assert len(np.unique(colors, axis=0)) == len(found.assignment[inside].unique())
        assert activation_panel(image, found, SPACE).ndim == 3


def ring(degrees: list[float]) -> Tensor:
    """Unit vectors in a plane."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_description_finds_dead_and_double_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    prototypes = torch.stack([ring([0, 5, 90]), ring([180, 210, 240]), ring([100, 130, 160])])
    counts = torch.tensor([[500, 500, 0], [100, 100, 100], [0, 0, 0]])
    road, sky, car = describe(prototypes, counts, SPACE)
    assert road["dead"] == [2]
    assert [pair[:2] for pair in road["duplicates"]] == [[0, 1]]
    assert road["duplicates"][0][2] == pytest.approx(math.cos(math.radians(5)), abs=1e-6)
    assert road["effective"] == pytest.approx(2)
    assert sky["effective"] == pytest.approx(3)
    assert sky["dead"] == sky["duplicates"] == []
    assert sky["mean_cosine"] == pytest.approx((2 * math.cos(math.radians(30)) + 0.5) / 3, abs=1e-6)
    assert (road["nearest_class"], car["nearest_class"]) == ("red car", "road")
    assert road["nearest_cosine"] == pytest.approx(math.cos(math.radians(10)), abs=1e-6)
    assert car["shares"] is car["effective"] is None
    assert car["dead"] == []  # where there is nothing to take, none is dead
    monkeypatch.setattr("protoseg.analysis.structure.DUPLICATE_ABOVE", 0.999)
    assert describe(prototypes, counts, SPACE)[0]["duplicates"] == []
    tight = describe(torch.stack([ring([a, a + 1]) for a in (0, 80, 170)]), counts[:, :2], SPACE)
    assert [entry["nearest_class"] for entry in tight] == ["sky", "road", "sky"]


def test_description_of_one_prototype_and_one_class() -> None:
    space = LabelSpace("one", ("road",), ((1, 2, 3),))
    (entry,) = describe(ring([30]).unsqueeze(0), torch.tensor([[7]]), space)
    assert entry["mean_cosine"] is entry["nearest_class"] is entry["nearest_cosine"] is None
    assert entry["effective"] == 1


@pytest.mark.parametrize(("classes", "prototypes"), [(1, 1), (3, 2), (45, 3)])
def test_figures_of_any_number_of_classes(classes: int, prototypes: int) -> None:
    space = LabelSpace("many", tuple(f"class {i}" for i in range(classes)), ((90, 20, 200),) * classes)
    vectors = F.normalize(torch.randn(classes, prototypes, 4), dim=2)
    counts = torch.randint(9, (classes, prototypes))
    found = Occupancy(counts, counts + 1, counts[:, 0], counts[:, 0])
    assert len(within_figure(vectors, space).axes) >= min(classes, 40)
    assert between_figure(vectors, space).axes
    assert len(occupancy_figure(found, space).axes[0].get_yticks()) == min(classes, 40)


def test_a_model_without_prototypes_is_refused() -> None:
    model = Toy(prototypes=False).eval()
    with pytest.raises(ProtosegError, match="head=prototype"):
        prototype_memory(model)
    with pytest.raises(ProtosegError, match="head=prototype"):
        _ = look(model, Images().items[0][0]).cosines
