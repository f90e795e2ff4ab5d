"""What the loss, the mix and the method of the examples compute, against plain formulas."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "lovasz"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "cowmix"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "freematch"))

from cowmix import CowMix
from freematch import FreeMatchModule
from lovasz import LovaszSoftmax, lovasz_softmax

from protoseg.data import CAMVID
from protoseg.losses import Seen, Step
from protoseg.run.build import build_module
from protoseg.types import ProtosegError, SegOutput
from tests.conftest import TINY

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_lovasz_is_the_jaccard_loss_where_predictions_are_sure() -> None:
    random = torch.Generator().manual_seed(0)
    label, said = (torch.randint(0, 4, (50,), generator=random) for _ in range(2))
    losses = [1 - ((label == i) & (said == i)).sum() / ((label == i) | (said == i)).sum() for i in range(4)]
    sure = torch.nn.functional.one_hot(said, 4).float()
    torch.testing.assert_close(lovasz_softmax(sure, label), torch.stack(losses).mean())


def test_lovasz_lies_between_the_errors_of_all_sets_of_pixels() -> None:
    """The extension is linear between neighbouring sets: three pixels of one class, worked out by hand."""
    probabilities = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    # Errors 0.8, 0.5 and 0.1 add 1/3 each to the Jaccard loss of a class that covers all three pixels.
    torch.testing.assert_close(lovasz_softmax(probabilities, torch.zeros(3, dtype=torch.int64)), torch.tensor(1.4 / 3))


def lovasz_of(logits: Tensor, label: Tensor) -> Tensor:
    return LovaszSoftmax()(Step(torch.nn.Identity(), Seen(SegOutput(logits, logits), label, 1)))


def test_lovasz_ignores_pixels_and_images_without_labels() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = torch.zeros(2, 4, 4, dtype=torch.int64)
    label[1], label[0, 2:] = -1, -1
    torch.testing.assert_close(
        lovasz_of(logits, label), lovasz_softmax(logits[0, :, :2].flatten(1).softmax(0).T, label[0, :2].flatten())
    )
    nothing = lovasz_of(logits, torch.full_like(label, -1))
    nothing.backward()
    assert nothing == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_cowmix_pastes_smooth_patches_of_the_share_it_was_given() -> None:
    torch.manual_seed(0)
    mask = CowMix(share=0.3).mask(torch.zeros(40, 100, 160, dtype=torch.int64), 11)
    torch.testing.assert_close(mask.float().mean(), torch.tensor(0.3), atol=0.02, rtol=0)
    changes = (mask[:, :, 1:] != mask[:, :, :-1]).float().mean((1, 2))
    assert changes.max() < 0.1  # of noise that is not smoothed it is 2 * 0.3 * 0.7 = 0.42
    assert changes.max() > 2 * changes.min()  # patches of different sizes
    assert len(mask.unique(dim=0)) == 40
    assert CowMix().mask(torch.zeros(2, 9, 7, dtype=torch.int64), 11).shape == (2, 9, 7)
    with pytest.raises(ProtosegError, match=r"share: expected a number in \(0, 1\), got 1"):
        CowMix(share=1)


@pytest.fixture
def freematch(configure: Callable[..., DictConfig]) -> FreeMatchModule:
    small = [setting for setting in TINY if not setting.startswith("encoder.name")]
    search = f"hydra.searchpath=['file://{EXAMPLES / 'freematch' / 'conf'}']"
    module = build_module(
        configure(
            "train", search, *small, "encoder.name=test_resnet", "data=streets_day_to_dusk", "method=freematch",
            "method.momentum=0.75",
        ),
        CAMVID,
    )  # fmt: skip
    assert isinstance(module, FreeMatchModule)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module


def test_freematch_ignores_what_is_below_the_threshold_of_its_class(freematch: FreeMatchModule) -> None:
    image = torch.randint(0, 255, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    plain = super(FreeMatchModule, freematch).ask_teacher(image)
    level = plain.confidence.median()
    freematch.confidence.copy_(level)
    often = int(plain.label.flatten().mode().values)
    freematch.probability.fill_(0.0)
    freematch.probability[often] = 0.4  # its threshold is the level, that of all others 0
    said = freematch.ask_teacher(image)
    ignored = (plain.label == often) & (plain.confidence < level)
    assert ignored.any()
    torch.testing.assert_close(said.label, plain.label.masked_fill(ignored, -1))
    torch.testing.assert_close(said.quality, (~ignored).float().mean())


def test_freematch_moves_its_thresholds_once_a_step(freematch: FreeMatchModule) -> None:
    image = torch.randint(0, 255, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    q = freematch.teacher(image).logits.softmax(1)
    for part in image.split(1):  # accumulated micro-batches
        freematch.ask_teacher(part)
    assert freematch.confidence == torch.tensor(1 / 11)
    freematch.after_optimizer_step()
    torch.testing.assert_close(freematch.confidence, 0.75 / 11 + 0.25 * q.amax(1).mean())
    torch.testing.assert_close(freematch.probability, 0.75 / 11 + 0.25 * q.mean((0, 2, 3)))
    assert {"confidence", "probability"} <= set(freematch.state_dict())
