"""Any network as the encoder of a segmentor: one's own, or of another library."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protoseg.functional.resize import grid_size, pad_to_multiple
from protoseg.models.encoders import Encoder
from protoseg.models.segmentor import crop_to_grid, image_size
from protoseg.models.weights import mismatch
from protoseg.types import ProtosegError


class NetworkEncoder(Encoder):
    """The map of any network, a tensor or an object's ``.logits``, for ``decoder=none`` and a head.

    Args:
        network: images ``b 3 h w`` to ``b channels h/stride w/stride``, sides rounded up.
        channels, stride: of its map.
        multiple: images are padded (bottom, right) to sides that are multiples of it, and the map is cropped.
        mean, std: of red, green and blue; it sees float in [0, 1] unless they are given.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: int,
        stride: int = 1,
        multiple: int = 32,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.network, self.channels, self.strides, self.multiple = network, [channels], [stride], multiple
        self.set_input(mean, std)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised images to the one map; raises ProtosegError where it is of another form than was said."""
        padded, stride = pad_to_multiple(image, self.multiple), self.strides[0]
        out = self.network(padded)
        feature: Any = getattr(out, "logits", out)
        want = (len(image), self.channels[0], *grid_size(image_size(padded), stride))
        if not isinstance(feature, Tensor) or feature.shape != want:
            got = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise ProtosegError(
                f"{type(self.network).__name__}: expected a map of {want} for images of {tuple(padded.shape)}, got "
                f"{got}; set channels={self.channels[0]} and stride={stride} as it gives them"
            )
        return [crop_to_grid(feature, image_size(image), stride)]

    def config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The section ``encoder`` that makes it again; raises ProtosegError where ``arguments`` make another."""
        kind = type(self.network)
        try:
            with torch.device("meta"):
                reason = mismatch(self.network.state_dict(), kind(**arguments).state_dict())
        except Exception as error:  # a constructor of anybody's
            reason = f"{type(error).__name__}: {error}"
        if reason:
            raise ProtosegError(
                f"{kind.__name__}: expected arguments={{name: plain value}} that make the same network again, got "
                f"{dict(arguments)} ({reason[:300]}); give what it was made of, or make it in a class of your own"
            )
        return {
            "_target_": "protoseg.models.own.NetworkEncoder",
            "network": {"_target_": f"{kind.__module__}.{kind.__qualname__}", **arguments},
            **{"channels": self.channels[0], "stride": self.strides[0], "multiple": self.multiple},
            **{"mean": list(self.mean), "std": list(self.std)},
        }
