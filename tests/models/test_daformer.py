"""DAFormer's decoder: parameters of the paper, the fusion against plain convolutions, alignment of the levels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from protoseg.models.daformer import DAFormerDecoder, SeparableASPP
from protoseg.models.encoders import MiTEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import LinearHead
from protoseg.types import ProtosegError

CHANNELS, STRIDES = [6, 8, 10, 12], [4, 8, 16, 32]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_paper() -> None:
    """3.7 M in the decoder with its classifier, 85.2 M with MiT-B5 (Sec. 3.1 and 4)."""
    with torch.device("meta"):
        decoder = DAFormerDecoder([64, 128, 320, 512], STRIDES)
        head = LinearHead(decoder.out_channels, 19)
    embeddings = (64 + 128 + 320 + 512) * 256 + 4 * 256
    plain = 1024 * 256 + 2 * 256
    separable = 1024 * 9 + 2 * 1024 + 1024 * 256 + 2 * 256
    bottleneck = 4 * 256 * 256 * 9 + 2 * 256
    assert parameters(decoder) == embeddings + plain + 3 * separable + bottleneck == 3_707_392
    assert parameters(decoder) + parameters(head) == 3_712_275
    model = Segmentor(MiTEncoder("b5"), DAFormerDecoder, LinearHead, num_classes=19)
    assert parameters(model) == 85_155_283


def test_fusion_against_plain_convolutions() -> None:
    """Every branch by shifted copies and dense kernels; BatchNorm by its statistics."""
    torch.manual_seed(0)
    fusion = SeparableASPP(5, 4, (1, 2, 3)).double().eval()
    for module in fusion.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                values.data.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    x = torch.randn(2, 5, 7, 9, dtype=torch.double)

    def step(block: nn.Module, x: Tensor, dilation: int = 1) -> Tensor:
        """Convolution by shifted copies, BatchNorm by its statistics, ReLU."""
        conv, norm = block[0], block[1]  # type: ignore[index]
        weight, radius = conv.weight, conv.weight.shape[-1] // 2
        if conv.groups > 1:  # a dense kernel with zeros off the diagonal
            weight = torch.diag_embed(weight[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
        padded = F.pad(x, [radius * dilation] * 4)
        total = torch.zeros((), dtype=x.dtype)
        for i in range(weight.shape[-2]):
            for j in range(weight.shape[-1]):
                shifted = padded[..., i * dilation :, j * dilation :][..., : x.shape[-2], : x.shape[-1]]
                total = total + torch.einsum("oc,bchw->bohw", weight[:, :, i, j], shifted)
        centred = (total - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
        return (centred * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp_min(0)

    plain, two, three = fusion.branches
    outputs = [step(plain, x)]
    outputs += [step(branch[1], step(branch[0], x, d)) for branch, d in ((two, 2), (three, 3))]  # type: ignore[index]
    assert_close(fusion(x), step(fusion.bottleneck, torch.cat(outputs, 1)))


def test_levels_are_embedded_then_upsampled_aligned() -> None:
    torch.manual_seed(0)
    decoder = DAFormerDecoder(CHANNELS, STRIDES, width=4).double().eval()
    decoder.fusion = nn.Identity()  # type: ignore[assignment]
    maps = [torch.randn(1, c, 64 // s, 96 // s, dtype=torch.double) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    joined = decoder(maps)
    assert joined.shape == (1, 16, 16, 24)
    conv = decoder.embeddings[1]
    coarse = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], maps[1]) + conv.bias.view(-1, 1, 1)  # type: ignore[index,operator,union-attr]
    # A fine cell lies a quarter of a coarse one from the nearest centre: 9/16, 3/16, 3/16, 1/16.
    near = coarse[0, :, 2:4, 5:7]
    expected = (9 * near[:, 0, 0] + 3 * near[:, 0, 1] + 3 * near[:, 1, 0] + near[:, 1, 1]) / 16
    assert_close(joined[0, 4:8, 5, 11], expected)


@pytest.mark.parametrize("size", [(33, 70), (64, 64), (1, 1)])
def test_any_image_size_and_gradients_reach_everything(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Segmentor(MiTEncoder("b0"), lambda c, s: DAFormerDecoder(c, s, width=8), LinearHead, num_classes=3)
    logits = model(torch.rand(2, 3, *size)).logits
    assert logits.shape[-2:] == tuple(-(-length // 4) for length in size)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_wrong_maps() -> None:
    with pytest.raises(ProtosegError, match=r"finest map first, got strides \[32, 16, 8, 4\]"):
        DAFormerDecoder(CHANNELS, STRIDES[::-1])
    with pytest.raises(ProtosegError, match=r"one stride per map.*got strides \[4, 8\]"):
        DAFormerDecoder(CHANNELS, [4, 8])
