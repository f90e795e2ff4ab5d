from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from protoseg.evaluation.predictor import Predictor, slide_rows
from protoseg.functional.resize import upsample_logits, upsample_rows
from protoseg.functional.similarity import unknown
from protoseg.types import ProtosegError, SegOutput

SIZES = [(40, 56), (33, 47), (40, 56), (64, 20), (33, 47)]


class Net(nn.Module):
    """A small network with a receptive field and a stride of 4, in fp64 so that equal means equal."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 7, stride=4, padding=3, bias=False).double()
        self.conv.weight.data = torch.randn(self.conv.weight.shape, generator=generator, dtype=torch.float64)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> SegOutput:
        self.calls.append(tuple(image.shape))
        x = image.double() if image.is_floating_point() else image.double() / 255
        logits = self.conv(F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4)))
        return SegOutput(logits, logits)


class Pixelwise(nn.Module):
    """A model without a neighbourhood, at full resolution: the same logits wherever a window lies."""

    stride = 1

    def forward(self, image: Tensor) -> SegOutput:
        x = image.double() / 255
        logits = torch.cat([x, 1 - x.sum(1, keepdim=True)], 1)
        return SegOutput(logits, logits)


def batch(sizes: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images padded with garbage, so that a look at the padding shows."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    image = torch.randint(256, (len(sizes), 3, height, width), generator=generator, dtype=torch.uint8)
    return image, torch.tensor(sizes)


PREDICTORS = [
    Predictor(),
    Predictor("slide", crop_size=24, stride=16),
    Predictor(scales=(0.5, 1.0, 1.5), flip=True),
    Predictor("slide", crop_size=(24, 32), scales=(0.75, 1.0), flip=True),
]


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_results_do_not_depend_on_batch_size(predictor: Predictor) -> None:
    image, size = batch(SIZES)
    model = Net()
    together = predictor(model, image, size)
    labels = predictor.predict(model, image, size)
    for i, (height, width) in enumerate(SIZES):
        alone = predictor(model, image[i : i + 1, :, :height, :width], size[i : i + 1])[0]
        assert alone.shape == (5, height, width)
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-12)
        assert torch.equal(labels[i], alone.argmax(0))


def test_images_of_one_size_run_together() -> None:
    image, size = batch(SIZES)
    model = Net()
    Predictor().predict(model, image, size)
    assert sorted(model.calls) == [(1, 3, 64, 20), (2, 3, 33, 47), (2, 3, 40, 56)]


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_probabilities_sum_to_one_and_agree_with_confidence(predictor: Predictor) -> None:
    image, size = batch(SIZES)
    probabilities = predictor(Net(), image, size)
    for p, (label, confidence, *_) in zip(probabilities, predictor.doubt(Net(), image, size), strict=True):
        torch.testing.assert_close(p.sum(0), torch.ones_like(p[0]))
        torch.testing.assert_close(confidence, p.amax(0))
        assert torch.equal(label, p.argmax(0))
        assert label.dtype == torch.int64


def test_whole_is_the_upsampled_logits() -> None:
    image, size = batch([(40, 56)])
    want = F.interpolate(Net()(image).logits, (40, 56), mode="bilinear", align_corners=False).softmax(1)
    torch.testing.assert_close(Predictor()(Net(), image, size)[0], want[0])


@pytest.mark.parametrize("crop_size", [64, (64, 56), 500])
def test_window_that_holds_the_image_equals_whole(crop_size: int | tuple[int, int]) -> None:
    image, size = batch(SIZES)
    slide, whole = Predictor("slide", crop_size=crop_size), Predictor()
    for a, b in zip(slide(Net(), image, size), whole(Net(), image, size), strict=True):
        assert torch.equal(a, b)


def naive_slide(
    model: Callable[[Tensor], SegOutput], image: Tensor, window: tuple[int, int], step: tuple[int, int]
) -> Tensor:
    height, width = image.shape[2:]
    total = torch.zeros(1, 5, height, width, dtype=torch.float64)
    count = torch.zeros(height, width)
    y = 0
    while True:
        top = min(y, max(height - window[0], 0))
        x = 0
        while True:
            left = min(x, max(width - window[1], 0))
            crop = image[:, :, top : top + window[0], left : left + window[1]]
            area = (slice(top, top + crop.shape[2]), slice(left, left + crop.shape[3]))
            size = (4 * -(-crop.shape[2] // 4), 4 * -(-crop.shape[3] // 4))
            logits = F.interpolate(model(crop).logits, size, mode="bilinear", align_corners=False)
            total[0, :, area[0], area[1]] += logits[0, :, : crop.shape[2], : crop.shape[3]]
            count[area] += 1
            if left + window[1] >= width:
                break
            x += step[1]
        if top + window[0] >= height:
            break
        y += step[0]
    return total / count


@pytest.mark.parametrize(("window", "step"), [((24, 24), (16, 16)), ((16, 60), (16, 7)), ((17, 20), (5, 20))])
def test_slide_matches_naive_loop(window: tuple[int, int], step: tuple[int, int]) -> None:
    image, _ = batch([(40, 56)])
    found = torch.cat([*slide_rows(Net(), image, window, step)], 2)
    torch.testing.assert_close(found, naive_slide(Net(), image, window, step))


def test_every_pixel_is_covered_and_averaged_not_summed() -> None:
    image, size = batch([(40, 56), (31, 45)])
    slide = Predictor("slide", crop_size=(13, 16), stride=(13, 5))
    for a, b in zip(slide(Pixelwise(), image, size), Predictor()(Pixelwise(), image, size), strict=True):
        torch.testing.assert_close(a, b)


def test_windows_run_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    image, size = batch([(40, 56), (40, 56)])
    predictor, model = Predictor("slide", crop_size=24, stride=16), Net()
    want = predictor(model, image, size)
    assert [call[0] for call in model.calls] == [6, 6]  # 2 rows of 3 windows in each of 2 images
    monkeypatch.setattr("protoseg.evaluation.predictor.AT_ONCE", 24 * 24)
    monkeypatch.setattr("protoseg.evaluation.predictor.PIECE", 5 * 2 * 56 * 7)
    for a, b in zip(predictor(model, image, size), want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "predictor", [Predictor(flip=True), Predictor("slide", crop_size=24, scales=(0.75, 1.0), flip=True)]
)
def test_flip_average_is_equivariant(predictor: Predictor) -> None:
    image, size = batch([(33, 47)])
    straight = predictor(Net(), image, size)[0]
    mirrored = predictor(Net(), image.flip(-1), size)[0]
    torch.testing.assert_close(mirrored.flip(-1), straight, rtol=0, atol=1e-6)
    plain = Predictor()
    assert not torch.allclose(plain(Net(), image.flip(-1), size)[0].flip(-1), plain(Net(), image, size)[0])


def test_scales_average_the_probabilities_of_resized_images() -> None:
    image, size = batch([(40, 56)])
    want = torch.zeros(5, 40, 56, dtype=torch.float64)
    for side in [(20, 28), (60, 84)]:
        x = F.interpolate(image.float(), side, mode="bilinear", align_corners=False).round().byte()
        trained_on = cv2.resize(image[0].permute(1, 2, 0).numpy(), side[::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(x[0].permute(1, 2, 0).numpy().astype(int) - trained_on).max() <= 1  # no antialiasing in either
        logits = F.interpolate(Net()(x).logits, side, mode="bilinear", align_corners=False)
        want += F.interpolate(logits, (40, 56), mode="bilinear", align_corners=False).softmax(1)[0] / 2
    torch.testing.assert_close(Predictor(scales=(0.5, 1.5))(Net(), image, size)[0], want)


def test_single_scale_other_than_one_resizes() -> None:
    image, size = batch([(40, 56)])
    model = Net()
    assert Predictor(scales=(0.5,)).predict(model, image, size)[0].shape == (40, 56)
    assert model.calls == [(1, 3, 20, 28)]


def test_half_precision_logits_are_upsampled_in_fp32() -> None:
    image, size = batch([(40, 56)])
    net = Net()

    class Half(Net):
        def forward(self, image: Tensor) -> SegOutput:
            logits = net(image).logits.bfloat16()
            return SegOutput(logits, logits)

    got = Predictor()(Half(), image, size)[0]
    assert got.dtype == torch.float32
    low = net(image).logits.bfloat16().float()
    want = F.interpolate(low, (40, 56), mode="bilinear", align_corners=False).softmax(1)[0]
    torch.testing.assert_close(got, want)


def test_no_gradient_is_kept() -> None:
    image, size = batch([(16, 16)])
    assert not Predictor()(Net(), image, size)[0].requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "tiles"}, "mode: expected one of auto, whole, slide, got 'tiles'"),
        ({"crop_size": 512}, "no crop_size and no stride with mode=auto.*set mode=slide"),
        ({"mode": "slide"}, "crop_size: expected a size with mode=slide"),
        ({"mode": "slide", "crop_size": (32, 64), "stride": (32, 65)}, "at most the crop size.*between the windows"),
        ({"mode": "slide", "crop_size": 0}, "crop_size: expected a positive integer"),
        ({"mode": "slide", "crop_size": (1, 2, 3)}, r"crop_size: expected a positive integer or \(height, width\)"),
        ({"mode": "slide", "crop_size": 32, "stride": 1.5}, "stride: expected a positive integer"),
        ({"scales": ()}, "scales: expected a list of positive numbers"),
        ({"scales": (1.0, 0.0)}, "scales: expected a list of positive numbers"),
        ({"scales": 1.0}, "scales: expected a list of positive numbers"),
    ],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(ProtosegError, match=message):
        Predictor(**settings)


@pytest.mark.parametrize("align_corners", [False, True])
def test_rows_are_those_of_the_whole(align_corners: bool) -> None:
    logits = torch.randn(2, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = upsample_logits(logits, (34, 26), 4, align_corners)
    for rows in ((0, 5), (5, 6), (6, 34)):
        found = upsample_rows(logits, rows, (34, 26), 4, align_corners)
        torch.testing.assert_close(found, whole[:, :, slice(*rows)])


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 24 x 24 pixels were the most that goes through the network at once."""
    for name, value in (("AT_ONCE", 24 * 24), ("WINDOW", 24), ("OVERLAP", 8), ("PIECE", 600)):
        monkeypatch.setattr(f"protoseg.evaluation.predictor.{name}", value)


def test_auto_takes_windows_of_large_images_alone(small_windows: None) -> None:
    image, size = batch([(40, 56), (24, 24)])
    model = Net()
    large, small = Predictor()(model, image, size)
    torch.testing.assert_close(small, Predictor("whole")(Net(), image, size)[1])
    for (top, rows), (left, columns) in product(
        [(0, slice(0, 20)), (16, slice(20, 40))], [(0, slice(0, 20)), (16, slice(20, 36)), (32, slice(36, 56))]
    ):
        window = image[:1, :, top : top + 24, left : left + 24]
        whole = Predictor("whole")(Net(), window, torch.tensor([[24, 24]]))[0]
        inner = whole[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        torch.testing.assert_close(large[:, rows, columns], inner)
    assert max(height * width * n for n, _, height, width in model.calls) == 24 * 24


def test_averages_of_a_large_image_are_joined_from_windows(small_windows: None) -> None:
    image, size = batch([(40, 57)])
    found = Predictor(flip=True).doubt(Pixelwise(), image, size)[0]
    label, confidence, *_ = Predictor("whole", flip=True).doubt(Pixelwise(), image, size)[0]
    assert torch.equal(found[0], label)
    torch.testing.assert_close(found[1], confidence)


class Largest(TorchDispatchMode):
    """Watches how many numbers the largest tensor of all has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 8)
        return result


def test_no_scores_of_a_whole_large_image(small_windows: None) -> None:
    image, size = batch([(160, 120)])
    with Largest() as watch:
        Predictor().predict(Net(), image, size)
    assert watch.numbers < 5 * 160 * 120 / 2  # fp64 scores of 5 classes


@pytest.mark.parametrize("name", ["auto", "whole", "slide", "multiscale"])
def test_configs_instantiate(name: str) -> None:
    conf = Path(__file__).parents[2] / "conf" / "inference" / f"{name}.yaml"
    predictor = instantiate(OmegaConf.load(conf))
    assert isinstance(predictor, Predictor)
    assert predictor.averages == (name == "multiscale")
    assert (predictor.crop_size is not None) == (name == "slide")


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_doubt_is_all_that_is_said_of_an_image(predictor: Predictor) -> None:
    image, size = batch(SIZES)
    for found, p in zip(predictor.doubt(Net(), image, size, True), predictor(Net(), image, size), strict=True):
        torch.testing.assert_close(found.probabilities, p)
        torch.testing.assert_close(found.confidence, p.amax(0))
        assert torch.equal(found.label, p.argmax(0))
        assert found.unknown.shape == p.shape[1:]
    assert predictor.doubt(Net(), image, size)[0].probabilities is None


def test_unknown_is_upsampled_as_logits_are() -> None:
    image, size = batch([(40, 56)])
    want = upsample_logits(unknown(Net()(image)), (40, 56), 4)[0, 0]
    torch.testing.assert_close(Predictor().doubt(Net(), image, size)[0].unknown, want, check_dtype=False)
