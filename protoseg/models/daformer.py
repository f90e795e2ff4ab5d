"""DAFormer's decoder: maps of all levels, embedded alike, fused by a context-aware head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation as ConvBnReLU

from protoseg.models.decoders import Ints
from protoseg.types import ProtosegError


class SeparableASPP(nn.Module):
    """Atrous spatial pyramid of depthwise-separable convolutions, without image pooling, and a 3 x 3 bottleneck.

    One branch per dilation: for 1 a 1 x 1 convolution, else a depthwise 3 x 3 at that dilation and a pointwise one
    (Chen et al., DeepLabV3+, arXiv 1802.02611); BatchNorm and ReLU follow every convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, dilations: Ints) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for dilation in dilations:
            branch: nn.Module = ConvBnReLU(in_channels, out_channels, 1)
            if dilation > 1:
                wide = ConvBnReLU(in_channels, in_channels, 3, dilation=dilation, groups=in_channels)
                branch = nn.Sequential(wide, branch)
            self.branches.append(branch)
        self.bottleneck = ConvBnReLU(len(dilations) * out_channels, out_channels, 3)

    def forward(self, feature: Tensor) -> Tensor:
        return self.bottleneck(torch.cat([branch(feature) for branch in self.branches], dim=1))


class DAFormerDecoder(nn.Module):
    """Context-aware multi-level fusion (Hoyer et al., DAFormer, CVPR 2022, arXiv 2111.14887, Sec. 3.1).

    Every map is embedded by a 1 x 1 convolution, brought to the finest map's size and joined to the others; one
    :class:`SeparableASPP` fuses them. With MiT-B5 and 19 classes: 3 707 392 parameters, with a 1 x 1 classifier
    3 712 275, the whole model 85 155 283 (the paper's 3.7 M and 85.2 M). ``width`` is that of each embedding and of the
    result, of which a share of ``dropout`` is dropped while training; ``dilations`` are of the fusion's branches.
    Raises ProtosegError: maps not finest first.
    """

    def __init__(
        self, channels: Ints, strides: Ints, width: int = 256, dilations: Ints = (1, 6, 12, 18), dropout: float = 0.1
    ) -> None:
        super().__init__()
        if list(strides) != sorted(strides) or len(strides) != len(channels):
            got = f"strides {list(strides)} for channels {list(channels)}"
            raise ProtosegError(f"DAFormer decoder: expected one stride per map, finest map first, got {got}")
        self.embeddings = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.fusion = SeparableASPP(len(channels) * width, width, dilations)
        self.dropout = nn.Dropout2d(dropout)
        self.out_channels, self.stride = width, strides[0]

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        embedded = [embed(feature) for embed, feature in zip(self.embeddings, features, strict=True)]
        coarse = [F.interpolate(feature, size, mode="bilinear", align_corners=False) for feature in embedded[1:]]
        return self.dropout(self.fusion(torch.cat([embedded[0], *coarse], dim=1)))
