"""Classes that were taught after the training: found by a linear discriminant of frozen maps, beside the head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.functional.discriminant import SURE, Statistics
from protoseg.functional.precision import no_autocast
from protoseg.functional.resize import upsample_logits
from protoseg.functional.sampling import pixel_rows
from protoseg.types import ProtosegError, SegOutput


def on_grid(feature: Tensor, grid: tuple[int, int], stride: int, own: int) -> Tensor:
    """A map of stride ``own``, ``b d h w``, on the grid of ``stride`` pixels a cell."""
    if own < stride:
        return F.avg_pool2d(feature, stride // own, ceil_mode=True)
    return upsample_logits(feature, grid, own // stride)


def frozen_maps(output: SegOutput, stride: int, strides: Sequence[int], cells: Tensor) -> Tensor:
    """Embedding and encoder maps of an image (``b`` is 1) at cells of the output's grid, int64 ``n``, fp32 ``n d``.

    ``stride`` and ``strides`` are the pixels per cell of that grid, and of each map in ``SegOutput.features``.
    """
    height, width = output.logits.shape[2:]
    parts = [pixel_rows(output.embeddings.float())[cells]]
    for feature, own in zip(output.features or (), strides, strict=True):
        if own <= stride:
            parts.append(pixel_rows(on_grid(feature.float(), (height, width), stride, own))[cells])
        else:  # the same as of an enlarged map, which may not fit into memory
            sides = torch.tensor(feature.shape[:1:-1], device=cells.device) * (own // stride)
            where = (2 * torch.stack([cells % width, cells // width], 1) + 1) / sides - 1  # from -1 to 1
            found = F.grid_sample(feature.float(), where[None, None], padding_mode="border", align_corners=False)
            parts.append(found[0, :, 0].T)
    return torch.cat(parts, 1)


class Discriminant(nn.Module):
    """Taught classes win a cell where their score beats those of all old classes; else the head's answer stays.

    A taught class's logit is the largest of the head's plus the difference of these scores, which is a log-likelihood
    ratio. Raises ProtosegError: statistics of other maps than of so many ``channels``.
    """

    def __init__(self, known: Statistics, channels: Sequence[int], strides: Sequence[int], stride: int) -> None:
        super().__init__()
        if len(known.scale) != sum(channels):
            text = f"statistics: expected those of the {sum(channels)} channels of this network's maps, got"
            raise ProtosegError(f"{text} {len(known.scale)}: make them anew with protoseg teach statistics")
        self.weight, self.bias = (nn.Buffer(part, persistent=False) for part in known.linear())
        self.slope, self.sureness = (nn.Buffer(part, persistent=False) for part in (known.slope, known.bias))
        self.known, self.channels, self.strides, self.stride = known, list(channels), [stride, *strides], stride
        self.of = known.classes.tolist()
        self.old = (~known.taught).nonzero().flatten().tolist()
        self.new = known.taught.nonzero().flatten().tolist()
        self.taught = sorted({self.of[row] for row in self.new})
        # Classes that the head has no answer of its own for.
        self.foreign = sorted({*self.taught} - {self.of[row] for row in self.old})

    def forward(self, output: SegOutput) -> SegOutput:
        """The output with logits of the taught classes."""
        logits = self.logits(output) if self.new else output.logits
        return output._replace(logits=logits, auxiliary=None, detail=None)

    def log_odds(self, log_odds: Tensor, predicted: Tensor) -> Tensor:
        """That pixels of images, ``… h w``, are right: of those of their softmax probability, whose class is given."""
        own, context = F.pad(self.slope.view(-1), (0, 1))[:2]
        mean = log_odds.clamp(-SURE, SURE).mean((-2, -1), keepdim=True)
        return own * log_odds + context * mean + self.sureness[predicted]

    def logits(self, output: SegOutput) -> Tensor:
        """Of all classes, ``b c h w``."""
        (height, width), logits = output.logits.shape[2:], output.logits.clone()
        maps = [output.embeddings, *(output.features or ())]
        with no_autocast(logits):
            scores = self.bias.view(1, -1, 1, 1)
            for feature, stride, weight in zip(maps, self.strides, self.weight.split(self.channels, 1), strict=True):
                score = F.conv2d(feature.float(), weight[:, :, None, None])  # before it is enlarged: cheaper, the same
                scores = scores + on_grid(score, (height, width), self.stride, stride)
            margin = scores[:, self.new] - scores[:, self.old].amax(1, keepdim=True)
            logits[:, self.foreign] = -torch.inf
            best = logits.amax(1)
            for place, row in enumerate(self.new):
                logits[:, self.of[row]] = torch.maximum(logits[:, self.of[row]], best + margin[:, place])
        return logits
