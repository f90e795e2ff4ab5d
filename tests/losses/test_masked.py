"""Masked image consistency: what the student sees, what it is compared with, HRDA's share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.functional.mixing import random_patch_mask
from protoseg.losses import adaptation
from protoseg.losses.adaptation import MaskedImageConsistency
from protoseg.losses.term import Step, Target
from protoseg.types import Detail, ProtosegError, SegOutput

BOX = (0, 8, 16, 8)


class Student(nn.Module):
    """The colours at stride 4, weighted, are the class logits; remembers what it saw."""

    stride = 4
    mean: Tensor

    def __init__(self, detail: bool = False) -> None:
        super().__init__()
        self.detail = detail
        self.gain = nn.Parameter(torch.full((), 3.0, dtype=torch.double))
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6], dtype=torch.double).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> SegOutput:
        self.seen = image
        logits = self.gain * F.avg_pool2d(image - self.mean, 4)
        detail = Detail(2 * logits[..., 0:4, 2:4], BOX) if self.detail else None
        return SegOutput(logits=logits, embeddings=logits, detail=detail)

    perturbed = forward  # no running statistics here


def batch(student: Student, quality: float = 0.6) -> Step:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    label = torch.randint(0, 3, (2, 16, 24))
    label[:, :3] = -1
    unused: Any = None
    confidence, share = torch.rand(2, 16, 24), torch.tensor(quality, dtype=torch.double)
    return Step(student, unused, target=Target(image, label, confidence, share, unused))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without colour jitter and blur."""
    monkeypatch.setattr(adaptation, "strong_transform", lambda image, *colours: image)


@pytest.mark.usefixtures("plain")
def test_loss_by_hand() -> None:
    student = Student()
    adaptation = batch(student)
    torch.manual_seed(7)
    value = MaskedImageConsistency(block_size=8, ratio=0.5)(adaptation)
    torch.manual_seed(7)
    visible = random_patch_mask(2, (16, 24), 8, 0.5).double()
    assert 0 < visible.mean() < 1
    image = visible * adaptation.target.image.double() / 255 + (1 - visible) * student.mean
    torch.testing.assert_close(student.seen, image)
    logits = F.interpolate(3 * F.avg_pool2d(image - student.mean, 4), (16, 24), mode="bilinear")
    expected = 0.6 * F.cross_entropy(logits, adaptation.target.label, ignore_index=-1)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert float(student.gain.grad) != 0  # type: ignore[arg-type]


@pytest.mark.usefixtures("plain")
def test_detail_crop_has_its_share() -> None:
    student = Student(detail=True)
    adaptation = batch(student)
    detail, fused = (MaskedImageConsistency(ratio=0, detail_weight=w)(adaptation) for w in (1.0, 0.0))
    torch.testing.assert_close(MaskedImageConsistency(ratio=0)(adaptation), 0.9 * fused + 0.1 * detail)
    logits = F.interpolate(student(adaptation.target.image.double() / 255).detail.logits, (16, 8), mode="bilinear")
    expected = 0.6 * F.cross_entropy(logits, adaptation.target.label[:, :, 8:16], ignore_index=-1)
    torch.testing.assert_close(detail, expected)


@pytest.mark.usefixtures("plain")
def test_everything_hidden_leaves_nothing_to_see() -> None:
    student = Student()
    value = MaskedImageConsistency(ratio=1)(batch(student))
    torch.testing.assert_close(value, 0.6 * torch.tensor(3.0, dtype=torch.double).log())


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("case", ["no quality", "no label"])
def test_nothing_to_learn_is_zero_not_nan(case: str) -> None:
    student = Student()
    adaptation = batch(student, quality=0.0 if case == "no quality" else 0.6)
    if case == "no label":
        label = torch.full_like(adaptation.target.label, -1)
        adaptation = replace(adaptation, target=replace(adaptation.target, label=label))
    value = MaskedImageConsistency()(adaptation)
    value.backward()
    assert float(value) == float(student.gain.grad) == 0  # type: ignore[arg-type]


def test_colours_are_jittered_before_the_patches_are_hidden() -> None:
    student = Student()
    adaptation = batch(student)
    torch.manual_seed(1)
    MaskedImageConsistency(block_size=8, ratio=0.5)(adaptation)
    hidden = torch.eq(student.seen, student.mean).all(1, keepdim=True)
    assert hidden.view(2, 2, 8, 3, 8).double().mean((2, 4)).unique().tolist() == [0, 1]
    unchanged = torch.isclose(student.seen, adaptation.target.image.double() / 255)
    assert not unchanged[~hidden.expand_as(unchanged)].all()


def test_wrong_settings_are_refused_at_once() -> None:
    with pytest.raises(ProtosegError, match=r"expected a ratio in \[0, 1\].*got ratio=1\.5"):
        MaskedImageConsistency(ratio=1.5)
