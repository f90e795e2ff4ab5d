"""Decoders: the encoder's maps become one embedding map; no classifier (that is the head's).

All take ``(channels, strides)`` of the encoder's maps, have ``out_channels`` and ``stride`` of what they return, and
``forward(features, finest first) -> b d h w``. UPerNet, DeepLabV3+ pool to one cell before a BatchNorm: they need a
batch of two or more (per process) while training, and raise ProtosegError for one.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder as SmpDeepLabV3Plus
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder as SmpFPN
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder as SmpSegFormer
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder as SmpUNet
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder as SmpUNetPlusPlus
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder as SmpUPerNet
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation as ConvBnReLU

from protoseg.types import ProtosegError

Ints = Sequence[int]


def _bilinear(factor: int) -> nn.Module:
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)


def _check_strides(name: str, strides: Ints) -> None:
    if list(strides) != [4, 8, 16, 32]:
        text = f"{name} decoder: expected maps at strides [4, 8, 16, 32], got {list(strides)}"
        raise ProtosegError(f"{text}; use decoder=segformer, upernet, hrnet or deeplabv3plus with this encoder")


class FPNDecoder(nn.Module):
    """Panoptic feature pyramid (Kirillov et al., arXiv 1901.02446).

    ``segmentation_channels`` is the width of the result, a multiple of 32 (GroupNorm's groups); a share of ``dropout``
    of these is dropped while training. Raises ProtosegError: strides other than 4, 8, 16, 32; another width.
    """

    def __init__(
        self,
        channels: Ints,
        strides: Ints,
        pyramid_channels: int = 256,
        segmentation_channels: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check_strides("FPN", strides)
        if segmentation_channels % 32:
            got = segmentation_channels
            raise ProtosegError(f"decoder.segmentation_channels: expected a multiple of 32, got {got}")
        self.decoder = SmpFPN(list(channels), 4, pyramid_channels, segmentation_channels, dropout)
        # The library doubles with align_corners=True, which shifts the coarse maps by up to half a cell against the
        # fine ones, by an amount that depends on the image's size (so training crops and whole images disagree).
        for branch in self.decoder.seg_blocks:
            layers: list[nn.Module] = []
            for conv in branch.block:
                layers += [conv, _bilinear(2)] if conv.upsample else [conv]
                conv.upsample = False
            branch.block = nn.Sequential(*layers)
        self.out_channels, self.stride = segmentation_channels, strides[0]

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.decoder(features)


class UNetDecoder(nn.Module):
    """U-Net (Ronneberger et al., arXiv 1505.04597) or, ``nested``, UNet++ (Zhou et al., arXiv 1807.10165).

    ``widths`` are those of its maps at strides 16, 8, 4, 2 and, if there is a fifth, 1; it ends at the last of them. At
    2 and 1 the encoder has no map to join. Raises ProtosegError: strides other than 4, 8, 16, 32; fewer or more widths.
    """

    def __init__(self, channels: Ints, strides: Ints, widths: Ints = (256, 128, 64, 32), nested: bool = False) -> None:
        super().__init__()
        _check_strides("U-Net", strides)
        if len(widths) not in (4, 5):
            raise ProtosegError(f"decoder.widths: expected 4 numbers (to stride 2) or 5 (to stride 1), got {[*widths]}")
        self.out_channels, self.stride = widths[-1], 2 ** (5 - len(widths))
        kind = SmpUNetPlusPlus if nested else SmpUNet
        self.decoder = kind([0, 0, *channels][self.stride - 1 :], [*widths], len(widths))

    def forward(self, features: list[Tensor]) -> Tensor:
        batch, _, height, width = features[0].shape
        # the library reads sizes off the maps that an encoder of its own has at strides 1 and 2; ours are empty
        empty = [features[0].new_empty(batch, 0, factor * height, factor * width) for factor in (4, 2)]
        return self.decoder([*empty, *features][self.stride - 1 :])


class _PoolingDecoder(nn.Module):
    """One of the library's that pools; it counts two maps (image, stride 2) before ours, and leaves them unused."""

    decoder: nn.Module

    def forward(self, features: list[Tensor]) -> Tensor:
        together = any(isinstance(module, nn.SyncBatchNorm) for module in self.modules())
        if self.training and len(features[0]) == 1 and not together:
            wanted = "two images or more in a batch while training, for it normalises one cell of each by the batch"
            remedy = "set data.batch_size=2, or use decoder=fpn, segformer or fcn"
            raise ProtosegError(f"{type(self).__name__}: expected {wanted}, got 1; {remedy}")
        return self.decoder([features[0], features[0], *features])


class UPerNetDecoder(_PoolingDecoder):
    """Pyramid pooling and top-down fusion (Xiao et al., UPerNet, arXiv 1807.10221), ``width`` channels throughout."""

    def __init__(self, channels: Ints, strides: Ints, width: int = 256) -> None:
        super().__init__()
        self.decoder = SmpUPerNet(encoder_channels=[0, 0, *channels], encoder_depth=5, decoder_channels=width)
        self.out_channels, self.stride = width, strides[0]


class SegFormerDecoder(nn.Module):
    """All-MLP decoder (Xie et al., SegFormer, arXiv 2105.15203), ``width`` channels throughout.

    ``embedding_norm`` puts BatchNorm and ReLU after the embedding of each map, as mmsegmentation does.
    """

    def __init__(self, channels: Ints, strides: Ints, width: int = 256, embedding_norm: bool = False) -> None:
        super().__init__()
        self.decoder = SmpSegFormer(encoder_channels=[3, 0, *channels], segmentation_channels=width)
        if embedding_norm:
            self.decoder.mlp_stage = nn.ModuleList(ConvBnReLU(c, width, 1) for c in reversed(channels))
        self.out_channels, self.stride = width, strides[0]

    def forward(self, features: list[Tensor]) -> Tensor:
        batch, _, height, width = features[0].shape
        # the library reads the target size, a quarter of the image's, off a map that it does not use otherwise
        image = features[0].new_empty(batch, 0, 4 * height, 4 * width)
        return self.decoder([image, image, *features])


class DeepLabV3PlusDecoder(_PoolingDecoder):
    """Atrous pyramid on the coarsest map, fused with the finest (Chen et al., DeepLabV3+, arXiv 1802.02611).

    The paper's encoder stops at stride 16 (``encoder.output_stride=16`` where timm offers it); 32 works as well.
    ``atrous_rates`` are the dilations of the pyramid's three 3 x 3 convolutions (the paper's for stride 16).
    """

    def __init__(
        self, channels: Ints, strides: Ints, width: int = 256, atrous_rates: Ints = (6, 12, 18), dropout: float = 0.1
    ) -> None:
        super().__init__()
        pooling = {"output_stride": 16, "aspp_separable": True, "aspp_dropout": dropout}
        self.decoder = SmpDeepLabV3Plus([0, 0, *channels], 5, width, atrous_rates, **pooling)
        # the library's own upsampling is x4 whatever the strides, and not aligned (see FPNDecoder)
        self.decoder.up = _bilinear(strides[-1] // strides[0])
        self.out_channels, self.stride = width, strides[0]


def _plain_stride(strides: Ints, factor: int) -> int:
    """That of the maps of a plain ViT, which all have one, after upsampling; raises ProtosegError for other maps."""
    if len(set(strides)) > 1 or strides[0] % factor:
        raise ProtosegError(
            f"SETR and Segmenter decoders: expected maps of one stride, a multiple of {factor}, got {list(strides)}; "
            "use a plain ViT without its pyramid (encoder=vit_small encoder.pyramid_channels=null), or another decoder"
        )
    return strides[0] // factor


class FCNDecoder(nn.Module):
    """Convolutions on one map (Long et al., arXiv 1411.4038, in the form of PSPNet's and mmseg's FCN head).

    ``num_convs`` of ``width`` channels on map ``in_index`` (−1 is the coarsest); ``concat_input`` joins the input to
    their result by one more; a share of ``dropout`` of the channels is dropped while training. With ``plain``, of a
    plain ViT, whose map is normalised over its channels before: after each convolution of side ``kernel`` comes
    bilinear upsampling by ``factor``. One of 1 x 1 and a factor of 4 are SETR's naive decoder, four of 3 x 3 and of 2
    its progressive one (Zheng et al., CVPR 2021, arXiv 2012.15840, Sec. 3.2, as in mmsegmentation); none, before a
    linear head, Segmenter's linear decoder (Strudel et al., ICCV 2021, arXiv 2105.05633). Raises ProtosegError: no map
    of that index; with ``plain``, maps of several strides, or of one that the factors do not divide.
    """

    def __init__(
        self,
        channels: Ints,
        strides: Ints,
        in_index: int = -1,
        width: int = 256,
        num_convs: int = 2,
        concat_input: bool = False,
        dropout: float = 0.1,
        plain: bool = False,
        kernel: int = 3,
        factor: int = 1,
    ) -> None:
        super().__init__()
        if not -len(channels) <= in_index < len(channels):
            raise ProtosegError(f"in_index: expected one of the encoder's {len(channels)} maps, got {in_index}")
        self.in_index = in_index
        self.norm = LayerNorm2d(channels[in_index]) if plain else nn.Identity()
        widths = [channels[in_index]] + [width] * num_convs
        convs = (ConvBnReLU(a, b, kernel) for a, b in pairwise(widths))
        self.convs = nn.Sequential(*(conv.append(_bilinear(factor)) if plain else conv for conv in convs))
        self.join = ConvBnReLU(channels[in_index] + widths[-1], width) if concat_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.out_channels = width if concat_input else widths[-1]
        self.stride = _plain_stride(strides, factor**num_convs) if plain else strides[in_index]

    def forward(self, features: list[Tensor]) -> Tensor:
        feature = self.norm(features[self.in_index])
        embedding = self.convs(feature)
        if self.join is not None:
            embedding = self.join(torch.cat([feature, embedding], dim=1))
        return self.dropout(embedding)


class SETRMLADecoder(nn.Module):
    """SETR's multi-level aggregation: maps of a plain ViT's layers, summed from the last one back, convolved, joined.

    Each sum passes three 3 x 3 convolutions, of ``width`` and twice of ``level_width``, and is upsampled by 4. Source
    and errors as of ``plain`` in :class:`FCNDecoder`; the paper's layers are every sixth of 24.
    """

    def __init__(self, channels: Ints, strides: Ints, width: int = 256, level_width: int = 128) -> None:
        super().__init__()
        self.out_channels, self.stride = len(channels) * level_width, _plain_stride(strides, 4)
        widths = (width, width, level_width, level_width)
        self.embeddings = nn.ModuleList(nn.Sequential(LayerNorm2d(c), ConvBnReLU(c, width, 1)) for c in channels)
        levels = (nn.Sequential(*(ConvBnReLU(a, b) for a, b in pairwise(widths)), _bilinear(4)) for _ in channels)
        self.levels = nn.ModuleList(levels)

    def forward(self, features: list[Tensor]) -> Tensor:
        embedded = [embed(feature) for embed, feature in zip(self.embeddings, features, strict=True)]
        sums = accumulate(reversed(embedded))
        return torch.cat([level(total) for level, total in zip(self.levels, sums, strict=True)], dim=1)


class HRNetDecoder(nn.Module):
    """All maps at the finest resolution, concatenated (720 channels for HRNet-W48), then one 3 x 3 convolution.

    The released ProtoSeg ``cls_head``. It resizes with ``align_corners=True``; False keeps grids aligned at any size.
    """

    def __init__(self, channels: Ints, strides: Ints, dropout: float = 0.1, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.out_channels, self.stride = sum(channels), strides[0]
        self.fuse = nn.Sequential(ConvBnReLU(self.out_channels, self.out_channels), nn.Dropout2d(dropout))

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        coarse = [F.interpolate(f, size, mode="bilinear", align_corners=self.align_corners) for f in features[1:]]
        return self.fuse(torch.cat([features[0], *coarse], dim=1))


class AuxiliaryHead(nn.Sequential):
    """A small FCN with its own classifier on map ``in_index``: class logits ``b c h w`` for an auxiliary loss."""

    def __init__(self, channels: Ints, strides: Ints, num_classes: int, in_index: int = 2, width: int = 256) -> None:
        decoder = FCNDecoder(channels, strides, in_index, width, num_convs=1)
        classifier = nn.Conv2d(decoder.out_channels, num_classes, 1)
        super().__init__(OrderedDict(decoder=decoder, classifier=classifier))
