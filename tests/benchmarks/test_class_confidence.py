"""Pseudo-labels that are sure by class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from omegaconf import DictConfig

from protoseg.data import CAMVID
from protoseg.run.build import build_module
from protoseg.types import Batch
from tests.conftest import TINY


def test_confidence_becomes_that_of_the_source(configure: Callable[..., DictConfig]) -> None:
    method = ("method=dacs", "method._target_=benchmarks.class_confidence.ClassConfidence", "data=streets_day_to_dusk")
    module = build_module(configure("train", *TINY, *method), CAMVID)
    image = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    before = module.ask_teacher(image)
    truth = before.label.where(before.label == before.label.flatten().mode().values, 10 - before.label)  # one is right
    module.fit(Batch(image, truth, torch.tensor([[64, 64]] * 2), ["a", "b"]))
    after = module.ask_teacher(image)
    assert torch.equal(after.label, before.label)
    expected = (module.slope * before.confidence.logit(1e-7) + module.bias[before.label]).sigmoid()
    torch.testing.assert_close(after.confidence, expected)
    frequent = before.label == before.label.flatten().mode().values
    assert (module.bias != 0).any()
    assert after.confidence[frequent].mean() > before.confidence[frequent].mean()
    assert "bias" in module.state_dict()
