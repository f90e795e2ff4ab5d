"""Any network as the encoder of a segmentor: one's own, or of another library."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from protoseg.functional.resize import grid_size, image_size, pad_to_multiple
from protoseg.models.encoders import Encoder
from protoseg.models.segmentor import crop_to_grid
from protoseg.models.weights import mismatch
from protoseg.types import ProtosegError


def inside(network: nn.Module, image: Tensor, names: Sequence[str]) -> tuple[dict[str, Any], list[Any]]:
    """What submodules gave, by name, and what the network gave: ``.logits``, a dictionary's ``out``, or maps."""
    found: dict[str, Any] = {}
    with ExitStack() as hooks:
        for name in names:
            keep = network.get_submodule(name).register_forward_hook
            hooks.enter_context(keep(lambda module, inputs, out, name=name: found.update({name: out})))
        out = network(image)
    out = out.get("out", out) if isinstance(out, Mapping) else out
    out = getattr(out, "logits", out)
    return found, [*out] if isinstance(out, (list, tuple)) else [out]


class NetworkEncoder(Encoder):
    """The maps of any network, the last one for ``decoder=none`` and a head.

    Args:
        network: images ``b 3 h w`` to ``b channels h/stride w/stride``, sides rounded up: a tensor, an object's
            ``.logits``, a dictionary's ``out``, or a list of maps.
        channels, stride: of its map; or lists of these, of the maps of ``features`` before.
        multiple: images are padded (bottom, right) to sides that are multiples of it, and the map is cropped.
        mean, std: of red, green and blue; it sees float in [0, 1] unless they are given.
        features: names of submodules, whose maps come first.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        multiple: int = 32,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        features: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network, self.multiple, self.features = network, multiple, list(features)
        self.channels, self.strides = ([x] if isinstance(x, int) else list(x) for x in (channels, stride))
        self.set_input(mean, std)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised images to the maps; raises ProtosegError where they are of another form than was said."""
        padded = pad_to_multiple(image, self.multiple)
        found, given = inside(self.network, padded, self.features)
        maps = [*(found.get(name) for name in self.features), *given]
        size, forms = image_size(padded), zip(self.channels, self.strides, strict=True)
        want = [(len(image), depth, *grid_size(size, stride)) for depth, stride in forms]
        got = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in maps]
        if got != want:
            text = f"expected a map of {str(want)[1:-1]} for images of {tuple(padded.shape)}, got {str(got)[1:-1]}"
            raise ProtosegError(f"{type(self.network).__name__}: {text}; set channels and stride as it gives them")
        return [crop_to_grid(x, image_size(image), stride) for x, stride in zip(maps, self.strides, strict=True)]

    def config(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The section ``encoder`` that makes it again; raises ProtosegError where ``arguments`` make another."""
        kind = type(self.network)
        try:
            with torch.device("meta"):
                reason = mismatch(self.network.state_dict(), kind(**arguments).state_dict())
        except Exception as error:  # a constructor of anybody's
            reason = f"{type(error).__name__}: {error}"
        if reason:
            wanted = "arguments={name: plain value} that make the same network again"
            text = f"{kind.__name__}: expected {wanted}, got {dict(arguments)} ({reason[:300]})"
            raise ProtosegError(f"{text}; give what it was made of, or make it in a class of your own")
        return {
            "_target_": "protoseg.models.own.NetworkEncoder",
            "network": {"_target_": f"{kind.__module__}.{kind.__qualname__}", **arguments},
            **{"channels": self.channels, "stride": self.strides, "multiple": self.multiple},
            **{"mean": list(self.mean), "std": list(self.std), "features": self.features},
        }
