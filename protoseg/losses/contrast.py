"""Pixel contrast: common parts, and the terms on labelled and pseudo-labelled pixels alike; see ``contrast_target``."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.functional import contrast as formulas
from protoseg.functional.hierarchy import ancestors
from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.functional.prototypes import prototype_sums
from protoseg.functional.resize import downsample_label, image_size, majority_label
from protoseg.functional.sampling import pixel_rows, sample_hard_and_easy, sample_per_class, take_rows
from protoseg.losses.term import Mixed, Seen, Step, Target, Term
from protoseg.nn import ClassQueues, PrototypeMemory
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError


class PixelContrast(Term):
    """Draws pixels to their class and away from others in an embedding space; the base of the presets.

    ``conf/contrast`` holds the presets, each a subclass with its paper's values. Whatever a subclass adds (projection,
    queues, prototypes) lives in the term, not in the model: inference has the same cost with and without it. Raises
    ProtosegError unless ``temperature``, which divides the cosines, is positive.
    """

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__(weight)
        expect(temperature > 0, "temperature > 0", temperature)
        self.temperature, self.classes = temperature, 0

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        self.classes = label_space.leaves if label_space.parents else 0

    def forward(self, step: Step) -> Tensor:
        if self.classes:  # of a group alone it is not known which class's rival a pixel is
            label = step.labelled.label
            step = replace(step, labelled=replace(step.labelled, label=label.where(label < self.classes, IGNORE_INDEX)))
        # fp32 for everything: exponentials of cosines over small temperatures, on few pixels.
        with no_autocast(step.labelled.output.embeddings):
            return self.contrast(step)

    @abstractmethod
    def contrast(self, step: Step) -> Tensor:
        """The unweighted loss; runs without autocast."""


def expect(condition: bool, wanted: str, got: Any) -> None:
    if not condition:
        raise ProtosegError(f"contrast: expected {wanted}, got {got}; see conf/contrast")


def target_label(target: Target, mixed: Mixed) -> Tensor:
    """Pseudo-labels ``b H W``, ``IGNORE_INDEX`` where pasted over."""
    return target.label.masked_fill(mixed.pasted, IGNORE_INDEX)


def on_grid(x: Tensor, seen: Seen) -> Tensor:
    """A full-size map ``b H W`` at the centres of the cells of a model's output, flattened to ``n``."""
    return downsample_label(x, image_size(seen.output.logits), seen.stride).flatten()


def target_pixels(target: Target, mixed: Mixed) -> Target:
    """The target as the mixed images show it: label (see :func:`target_label`) and confidence on the grid, ``n``."""
    label = on_grid(target_label(target, mixed), mixed)
    return replace(target, label=label, confidence=on_grid(target.confidence, mixed))


def class_rows(valid: Tensor) -> Tensor:
    """The class of every slot of a ``c p`` table, flattened to ``c*p``; ``IGNORE_INDEX`` in empty slots."""
    return torch.arange(len(valid), device=valid.device).unsqueeze(1).where(valid, IGNORE_INDEX).flatten()


def embed(projection: nn.Module, rows: Tensor) -> Tensor:
    """Unit embeddings of decoder features, ``… D`` to ``… d``."""
    weight = next(projection.parameters(), rows)
    return F.normalize(at_least_fp32(projection(rows.to(weight.dtype))), dim=-1)


class PixelToPixelContrast(PixelContrast):
    """The released code of PGPC, from CLUDA: every pixel with every other one, in the encoder's own features.

    The encoder's maps are resized to one size (height and width, 65 x 65 as released; ``align_corners``: released is
    True) and concatenated. Once on the labelled images, once on the mixed images, if there are any, where pixels count
    as in the cross-entropy; the two losses are added, as released. The cost grows with the square of the number of
    pixels: on a CPU choose a small size. For ``released_order`` see
    :func:`protoseg.functional.contrast.pixel_to_pixel`.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 1.0,
        size: Sequence[int] = (65, 65),
        align_corners: bool = False,
        released_order: bool = False,
    ) -> None:
        super().__init__(weight, temperature)
        expect(len(size) == 2 and min(size) >= 1, "size as height and width", tuple(size))
        self.size = (int(size[0]), int(size[1]))
        self.align_corners, self.released_order = align_corners, released_order

    def contrast(self, step: Step) -> Tensor:
        loss = self._on(step.labelled, None)
        return loss if step.mixed is None else loss + self._on(step.mixed, step.mixed.weight)

    def _on(self, images: Seen, weight: Tensor | None) -> Tensor:
        maps = [at_least_fp32(feature) for feature in images.output.features or []]
        expect(bool(maps), "a model that returns its encoder's maps", "none")
        maps = [F.interpolate(m, self.size, mode="bilinear", align_corners=self.align_corners) for m in maps]
        label = self._resize(images.label)
        weight = None if weight is None else self._resize(weight)
        return formulas.pixel_to_pixel(torch.cat(maps, 1), label, weight, self.temperature, self.released_order)

    def _resize(self, x: Tensor) -> Tensor:
        """The value at the centre of every cell; ids up to 255 are exact in fp32."""
        exact = x if x.is_floating_point() else x.float()
        return F.interpolate(exact.unsqueeze(1), self.size, mode="nearest-exact").squeeze(1).to(x.dtype)


class CycleAssociation(PixelContrast):
    """PLCA (Kang et al., NeurIPS 2020, arXiv 2011.00147): pixels on a way from source to target and back to the class.

    Of each source image and the mixed one of the same number, where it shows the target, ``pixels`` cells drawn at
    random; what they are taken for is not asked. In the head's own space. Not here are the paper's second association,
    of class probabilities by their divergence, and its Lovász loss on the source.
    """

    needs = ("mixed", "target")

    def __init__(self, weight: float = 0.1, pixels: int = 1024) -> None:
        super().__init__(weight, 1.0)
        expect(pixels >= 1, "pixels >= 1", pixels)
        self.pixels = pixels

    def contrast(self, step: Step) -> Tensor:
        shown = on_grid(target_label(step.target, step.mixed), step.mixed)
        source, label = self._drawn(step.labelled, on_grid(step.labelled.label, step.labelled))
        return formulas.cycle_association(source, label, *self._drawn(step.mixed, shown))

    def _drawn(self, seen: Seen, label: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings ``b p d`` and labels ``b p`` of random cells, ``IGNORE_INDEX`` in slots without one."""
        images = len(seen.output.embeddings)
        image = torch.arange(images, device=label.device).repeat_interleave(len(label) // images)
        index, valid = sample_per_class(image.where(label != IGNORE_INDEX, IGNORE_INDEX), images, self.pixels)
        rows = take_rows(seen.output.embeddings, index)
        return embed(nn.Identity(), rows), label[index].where(valid, IGNORE_INDEX)


class ProjectedContrast(PixelContrast):
    """A contrast in a space of its own: the model's embeddings through two layers that exist in training only.

    They have no BatchNorm: pixels are embedded one by one, so only the sampled ones need be, in ``dim`` channels.
    """

    def __init__(self, weight: float, temperature: float, dim: int) -> None:
        super().__init__(weight, temperature)
        expect(dim >= 1, "dim >= 1", dim)
        self.dim = dim

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        super().prepare(model, label_space)
        self.num_classes = label_space.num_classes
        channels = model.head.embedding_dim
        layers = (nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, self.dim))
        self.projection: nn.Module = nn.Sequential(*layers)


class ClassMeanContrast(ProjectedContrast):
    """SePiCo's prototypical contrast (arXiv 2204.08808): pixels of source and target against the source's class means.

    Without a target: labelled pixels against their class means. Labels are pooled to the grid: the class that covers
    ``min_ratio`` of a cell, or none. The means are unit vectors, moved by momentum once per optimizer step. Three
    things differ from the released code. Its means are of the teacher's features of the source images, which no one
    here computes: ours are of the student's. Its target images go through the student unmixed; ours are the target's
    part of the mixed images. And its uniformity term has the other sign, see
    :func:`protoseg.functional.contrast.mean_feature_uniformity`.

    Released are weight 1, temperature 100 (divides the cosine), ``min_ratio`` 0.75, and 0.01 as the weight of the
    uniformity term beside the contrast; ``momentum`` is that of the class means.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 100.0,
        dim: int = 256,
        uniformity: float = 0.01,
        min_ratio: float = 0.75,
        momentum: float = 0.999,
    ) -> None:
        super().__init__(weight, temperature, dim)
        expect(uniformity >= 0 and 0 <= min_ratio <= 1, "uniformity >= 0, min_ratio in [0, 1]", (uniformity, min_ratio))
        self.uniformity, self.min_ratio, self.momentum = uniformity, min_ratio, momentum

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        super().prepare(model, label_space)
        # Not ``memory``: these are means of the source alone, in this term's own space.
        self.means = PrototypeMemory(self.num_classes, 1, self.dim, self.momentum)

    def after_optimizer_step(self) -> None:
        self.means.step()

    def contrast(self, step: Step) -> Tensor:
        source = self._pool(step.labelled.label, step.labelled)
        parts = [(step.labelled.output, source)]
        if step.mixed is not None and step.target is not None:
            parts.append((step.mixed.output, self._pool(target_label(step.target, step.mixed), step.mixed)))
        rows = torch.cat([pixel_rows(output.embeddings) for output, _ in parts])
        embeddings, label = embed(self.projection, rows), torch.cat([label for _, label in parts])
        on_source = embeddings[: len(source)].detach()
        means, placed = self.means.prototypes[:, 0].clone(), self.means.updates[:, 0] > 0
        if self.training:
            self.means.observe(on_source, source, torch.ones_like(source, dtype=torch.bool))
        self.statistics = {"anchors": (label != IGNORE_INDEX).sum().float()}
        sizes = (embeddings, label, means, placed, self.temperature)
        return formulas.class_mean_contrast(*sizes) + self.uniformity * formulas.mean_feature_uniformity(*sizes)

    def _pool(self, label: Tensor, seen: Seen) -> Tensor:
        return majority_label(label, seen.stride, self.min_ratio, self.num_classes).flatten()


class TreeTriplet(ProjectedContrast):
    """HSSN's tree-triplet loss (arXiv 2203.14335): what is nearer in the tree is to be nearer in the embedding.

    Per class and rank ``anchors`` pixels, each with one of a nearer and one of a farther class, at random; ``margin``
    grows with the difference of the distances, by a half at most. The paper's ``weight`` rises from 0 to 0.5, of which
    this is the mean; in its code the nearer pixel is of another class of the group.
    """

    def __init__(self, weight: float = 0.25, dim: int = 256, anchors: int = 50, margin: float = 0.1) -> None:
        super().__init__(weight, 1.0, dim)
        self.anchors, self.margin = anchors, margin

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        super().prepare(model, label_space)
        self.classes = 0  # groups count, too
        above = ancestors(label_space.parents or (-1,) * self.num_classes).float()
        edges = above.sum(1) + above.sum(1, keepdim=True) - 2 * above @ above.T  # between nodes, under one root
        self.distance, self.scale = nn.Buffer(edges, persistent=False), 4 * float(above.sum(1).amax())  # of the height

    def contrast(self, step: Step) -> Tensor:
        index, valid = sample_per_class(on_grid(step.labelled.label, step.labelled), self.num_classes, self.anchors)
        rows = embed(self.projection, take_rows(step.labelled.output.embeddings, index)).flatten(0, 1)
        count, away = valid.sum(1), self.distance[class_rows(valid)]
        here, noise = (count > 0).float(), torch.rand(2, *away.shape, device=away.device)
        negative = (noise[0] + here * (1 + (away > 0))).argmax(1, keepdim=True)
        positive = (noise[1] + here * (away < away.gather(1, negative))).argmax(1, keepdim=True)
        pair = torch.cat([positive, negative], 1)  # nodes that are there; where none is farther, the anchor's own
        near, far = rows[self.anchors * pair + (torch.rand_like(rows[:, :2]) * count[pair]).long()].unbind(1)
        more = away.gather(1, pair).diff(dim=1).squeeze(1)  # edges
        return formulas.tree_triplet(rows, near, far, self.margin + more / self.scale, valid.flatten() & (more > 0))


class SupervisedPixelContrast(ProjectedContrast):
    """ContrastiveSeg (arXiv 2101.11939): half hard, half easy anchors per class, among themselves and with two queues.

    Anchors are labelled pixels and, of adaptation, target pixels that the teacher is sure of; hard is what the student
    gets wrong. One queue holds such pixels, the other regions: the mean direction of all pixels of a class in an image.
    Three things differ from the released code: it draws anchors image by image, not from the batch; it compares with
    whole queues, not with a draw; and its loss leaves out the other anchors where there is a queue, ours does not.

    The weight is 0.1 as released, the temperature 0.07 in the paper. Of each class ``anchors`` are taken (per rank),
    ``keys`` pixels and ``regions`` (0: none are kept) drawn from the queues, ``queue_length`` of each kept,
    ``per_step`` written. Target pixels take part from the confidence ``reliable``.
    """

    def __init__(
        self,
        weight: float = 0.1,
        temperature: float = 0.07,
        dim: int = 256,
        anchors: int = 50,
        reliable: float = 0.968,
        keys: int = 100,
        regions: int = 20,
        queue_length: int = 1024,
        per_step: int = 10,
    ) -> None:
        super().__init__(weight, temperature, dim)
        expect(min(anchors, keys, regions + 1) >= 1, "anchors, keys >= 1, regions >= 0", (anchors, keys, regions))
        self.anchors, self.reliable, self.keys, self.regions = anchors, reliable, keys, regions
        self.queue_length, self.per_step = queue_length, per_step

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        super().prepare(model, label_space)
        self.queue = ClassQueues(self.num_classes, self.queue_length, self.dim, self.per_step)
        if self.regions:
            self.region_queue = ClassQueues(self.num_classes, self.queue_length, self.dim, self.per_step)

    def contrast(self, step: Step) -> Tensor:
        parts = [(step.labelled.output, on_grid(step.labelled.label, step.labelled))]
        if step.mixed is not None and step.target is not None:
            target = target_pixels(step.target, step.mixed)
            parts.append((step.mixed.output, target.label.where(target.confidence >= self.reliable, IGNORE_INDEX)))
        outputs, label = [output for output, _ in parts], torch.cat([label for _, label in parts])
        predicted = torch.cat([output.logits[:, : self.classes or None].argmax(1).flatten() for output in outputs])
        index, valid = sample_hard_and_easy(label, predicted != label, self.num_classes, self.anchors)
        rows = torch.cat([pixel_rows(output.embeddings) for output in outputs])
        anchors = embed(self.projection, rows.index_select(0, index.flatten()))
        keys, keys_valid = self.queue.draw(self.keys)
        self.queue.push(anchors.detach().view(*index.shape, -1), valid)
        if self.regions:
            drawn, drawn_valid = self.region_queue.draw(self.regions)
            keys, keys_valid = torch.cat([keys, drawn], 1), torch.cat([keys_valid, drawn_valid], 1)
            self.region_queue.push(*self._regions(rows, label, sum(len(output.logits) for output in outputs)))
        self.statistics = {"anchors": valid.sum().float(), "queue": self.queue.fill.float()}
        queued = (keys.flatten(0, 1), class_rows(keys_valid))
        return formulas.supervised_contrast(anchors, class_rows(valid), *queued, temperature=self.temperature)

    @torch.no_grad()
    def _regions(self, rows: Tensor, label: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """The mean direction of each class in each of the images, ``c i d``, and where there is one, bool ``c i``."""
        first = torch.arange(images, device=label.device).repeat_interleave(len(label) // images) * self.num_classes
        member = (first + label).where(label != IGNORE_INDEX, -1)
        sums, counts = prototype_sums(embed(self.projection, rows), member, images * self.num_classes)
        regions = F.normalize(sums, dim=1).view(images, self.num_classes, -1)
        return regions.transpose(0, 1), counts.view(images, -1).T > 0
