"""Weighted cross-entropy on mixed images, and the feature distance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.losses import FeatureDistance, Mixed, MixedCrossEntropy, Seen, Step
from protoseg.losses.segmentation import weighted_cross_entropy
from protoseg.types import LabelSpace, ProtosegError, SegOutput

SPACE = LabelSpace("toy", ("road", "car", "person"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)), things=("car", "person"))


def test_weighted_cross_entropy_against_a_loop() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    label, weight = torch.randint(0, 3, (2, 4, 5)), torch.rand(2, 4, 5, dtype=torch.float64)
    label[0, 0] = -1
    value = weighted_cross_entropy(logits, label, weight, 1)
    total, count = 0.0, 0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                if label[b, y, x] != -1:
                    ce = F.cross_entropy(logits[b, :, y, x][None], label[b, y, x][None])
                    total, count = total + ce * weight[b, y, x], count + 1
    torch.testing.assert_close(value, total / count)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], torch.autograd.grad(total / count, logits)[0])


def mixed_input(weight: Tensor) -> Step:
    torch.manual_seed(0)
    output = SegOutput(torch.randn(1, 3, 4, 4), torch.randn(1, 2, 4, 4))
    label = torch.randint(0, 3, (1, 16, 16))
    label[0, 0] = -1
    mixed = Mixed(output, label, stride=4, pasted=label < 0, weight=weight)
    return Step(nn.Identity(), Seen(output, label, stride=4), mixed)


def test_mixed_cross_entropy_scales_with_the_weight_of_pixel_and_class() -> None:
    term = MixedCrossEntropy()
    term.prepare(nn.Identity(), SPACE)
    one = term(mixed_input(torch.ones(1, 16, 16)))
    torch.testing.assert_close(term(mixed_input(torch.full((1, 16, 16), 0.25))), 0.25 * one)
    assert term(mixed_input(torch.zeros(1, 16, 16))) == 0

    balanced = MixedCrossEntropy(class_weights=[0.5, 1.0, 2.0])
    balanced.prepare(nn.Identity(), SPACE)
    label = mixed_input(torch.ones(())).mixed.label
    factor = torch.tensor([0.5, 1.0, 2.0])[label.where(label != -1, 0)]
    torch.testing.assert_close(balanced(mixed_input(torch.ones(1, 16, 16))), term(mixed_input(factor)))


class Toy(nn.Module):
    """A model whose only map, at stride 4, is the image's mean colour times a learned scale."""

    feature_strides = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 2, 1, bias=False)

    def encoder_maps(self, image: Tensor, encoder: nn.Module) -> list[Tensor]:
        return [encoder(F.avg_pool2d(image, 4))]


def feature_distance(label: Tensor, **kwargs: object) -> tuple[FeatureDistance, Toy, Step]:
    torch.manual_seed(0)
    model, term = Toy().double(), FeatureDistance(**kwargs)  # type: ignore[arg-type]
    term.prepare(model, SPACE)
    with torch.no_grad():
        model.encoder.weight += 1
    image = torch.rand(1, 3, *label.shape[1:], dtype=torch.float64)
    features = model.encoder_maps(image, model.encoder)
    seen = Seen(SegOutput(features[0], features[0], features=features), label, 4, None, image)
    return term, model, Step(model, seen)


def test_feature_distance_by_hand() -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    label[0, :4, 4:] = 1  # a car fills the upper right cell
    label[0, 4:, :2], label[0, 4:, 2:4] = 2, -1  # half a cell of person is too little
    term, model, batch = feature_distance(label)
    value = term(batch)
    # The weights moved by 1: each output by the sum of the colour.
    colour = F.avg_pool2d(batch.labelled.image, 4)[0, :, 0, 1]
    assert value.item() == pytest.approx(float(colour.sum()) * 2**0.5)
    value.backward()
    assert model.encoder.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in term.reference.parameters())


def test_no_thing_in_the_batch_is_zero_and_finite() -> None:
    term, model, batch = feature_distance(torch.zeros(1, 8, 8, dtype=torch.int64))
    value = term(batch)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(model.encoder.weight.grad).all()


def test_the_reference_stays_in_eval_mode_and_in_the_state_dict() -> None:
    term, _, batch = feature_distance(torch.zeros(1, 8, 8, dtype=torch.int64))
    term.train()(batch)
    assert not term.reference.training
    assert "reference.weight" in term.state_dict()


@pytest.mark.parametrize("classes", [["car", "dragon"], []])
def test_classes_that_the_label_space_lacks(classes: list[str]) -> None:
    with pytest.raises(ProtosegError, match="road, car, person"):
        FeatureDistance(classes=classes).prepare(Toy(), SPACE)


def test_a_label_space_without_things() -> None:
    with pytest.raises(ProtosegError, match="got none"):
        FeatureDistance().prepare(Toy(), LabelSpace("stuff", ("road",), ((1, 1, 1),)))
