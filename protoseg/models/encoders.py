"""Encoders: an image becomes four maps at strides 4, 8, 16 and 32."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from protoseg.functional.resize import grid_size, image_size, pad_to_multiple
from protoseg.models.adapters import adapt, refine
from protoseg.models.recompute import recompute_blocks
from protoseg.models.weights import adapt_first_layer, check_match, downloading, load_timm_weights, read_weights
from protoseg.types import ProtosegError, check_choice, first_line, told, yaml_beside

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIT_VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5")

_FAMILIES: dict[str, Any] = yaml_beside(__file__, "encoders.yaml")


class Encoder(nn.Module):
    """``forward(image b c h w, normalised) -> list of maps b c h/s w/s``, finest first; h, w multiples of max(strides).

    Attributes:
        channels, strides: of each map.
        mean, std: what the image must be normalised by, for pixels in [0, 1].
    """

    channels: list[int]
    strides: list[int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: nn.Module  # what has pretrained weights
    frozen = False
    patch = 1  # images are padded (bottom, right) to multiples of it

    def freeze(self) -> None:
        """Weights and BatchNorm statistics of ``model`` stay as they are: it is in eval mode, also in training."""
        self.frozen = True
        self.model.requires_grad_(False).eval()

    def frozen_maps(self, image: Tensor) -> list[Tensor]:
        """Of a frozen encoder all that never changes for an image: what ``forward`` makes before anything learns."""
        return self(image)

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        """What ``forward`` makes of an image, from its :meth:`frozen_maps`."""
        return maps

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def set_input(self, mean: Sequence[float], std: Sequence[float], channels: int = 3) -> None:
        """Set ``mean`` and ``std``; raises ProtosegError unless there is a number for each channel, of std above 0."""
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            wanted = f"{channels} numbers each (of each channel, pixels in [0, 1]), std above 0"
            raise ProtosegError(f"encoder.mean, encoder.std: expected {wanted}, got {list(mean)} and {list(std)}")


class SimpleFeaturePyramid(nn.Module):
    """Maps at strides 4, 8, 16, 32 from the single map of a plain ViT (Li et al., ViTDet, arXiv 2203.16527, §3).

    ``stride`` is that of the ViT's map, a power of two; ``out_channels`` are those of each of the four maps.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, in_channels: int, stride: int, out_channels: int = 256) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for target in self.strides:
            layers: list[nn.Module] = [nn.MaxPool2d(target // stride)] if stride < target else []
            width = in_channels
            for _ in range(stride.bit_length() - target.bit_length()):  # both are powers of two
                # the paper halves the width at each doubling of the resolution
                layers += [nn.ConvTranspose2d(width, width // 2, 2, stride=2), LayerNorm2d(width // 2), nn.GELU()]
                width //= 2
            layers += [nn.Conv2d(width, out_channels, 1, bias=False), LayerNorm2d(out_channels)]
            layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
            self.stages.append(nn.Sequential(*layers))

    def forward(self, feature: Tensor) -> list[Tensor]:
        return [stage(feature) for stage in self.stages]


class TimmEncoder(Encoder):
    """Any timm model that gives feature maps, by name: CNN, ConvNeXt, HRNet, Swin, and plain ViT through a pyramid.

    A plain ViT whose patch is no power of two (DINOv2: 14) sees the image padded with zeros to whole patches; its maps
    are resampled to stride 16, every cell on its own pixels, and cut to the image: strides are like everyone else's.

    Args:
        name: timm model name, with or without a tag (``resnet50``, ``resnet50.a1_in1k``).
        pretrained: ImageNet weights, see ``protoseg.models.weights.load_timm_weights``.
        weights: local weights file (``.pth``, ``.safetensors``); goes before ``pretrained``.
        pyramid_channels: width of each map of a plain ViT's pyramid; other models keep their own widths. None: no
            pyramid, but the ViT's own maps after each quarter of its blocks, all of one stride.
        grad_checkpointing: see :func:`protoseg.models.recompute.recompute_blocks`.
        freeze: what has pretrained weights (not a plain ViT's pyramid) stays as it is, see :meth:`Encoder.freeze`.
        lora_rank: see :func:`protoseg.models.adapters.adapt`.
        rein_tokens: see :func:`protoseg.models.adapters.refine`; one of it, ``lora_rank`` and ``freeze`` at most.
        fuse_align_corners: of HRNet: its branches go to the finer ones bilinear with align_corners=True, as in the
            original code and the released ProtoSeg; timm takes the nearest cell.
        mean, std: of red, green and blue in [0, 1], where they are not those that timm states.
        in_chans: channels of the image; pretrained weights of RGB are adapted to others as timm does.
        timm_kwargs: passed to the timm model (``drop_path_rate``, ``output_stride``, ...); nothing about its weights.

    Raises ProtosegError: unknown name; a model without the four maps or for one image size only; options timm refuses;
    weights that do not fit; ``grad_checkpointing`` of a model that is not made of blocks.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | Path | None = None,
        pyramid_channels: int | None = 256,
        grad_checkpointing: bool = False,
        freeze: bool = False,
        lora_rank: int | None = None,
        rein_tokens: int | None = None,
        fuse_align_corners: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        in_chans: int = 3,
        **timm_kwargs: Any,
    ) -> None:
        super().__init__()
        chosen = {"freeze": freeze or None, "lora_rank": lora_rank, "rein_tokens": rein_tokens}
        if sum(value is not None for value in chosen.values()) > 1:
            raise ProtosegError(f"encoder: expected one of {', '.join(chosen)} at most, got {chosen}; leave others out")
        if not timm.is_model(name):
            near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5, cutoff=0.5)
            text = f"encoder.name: expected one of timm.list_models(), got {name!r}"
            raise ProtosegError(f"{text}; nearest: {', '.join(near) or 'none'}")
        for option in timm_kwargs:
            if option.startswith("pretrained") or option in ("checkpoint_path", "cache_dir"):
                text = f"encoder.{option}: expected an option of the network, got one of its weights"
                raise ProtosegError(f"{text}; use encoder.weights=FILE or encoder.pretrained")
        family = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
        any_size, of_features = (_FAMILIES[kind].get(family, {}) for kind in ("any_size", "features"))
        options = any_size | timm_kwargs | ({} if in_chans == 3 else {"in_chans": in_chans})
        text = f"encoder {name!r}: timm cannot build it for feature maps with options {of_features | options}"
        remedy = "choose another encoder or correct the options"
        with told(lambda error: f"{text}: {first_line(error)}; {remedy}", Exception):  # whatever its model raises
            self.model = timm.create_model(name, pretrained=False, features_only=True, **of_features | options)
        config: Any = self.model.pretrained_cfg
        self.set_input(mean or config["mean"], std or config["std"], in_chans)
        if weights is not None or pretrained:
            seen = {"mean": self.mean, "std": self.std, "fuse_align_corners": fuse_align_corners}
            load_timm_weights(self.model, name, weights, options, **seen)
        if config.get("fixed_input_size") and not (any_size or "img_size" in timm_kwargs):
            _check_any_size(name, self.model, in_chans)
        if fuse_align_corners:
            if not (fusions := [module for module in self.model.modules() if isinstance(module, nn.Upsample)]):
                raise ProtosegError(f"encoder.fuse_align_corners: expected an HRNet, got {name!r}; leave it out")
            for fusion in fusions:
                fusion.mode, fusion.align_corners = "bilinear", True

        info: Any = self.model.feature_info
        strides, channels = info.reduction(), info.channels()
        self.pyramid: SimpleFeaturePyramid | None = None
        if len(set(strides)) == 1:
            self.patch = strides[-1]
            self.patch_stride = 2 ** round(math.log2(self.patch))
            getter: Any = self.model
            depth, quarters = max(getter.out_indices) + 1, (1, 2, 3, 4) if pyramid_channels is None else (4,)
            getter.out_indices = sorted({max(0, depth * quarter // 4 - 1) for quarter in quarters})
            self.channels = channels[-1:] * len(getter.out_indices)
            self.strides = [self.patch_stride] * len(self.channels)
            if pyramid_channels is not None:
                self.pyramid = SimpleFeaturePyramid(channels[-1], self.patch_stride, pyramid_channels)
                self.channels, self.strides = [pyramid_channels] * 4, list(self.pyramid.strides)
        else:
            self.channels, self.strides = channels[-4:], strides[-4:]
            if self.strides[:1] != [4] or len(self.strides) < 4:
                raise ProtosegError(f"encoder {name!r}: expected strides 4, 8, 16, 32, got {strides}; choose another")
        if grad_checkpointing:
            recompute_blocks(self.model, name)
        if lora_rank is not None:
            adapt(self.model, lora_rank, name)
        self.rein = None if rein_tokens is None else refine(getattr(self.model, "model", None), rein_tokens, name)
        if freeze:
            self.freeze()

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.from_frozen(self.frozen_maps(image))

    def from_frozen(self, maps: list[Tensor]) -> list[Tensor]:
        return maps if self.pyramid is None else self.pyramid(maps[-1])

    def frozen_maps(self, image: Tensor) -> list[Tensor]:
        if self.patch == 1:
            maps = self.model(image)[-4:]
            if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC"):
                maps = [feature.permute(0, 3, 1, 2) for feature in maps]
            return maps
        maps = self.model(image) if self.patch == self.patch_stride else self._on_grid(image)
        return maps if self.pyramid is None else maps[-1:]

    def _on_grid(self, image: Tensor) -> list[Tensor]:
        """Maps of the image, padded to whole patches, on cells of ``patch_stride`` pixels instead of ``patch``."""
        given, cells = (grid_size(image_size(image), side) for side in (self.patch, self.patch_stride))
        rows, columns = (self._weights(new, old, image) for new, old in zip(cells, given, strict=True))
        maps = self.model(pad_to_multiple(image, self.patch))
        return [rows.to(feature.dtype) @ feature @ columns.T.to(feature.dtype) for feature in maps]

    def _weights(self, cells: int, given: int, image: Tensor) -> Tensor:
        """Of given cells in each new one, bilinear, ``cells given``: an exporter can follow products, but no cut."""
        new, old = (torch.arange(number, device=image.device, dtype=torch.float32) for number in (cells, given))
        at = ((new + 0.5) * self.patch_stride / self.patch - 0.5).clamp(0, given - 1)
        return (1 - (at[:, None] - old).abs()).clamp_min(0)


@torch.no_grad()
def _check_any_size(name: str, model: nn.Module, channels: int) -> None:
    # timm's flag for one input size only is also set on models that take any: so try, where it is set
    text = f"encoder {name!r} takes images of one size only"
    remedy = "choose another encoder, or give that size as encoder.img_size=[HEIGHT,WIDTH] (multiples of 32)"
    with told(lambda error: f"{text} ({first_line(error)}); {remedy} and feed no other", AssertionError, RuntimeError):
        model.eval()(torch.zeros(1, channels, 64, 96))
    model.train()


class _NumbersReadable(TorchFunctionMode):
    """Where tensors are made without numbers (``torch.device("meta")``), the library reads some of this function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}), **({"device": "cpu"} if func is torch.linspace else {}))


class MiTEncoder(Encoder):
    """Mix Transformer of SegFormer (Xie et al., arXiv 2105.15203), from segmentation-models-pytorch.

    ``pretrained`` takes ImageNet weights from segmentation-models-pytorch's hub (cached), ``weights`` a local file in
    SegFormer's names; mean and std are ImageNet's unless given. All else is as of :class:`TimmEncoder`. Raises
    ProtosegError: unknown variant, weights that do not fit or cannot be fetched.
    """

    def __init__(
        self,
        variant: str = "b0",
        pretrained: bool = False,
        weights: str | Path | None = None,
        grad_checkpointing: bool = False,
        freeze: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_choice("encoder.variant", variant, MIT_VARIANTS)
        self.set_input(mean or IMAGENET_MEAN, std or IMAGENET_STD, in_chans)
        name, published = f"mit_{variant}", "imagenet" if pretrained and weights is None else None
        with downloading(name), _NumbersReadable():
            self.model = get_encoder(name, in_channels=in_chans, weights=published)
        if weights is not None:
            state, expected = read_weights(weights, mean=self.mean, std=self.std), self.model.state_dict()
            state = {key: value for key, value in state.items() if not key.startswith("head.")}  # the classifier
            adapt_first_layer(state, expected)
            check_match(state, expected, expected, f"weights file {weights}")
            self.model.load_state_dict(state)
        out_channels: Any = self.model.out_channels
        self.channels, self.strides = list(out_channels[-4:]), [4, 8, 16, 32]
        if grad_checkpointing:
            recompute_blocks(self.model, name)
        if freeze:
            self.freeze()

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.model(image)[-4:]
