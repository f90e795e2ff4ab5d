"""The whole network: encoder, decoder, head."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.functional.hierarchy import path_scores
from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.functional.resize import grid_size, image_size, pad_to_multiple
from protoseg.models.encoders import Encoder
from protoseg.models.recompute import unmoved_statistics
from protoseg.nn import Discriminant, Head
from protoseg.types import ProtosegError, SegOutput, Size

Maps = Callable[[Tensor], list[Tensor]]  # an encoder, or what stands in its place


def crop_to_grid(feature: Tensor, size: Size, stride: int) -> Tensor:
    """The cells of ``feature`` (``b d h w`` at ``stride``) that an image of ``size`` pixels touches."""
    height, width = grid_size(size, stride)
    return feature[..., :height, :width]


class Segmentor(nn.Module):
    """Encoder, decoder and head, from pixels of any size to class logits on the decoder's grid.

    The image is normalised by the encoder's own mean and std, then padded (bottom, right) with zeros, i.e. the mean
    colour, to a multiple of its coarsest stride; every map is cropped back to the cells that the image touches.

    Args:
        encoder: maps, finest first, see ``protoseg.models.encoders.Encoder``.
        decoder: ``(channels, strides) -> module`` with ``out_channels`` and ``stride``.
        head: ``(in_channels, num_classes) ->`` a :class:`protoseg.nn.Head`.
        auxiliary: ``(channels, strides, num_classes) -> module`` that turns the maps into class logits; training only.
        align_corners: how logits go to pixels. False keeps every cell on its own pixels whatever the image's size;
            True is what the released ProtoSeg does.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Callable[[list[int], list[int]], nn.Module],
        head: Callable[[int, int], Head],
        num_classes: int,
        auxiliary: Callable[[list[int], list[int], int], nn.Module] | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.num_classes, self.align_corners = encoder, num_classes, align_corners
        self.decoder = decoder(encoder.channels, encoder.strides)
        self.stride: int = self.decoder.stride  # type: ignore[assignment]
        out_channels: int = self.decoder.out_channels  # type: ignore[assignment]
        self.head = head(out_channels, num_classes)
        self.auxiliary = auxiliary(encoder.channels, encoder.strides, num_classes) if auxiliary is not None else None
        self.discriminant: Discriminant | None = None  # of classes taught after the training
        self.register_buffer("paths", None, persistent=False)  # of classes in a tree, see ``arrange``
        # constants of the encoder, not state: a checkpoint need not hold them
        self.mean = nn.Buffer(torch.tensor(encoder.mean).view(1, -1, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(encoder.std).view(1, -1, 1, 1), persistent=False)

    def arrange(self, parents: Sequence[int], fall_back: float | None = None) -> None:
        """Take classes for nodes of a tree, unless ``LabelSpace.parents`` are none; see ``hierarchy.path_scores``."""
        self.paths = path_scores(parents, fall_back).to(self.mean) if parents else None
        if self.head.memory is not None:
            self.head.memory.parents = parents

    def decided(self, logits: Tensor) -> Tensor:
        """Logits to predict by, ``b c h w``: the head's, or in evaluation those of paths in the tree."""
        if self.training or self.paths is None:
            return logits
        with no_autocast(logits):
            paths = at_least_fp32(self.paths)
            return F.conv2d(F.logsigmoid(at_least_fp32(logits)), paths[:, :-1, None, None], paths[:, -1])

    def normalize(self, image: Tensor) -> Tensor:
        """uint8, or float in [0, 1], to the encoder's units, in the model's own dtype."""
        scale = 255 if image.dtype == torch.uint8 else 1
        return (image.to(self.mean.dtype) - scale * self.mean) / (scale * self.std)

    @property
    def feature_strides(self) -> list[int]:
        """Pixels of the image per cell of each map in ``SegOutput.features``."""
        return list(self.encoder.strides)

    def encoder_maps(self, image: Tensor, encoder: nn.Module) -> list[Tensor]:
        """What ``SegOutput.features`` would hold for this image if the encoder were another of the same form."""
        image = self._encoder_input(image)
        return self._cropped(self._encode(image, encoder), image_size(image))

    def forward(self, image: Tensor) -> SegOutput:
        """Segment images of the encoder's channels (RGB), uint8 or float in [0, 1], ``b c H W``, of any size.

        The result is on the grid ``ceil(H / stride), ceil(W / stride)``, auxiliary logits too;
        ``protoseg.functional.resize`` brings logits to pixels. Raises ProtosegError: another shape or dtype.
        """
        output = self.segment(image)
        return output if self.discriminant is None else self.discriminant(output)

    def segment(self, image: Tensor, encoder: Maps | None = None) -> SegOutput:
        """What the head says of the images, without classes that were taught after the training."""
        image = self._encoder_input(image)
        return self._segmented(self._encode(image, encoder or self.encoder), image_size(image))

    def frozen_maps(self, image: Tensor) -> list[Tensor]:
        """What a frozen encoder makes of images; of it :meth:`from_frozen` makes what :meth:`segment` would."""
        return self._encode(self._encoder_input(image), self.encoder.frozen_maps)

    def from_frozen(self, maps: list[Tensor], size: Size) -> SegOutput:
        """The output for images of ``size`` (height, width) from their :meth:`frozen_maps`, of any floating dtype."""
        return self._segmented(self.encoder.from_frozen([each.to(self.mean.dtype) for each in maps]), size)

    def perturbed(self, image: Tensor, drop: Callable[[Tensor], Tensor] | None = None) -> SegOutput:
        """The output for images of which ``drop`` changes the encoder's maps; no running statistics move."""
        encoder = self.encoder
        with unmoved_statistics(self):
            if drop is None:
                return self(image)
            return self.segment(image, lambda x: encoder.from_frozen([drop(each) for each in encoder.frozen_maps(x)]))

    def _segmented(self, features: list[Tensor], size: Size) -> SegOutput:
        output = self._decode(features, size)
        said = (self.decided(output.logits), output.embeddings, output.similarities, self._cropped(features, size))
        # Not _replace, which torch.compile cannot follow.
        return SegOutput(*said, self._auxiliary_logits(features, size), align_corners=self.align_corners)

    def _encoder_input(self, image: Tensor) -> Tensor:
        """Checked and normalised, not yet padded."""
        channels, known = self.mean.shape[1], image.dtype == torch.uint8 or image.is_floating_point()
        if image.ndim != 4 or image.shape[1] != channels or not known:
            wanted = f"images b {channels} h w, of the channels it was trained on, as uint8 or float in [0, 1]"
            text = f"Segmentor: expected {wanted}, got {tuple(image.shape)} of {image.dtype}"
            raise ProtosegError(f"{text}; choose data and checkpoint that belong together")
        return self.normalize(image)

    def _encode(self, image: Tensor, encoder: Maps) -> list[Tensor]:
        """Maps of a normalised image, padding included: the decoder must see whole cells of every stride."""
        return encoder(pad_to_multiple(image, max(self.encoder.strides)))

    def _decode(self, features: list[Tensor], size: Size) -> SegOutput:
        """The head's output for an encoded image of ``size`` pixels."""
        return self.head(crop_to_grid(self.decoder(features), size, self.stride))

    def _cropped(self, features: list[Tensor], size: Size) -> list[Tensor]:
        return [crop_to_grid(f, size, s) for f, s in zip(features, self.encoder.strides, strict=True)]

    def _auxiliary_logits(self, features: list[Tensor], size: Size) -> Tensor | None:
        if self.auxiliary is None or not self.training:
            return None
        return crop_to_grid(self._on_grid(self.auxiliary(features), features), size, self.stride)

    def _on_grid(self, feature: Tensor, features: list[Tensor], scale: int = 1) -> Tensor:
        """Resize a map made from (padded) ``features`` to ``scale`` times the decoder's grid for them."""
        height, width = (scale * cells * self.encoder.strides[0] // self.stride for cells in features[0].shape[-2:])
        return F.interpolate(feature, (height, width), mode="bilinear", align_corners=False)
