"""The prototypes as state: K unit vectors per class that no gradient reaches, moved by the pixels they stand for."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.distributed import all_reduce_
from protoseg.functional.hierarchy import lines
from protoseg.functional.prototypes import ASSIGNMENTS, Clustering, cluster, prototype_sums, update_prototypes
from protoseg.functional.resize import downsample_label
from protoseg.functional.sampling import pixel_rows
from protoseg.functional.similarity import similarities
from protoseg.types import ProtosegError, SegOutput, Similarities, check_choice

INITS = ("features", "random")


class Observation(NamedTuple):
    """Pixels of one micro-batch for a memory."""

    memory: "PrototypeMemory"
    embeddings: Tensor  # unit vectors, ``n d``
    own: Tensor  # their scores for the prototypes of their own class (cosines), ``n k``
    label: Tensor  # int64 ``n``, ``IGNORE_INDEX`` where unlabelled
    correct: Tensor  # whether the pixel's class is predicted right, bool ``n``
    member: Tensor  # the prototype each belongs to by the clustering of this micro-batch, flat index ``n``; -1: none


class PrototypeMemory(nn.Module):
    """Buffers and rules of the class prototypes (ProtoSeg, arXiv 2203.15102, Sec. 3.2).

    One optimizer step is one update: every micro-batch is :meth:`observe`-d, then :meth:`step` sums over ranks and
    moves the prototypes, so accumulated gradients and several GPUs give the update of one large batch. Where K > 1,
    ranks and accumulated micro-batches balance their pixels over the prototypes together (:meth:`observe_accumulated`).

    Args:
        num_classes, num_prototypes, dim: ``c``, ``k`` and ``d`` of the memory.
        momentum: 0.999 in the paper.
        momentum_warmup: W > 0 lets the momentum of each prototype rise with its number of updates t as
            (1 + t) / (W + t) up to ``momentum``; without it a short run never leaves the random start.
            0 is the paper's constant momentum.
        init: ``features``: a prototype's first pixels (labelled right or wrong) become its position;
            ``random``: unit vectors at random, only moved by momentum (released code).
        assignment, epsilon, rounds: see :func:`protoseg.functional.prototypes.cluster`.
    """

    def __init__(
        self,
        num_classes: int,
        num_prototypes: int,
        dim: int,
        momentum: float = 0.999,
        momentum_warmup: int = 10,
        init: str = "features",
        assignment: str = "argmax",
        epsilon: float = 0.05,
        rounds: int = 3,
    ) -> None:
        super().__init__()
        check_choice("head.init", init, INITS)
        check_choice("head.assignment", assignment, ASSIGNMENTS)
        if min(num_classes, num_prototypes, dim) < 1 or not 0 <= momentum <= 1:
            text = "prototype memory: expected at least one class, prototype and channel, momentum in [0, 1]"
            raise ProtosegError(f"{text}, got {num_classes=}, {num_prototypes=}, {dim=}, {momentum=}")
        self.momentum, self.momentum_warmup = momentum, momentum_warmup
        self.init, self.assignment, self.epsilon, self.rounds = init, assignment, epsilon, rounds
        self.parents: Sequence[int] = ()  # of a tree of classes, see ``LabelSpace``
        self.cared_for = False  # moved, loaded, or moved by whom we know: nothing to warn of
        c, k = num_classes, num_prototypes
        self.prototypes = nn.Buffer(F.normalize(torch.randn(c, k, dim), dim=2))  # unit vectors
        self.updates = nn.Buffer(torch.zeros(c, k, dtype=torch.int64))  # how many each prototype has had
        self.occupancy = nn.Buffer(torch.zeros(c, k))  # pixels that moved each in the last step, over all ranks
        # Empty between optimizer steps, and checkpoints are taken between optimizer steps: nothing to persist.
        self.pending_sums = nn.Buffer(torch.zeros(c * k, dim), persistent=False)
        self.pending_counts = nn.Buffer(torch.zeros(c * k), persistent=False)

    @property
    def balances(self) -> bool:
        """Whether pixels of a class are shared out among prototypes, so that all of a step must be seen together."""
        return self.prototypes.shape[1] > 1

    def similarity(self, embeddings: Tensor) -> Similarities:
        """Cosines of unit embeddings ``n d`` to the prototypes as they are now."""
        return similarities(embeddings, self.prototypes)

    def own_scores(self, output: SegOutput, label: Tensor) -> Tensor:
        """What :meth:`balance` shares pixels out by, ``n k``, from their labels ``n``: here the cosines."""
        assert output.similarities is not None
        return output.similarities.own(label)

    def balance(self, own: Tensor, label: Tensor) -> Clustering:
        """Target and member prototype of pixels from labels ``n`` and scores for those of their own class, ``n k``."""
        return cluster(own, label, len(self.prototypes), self.assignment, self.epsilon, self.rounds)

    @torch.no_grad()
    def assign(self, output: SegOutput, label: Tensor, stride: int) -> tuple[Clustering, Observation]:
        """Cluster the labelled pixels of a training batch: targets for the losses, and what to observe.

        Of the output of a model whose head has this memory, ``stride`` pixels per cell of its grid, and train ids at
        full resolution, int64 ``b H W``. In a tree of classes, a pixel is observed for its class and for each group.
        """
        height, width = output.logits.shape[2:]
        grid = downsample_label(label, (height, width), stride).flatten()
        called = output.logits[:, : min({*self.parents} - {-1}, default=None)].argmax(1).flatten()  # of no groups
        nodes, right = lines(grid, self.parents), lines(called, self.parents).unsqueeze(1)
        own, label = torch.cat([self.own_scores(output, node) for node in nodes]), nodes.flatten()
        clustering, correct = self.balance(own, label), (nodes == right).any(0).flatten()
        embeddings = pixel_rows(output.embeddings.detach()).expand(len(nodes), -1, -1).flatten(0, 1)
        of_labels = Clustering(*(ids[: len(grid)] for ids in clustering))
        return of_labels, Observation(self, embeddings, own, label, correct, clustering.member)

    def observe_accumulated(self, parts: Sequence[Observation]) -> None:
        """:meth:`observe` the same pixels as if the micro-batches of one optimizer step had been one batch."""
        member = [part.member for part in parts]
        if len(parts) > 1 and self.balances:
            own, label = (torch.cat([getattr(part, name) for part in parts]) for name in ("own", "label"))
            member = list(self.balance(own, label).member.split([len(part.label) for part in parts]))
        for part, ids in zip(parts, member, strict=True):
            self.observe(part.embeddings, ids, part.correct)

    @torch.no_grad()
    def observe(self, embeddings: Tensor, member: Tensor, correct: Tensor) -> None:
        """Add pixels to the next update: those classified right, and the first ones of a prototype not yet placed.

        Of unit vectors ``n d``, with :attr:`Observation.member` and :attr:`Observation.correct`, both ``n``.
        """
        if self.init == "features":
            correct = correct | (self.updates.flatten()[member.clamp_min(0)] == 0)
        sums, counts = prototype_sums(embeddings, member.where(correct, -1), len(self.pending_counts))
        self.pending_sums.add_(sums)
        self.pending_counts.add_(counts)

    def forget(self) -> None:
        """Leave out what was observed since the last step."""
        self.pending_sums.zero_()
        self.pending_counts.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Sum what was observed over all ranks, move the prototypes, and forget it."""
        self.cared_for = True
        sums, counts = all_reduce_(self.pending_sums), all_reduce_(self.pending_counts)
        momentum = torch.full_like(self.prototypes[..., 0], self.momentum)
        if self.momentum_warmup:
            t = self.updates.to(momentum.dtype)
            momentum = torch.minimum(momentum, (1 + t) / (self.momentum_warmup + t))
        if self.init == "features":
            momentum = momentum.where(self.updates > 0, 0.0)
        self.move(sums, counts, momentum.flatten())
        self.occupancy.copy_(counts.view_as(self.occupancy))
        self.updates.add_(self.occupancy > 0)
        self.forget()

    def move(self, sums: Tensor, counts: Tensor, momentum: Tensor) -> None:
        """Move the prototypes by the sums ``c*k d`` and counts ``c*k`` of all ranks' pixels, each at its momentum."""
        flat = self.prototypes.flatten(0, 1)
        flat.copy_(update_prototypes(flat, sums, counts, momentum))

    def check_moved(self) -> None:
        """Warn, once, of prototypes that are where they were made: of a loop that forgets :meth:`step`."""
        if not (self.cared_for or torch.compiler.is_compiling()):
            self.cared_for = True
            text = "prototype memory: evaluated with prototypes that never moved, which are random vectors"
            remedy = "call after_optimizer_step() of the module, or memory.step() of the head after each optimizer step"
            warnings.warn(f"{text}; {remedy}", stacklevel=2)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.cared_for = True
