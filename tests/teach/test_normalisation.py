"""BatchNorm's statistics blended with those of images without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protoseg.data import CAMVID
from protoseg.data.own import ImageFolder
from protoseg.teach import adapt_normalisation
from protoseg.teach.normalisation import WEIGHTS
from protoseg.trained import TrainedFile, open_file
from protoseg.types import ProtosegError
from tests.teach.conftest import MakeCheckpoint

MODULE = "protoseg.teach.normalisation"


@pytest.fixture
def plain(make_checkpoint: MakeCheckpoint) -> TrainedFile:
    return open_file(make_checkpoint())


@pytest.fixture
def photos(patches: tuple[Path, Path]) -> ImageFolder:
    return ImageFolder(patches[0], CAMVID)


def test_statistics_are_means_over_the_images(
    plain: TrainedFile, photos: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.WEIGHTS", (1.0,))
    adapted, _ = adapt_normalisation(plain, photos)
    model, sums = plain.model(), []
    first = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    first.register_forward_pre_hook(lambda _, x: sums.append(torch.var_mean(x[0], (0, 2, 3))))
    with torch.no_grad():
        for image, _, _ in photos:  # type: ignore[attr-defined]
            model(image[None])
    found = next(m for m in adapted.model().modules() if isinstance(m, torch.nn.BatchNorm2d))
    variances, means = (torch.stack(parts).mean(0) for parts in zip(*sums, strict=True))
    torch.testing.assert_close(found.running_mean, means, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.running_var, variances, atol=1e-5, rtol=1e-4)


def test_the_weight_of_least_entropy_is_taken_and_nothing_else_changes(plain: TrainedFile, photos: ImageFolder) -> None:
    adapted, (blend,) = adapt_normalisation(plain, photos)
    assert tuple(blend.entropy) == WEIGHTS
    assert blend.entropy[blend.weight] == min(blend.entropy.values())
    assert blend.network == "student"
    before, after = plain.content["state_dict"], adapted.content["state_dict"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.endswith(("running_mean", "running_var")) for name in changed)
    logits = adapted.model()(photos[0].image[None]).logits.movedim(1, -1)
    assert blend.weight == 0 or changed
    assert torch.distributions.Categorical(logits=logits).entropy().isfinite().all()


def test_where_nothing_is_surer_all_stays(
    plain: TrainedFile, photos: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.WEIGHTS", (0.0,))
    before, after = plain.content["state_dict"], adapt_normalisation(plain, photos)[0].content["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_statistics_of_before_are_refused(base: Path, photos: ImageFolder) -> None:
    with pytest.raises(ProtosegError, match="expected one without statistics"):
        adapt_normalisation(open_file(base), photos)
