"""Things that a network has no class for: ``python -m benchmarks.unknown CHECKPOINT --name Car``.

The checkpoint was trained without a class of its data (``data.relabel={Car: null}``). Of the labelled cells of its
validation images those of that class are unknown, all others known. AUROC, and the share of known cells above the value
that 95 % of the unknown ones reach (FPR95), each of a score as it is, and of its mean over 7 x 7 cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from protoseg.analysis.stream import Scene, look
from protoseg.data.statistics import spread
from protoseg.functional.discriminant import SHRINKAGE
from protoseg.functional.prototypes import class_prototypes
from protoseg.functional.sampling import pixel_rows
from protoseg.functional.similarity import SIDE
from protoseg.models.segmentor import Segmentor
from protoseg.nn.discriminant import frozen_maps
from protoseg.teach.trial import data_with
from protoseg.trained import open_file

Score = Callable[[Tensor, Tensor], Tensor]  # of maps ``n d`` and logits ``n c``, ``n``: high is strange
COMPONENTS = 5
EVERY = 5  # of the cells of a training image one is looked at
NEIGHBOURS, BANK = 10, 1000  # of the nearest of so many training cells


def cells(model: Segmentor, scene: Scene, which: Tensor) -> tuple[Tensor, Tensor]:
    """Maps and logits of some cells."""
    maps = frozen_maps(scene.output, scene.stride, model.feature_strides, which)
    return maps, pixel_rows(scene.output.logits)[which].float()


class Seen:
    """Cells of training images, and what follows from them."""

    def __init__(self, maps: Tensor, logits: Tensor, label: Tensor, widths: Sequence[int]) -> None:
        self.maps, self.logits, self.classes = maps, logits, label.unique()
        self.cuts = [0, *torch.tensor(widths).cumsum(0).tolist()]
        self.label, self.predicted = label, logits.argmax(1)

    def whitening(self, part: slice) -> tuple[Tensor, Tensor]:
        """Of some channels a matrix that makes the shared covariance the identity, and the class means there."""
        x = self.maps[:, part]
        means = torch.stack([x[self.label == c].mean(0) for c in self.classes])
        rest = x - means[torch.searchsorted(self.classes, self.label)]
        scale = rest.std(0).clamp_min(1e-6)
        correlation = ((rest / scale).T @ (rest / scale) / len(rest)).double()
        correlation = (1 - SHRINKAGE) * correlation + SHRINKAGE * torch.eye(len(scale), dtype=torch.float64)
        matrix = torch.linalg.inv(torch.linalg.cholesky(correlation)).float() / scale
        return matrix, means @ matrix.T

    def distance(self, part: slice) -> Score:
        """Squared Mahalanobis distance to the nearest class mean (Lee et al., NeurIPS 2018)."""
        matrix, means = self.whitening(part)
        return lambda maps, logits: torch.cdist(maps[:, part] @ matrix.T, means).amin(1).square()

    def relative(self, part: slice) -> Score:
        """Less that to the mean of all cells, by their own covariance (Ren et al., arXiv 2106.09022)."""
        nearest, x = self.distance(part), self.maps[:, part]
        mean = x.mean(0)
        covariance = torch.cov(x.T).double()
        matrix = torch.linalg.inv(torch.linalg.cholesky(covariance + 1e-2 * covariance.diagonal().diag())).float()
        return lambda maps, logits: nearest(maps, logits) - ((maps[:, part] - mean) @ matrix.T).square().sum(1)

    def neighbours(self, part: slice) -> Score:
        """Distance to the tenth nearest training cell (Sun et al., ICML 2022)."""
        matrix, _ = self.whitening(part)
        chosen = torch.randperm(len(self.maps), generator=torch.Generator().manual_seed(0))[:BANK]
        bank = self.maps[chosen, part] @ matrix.T
        return lambda maps, logits: torch.cdist(maps[:, part] @ matrix.T, bank).kthvalue(NEIGHBOURS, 1).values

    def mixtures(self, part: slice) -> Score:
        """Minus the log density of the likeliest class's mixture (GMMSeg, arXiv 2210.02025), fitted after training."""
        means, variances = [], []
        for c in self.classes:
            x = self.maps[self.label == c, part]
            found = class_prototypes(x, COMPONENTS).prototypes
            member = (x @ found.T).argmax(1)
            for k in range(COMPONENTS):
                own = x[member == k] if (member == k).sum() > 1 else x
                means.append(own.mean(0))
                variances.append(own.var(0).clamp_min(1e-3))  # as of its head
        mean, precision = torch.stack(means), 1 / torch.stack(variances)
        volume = (precision * mean.square()).sum(1) - precision.log().sum(1)

        def strange(maps: Tensor, logits: Tensor) -> Tensor:
            x = maps[:, part]
            distance = x.square() @ precision.T - 2 * x @ (precision * mean).T + volume
            return -(-distance / 2).view(len(x), -1, COMPONENTS).logsumexp(2).amax(1)

        return strange

    def standardised(self, score: Score) -> Score:
        """By mean and deviation of the training cells called the same (SML: Jung et al., ICCV 2021)."""
        own, c = score(self.maps, self.logits), self.logits.shape[1]
        groups = [own[self.predicted == i] if (self.predicted == i).sum() > 20 else own for i in range(c)]
        mean, deviation = (torch.stack([f(group) for group in groups]) for f in (torch.mean, torch.std))

        def standard(maps: Tensor, logits: Tensor) -> Tensor:
            called = logits.argmax(1)
            return (score(maps, logits) - mean[called]) / deviation[called]

        return standard

    def sum(self, *scores: Score) -> Score:
        """Of scores, each over its deviation in the training cells."""
        scales = [score(self.maps, self.logits).std() for score in scores]
        return lambda maps, logits: torch.stack([s(maps, logits) / d for s, d in zip(scores, scales, strict=True)]).sum(
            0
        )

    def scores(self) -> dict[str, Score]:
        """By name."""
        every, embedding = slice(0, self.cuts[-1]), slice(0, self.cuts[1])
        third, last = slice(*self.cuts[-3:-1]), slice(*self.cuts[-2:])
        cosine: Score = lambda maps, logits: -logits.amax(1)  # noqa: E731
        found: dict[str, Score] = {
            "max-softmax": lambda maps, logits: -logits.softmax(1).amax(1),
            "energy": lambda maps, logits: -logits.logsumexp(1),
            "max-logit, which is the largest cosine": cosine,
            "max-logit, standardised by class": self.standardised(cosine),
            "Mahalanobis, embedding": self.distance(embedding),
            "Mahalanobis, last but one map": self.distance(third),
            "Mahalanobis, last map": self.distance(last),
            "Mahalanobis, embedding and all maps": self.distance(every),
            "Mahalanobis, all, standardised by class": self.standardised(self.distance(every)),
            "relative Mahalanobis, embedding and all maps": self.relative(every),
            "mixtures of 5 Gaussians, embedding": self.mixtures(embedding),
            "10th of 1000 neighbours, embedding": self.neighbours(embedding),
            "10th of 1000 neighbours, embedding and all maps": self.neighbours(every),
        }
        found["largest cosine + Mahalanobis, last but one map"] = self.sum(cosine, self.distance(third))
        found["largest cosine + Mahalanobis, all"] = self.sum(cosine, self.distance(every))
        return found


def judged(score: Tensor, unknown: Tensor) -> tuple[float, float]:
    """AUROC and FPR95 in %; scores without ties."""
    order = score.argsort()
    sorted_unknown, positive, negative = unknown[order], unknown.sum().double(), (~unknown).sum().double()
    ranks = torch.arange(1, len(score) + 1, dtype=torch.float64)[sorted_unknown].sum()
    auroc = (ranks - positive * (positive + 1) / 2) / (positive * negative)
    level = score[unknown].kthvalue(max(1, int(0.05 * positive))).values
    return 100 * float(auroc), 100 * float((score[~unknown] >= level).double().mean())


def smoothed(score: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.avg_pool2d(score.view(1, *grid), SIDE, 1, SIDE // 2, count_include_pad=False).flatten()


@torch.no_grad()
def measure(checkpoint: Path, name: str, root: str | None, gaussian: Path | None, step: int) -> None:
    """Print the table."""
    file = open_file(checkpoint)
    data, space = data_with(file, name, root)
    model, new = file.model(), space.num_classes - 1
    train, val = data.dataset(data.train_split), data.dataset(data.val_split)
    parts = []
    for i in track(spread(len(train), 60), "training images"):
        scene = look(model, *train[i][:2])
        which = (scene.labelled & (scene.cell_label != new)).nonzero().flatten()[::EVERY]
        parts.append((*cells(model, scene, which), scene.cell_label[which]))
    maps, logits, label = map(torch.cat, zip(*parts, strict=True))
    scores = Seen(maps, logits, label, [model.head.embedding_dim, *model.encoder.channels]).scores()
    mixture = open_file(gaussian, ["gaussian_mixture"]).model() if gaussian else None
    found: dict[str, list[Tensor]] = {}
    for i in track(range(0, len(val), step), "validation images"):
        scene = look(model, *val[i][:2])
        which = torch.arange(scene.grid[0] * scene.grid[1])
        values = cells(model, scene, which)
        seen = {key: score(*values) for key, score in scores.items()}
        if mixture is not None:
            output = look(mixture, val[i][0]).output
            seen["Gaussian mixture head, log density"] = -output.logits.amax(1).flatten()
        for key, value in seen.items():
            for title, score in ((key, value), (f"{key}|", smoothed(value, scene.grid))):
                found.setdefault(title, []).append(score[scene.labelled])
        found.setdefault("", []).append(scene.cell_label[scene.labelled] == new)
    unknown = torch.cat(found.pop(""))
    share, images = 100 * float(unknown.double().mean()), len(range(0, len(val), step))
    print(f"{name}: {share:.2f} % of {len(unknown)} cells in {images} images")
    print("| score | AUROC | FPR95 | AUROC, 7 x 7 | FPR95, 7 x 7 |")
    print("|---|---|---|---|---|")
    for key in found:
        if not key.endswith("|"):
            cells_of = [*judged(torch.cat(found[key]), unknown), *judged(torch.cat(found[f"{key}|"]), unknown)]
            print(f"| {key} | " + " | ".join(f"{value:.1f}" for value in cells_of) + " |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unknown", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="trained without the class")
    parser.add_argument("--name", required=True, help="of the class")
    parser.add_argument("--root", help="folder of the data")
    parser.add_argument("--gaussian", type=Path, help="trained the same with the head of examples/gaussian_mixture")
    parser.add_argument("--step", type=int, default=1, help="look at every so-manieth validation image")
    chosen = parser.parse_args(arguments)
    measure(chosen.checkpoint, chosen.name, chosen.root, chosen.gaussian, chosen.step)


if __name__ == "__main__":
    main()
