"""Contrasts among the classes of a tree, whose pixels may be labelled as of a group alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from protoseg.losses import Seen, Step
from protoseg.types import IGNORE_INDEX, SegOutput
from tests.data.test_hierarchy import tree
from tests.training.test_hierarchy import Embedding, Toy, scene

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("name", ["pixel_contrast", "sepico_proto", "pixel_to_pixel"])
def test_a_pixel_of_a_group_is_in_no_contrast_of_classes(name: str) -> None:
    """Nothing is known of the class that it is, so it is no other's rival; nor is what a group scores."""
    values = []
    for group, score in ((5, 0), (IGNORE_INDEX, 0), (5, 100)):
        torch.manual_seed(0)
        small = {"size": [4, 5]} if name == "pixel_to_pixel" else {}
        term = instantiate(OmegaConf.load(CONF / "contrast" / f"{name}.yaml"), **small)
        term.prepare(Toy(Embedding()), tree())
        term.double()
        logits, embeddings, label = scene()
        logits[:, 5:] += score
        label = label.where(label < 5, group)
        for _ in range(2):  # after the first step there are class means, and pixels in queues
            value = term(Step(Toy(None), Seen(SegOutput(logits, embeddings, features=[embeddings]), label, 4)))
            term.after_optimizer_step()
        values.append(value)
    assert values[0] == values[1] == values[2] != 0
