"""ShuffleNet V2 (Ma et al., ECCV 2018, arXiv 1807.11164) as an encoder, from torchvision."""

from __future__ import annotations

from torch import Tensor
from torchvision.models import get_model

from protoseg.models.encoders import IMAGENET_MEAN, IMAGENET_STD, Encoder


class ShuffleNet(Encoder):
    """Maps at strides 4, 8, 16 and 32 of the classifier's network, without its last convolution.

    Args:
        width: ``x0_5``, ``x1_0``, ``x1_5`` or ``x2_0``.
        pretrained: ImageNet weights from torchvision's server (cached).
    """

    def __init__(self, width: str = "x1_0", pretrained: bool = False) -> None:
        super().__init__()
        network = get_model(f"shufflenet_v2_{width}", weights="DEFAULT" if pretrained else None)
        self.stem, self.pool = network.conv1, network.maxpool
        self.stage2, self.stage3, self.stage4 = network.stage2, network.stage3, network.stage4
        stages = (self.stage2, self.stage3, self.stage4)
        # The last unit of a stage joins two halves, each made by a 1 x 1 convolution and its norm.
        self.channels = [self.stem[0].out_channels, *(2 * stage[-1].branch2[-2].num_features for stage in stages)]
        self.strides = [4, 8, 16, 32]
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised images ``b 3 h w`` to four maps ``b c h/s w/s``, finest first."""
        maps = [self.pool(self.stem(image))]
        for stage in (self.stage2, self.stage3, self.stage4):
            maps.append(stage(maps[-1]))
        return maps
