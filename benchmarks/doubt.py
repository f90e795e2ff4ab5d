"""How well models trained by day know where they are wrong: ``python -m benchmarks.doubt CAMVID CHECKPOINT …``.

Each was trained on CamVid's day drives alone (``data.dataset.sequences=[0006R0,0016E5] data.val_split=null``).
AUROC in finding wrong pixels and ECE on val (day) and on the drive at dusk, of the softmax, of a class-aware confidence
from plain training images, and of the product's (bad light and the image's mean besides). Label sets by three ways,
from half of val, on the other half and at dusk. Pseudo-labels at dusk, as many as have a softmax probability of 0.8 and
the surest by each confidence: how many are right, and what share of a class is kept and right, the mean over classes.
Means over the checkpoints ± their standard deviation.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from protoseg.analysis.stream import look
from protoseg.analysis.uncertainty import UncertaintyCollector, pixel_uncertainty, uncertainty_figure
from protoseg.data import CamVid, SegmentationDataset
from protoseg.data.statistics import spread
from protoseg.functional.discriminant import COVERAGE, class_calibration, set_thresholds
from protoseg.models.segmentor import Segmentor
from protoseg.nn import Discriminant
from protoseg.teach.statistics import MAX_IMAGES, in_bad_light, judged_cells
from protoseg.trained import open_file

DAY, DUSK = ["0006R0", "0016E5"], ["0001TP"]
PIXELS = 2500  # of an image, for label sets and pseudo-labels
THRESHOLD = 0.8  # of experiment=small_…
Found = dict[str, list[float]]


class Fitted:
    """What :class:`UncertaintyCollector` needs of a discriminant."""

    log_odds = Discriminant.log_odds

    def __init__(self, said: Sequence[Sequence[Tensor]], classes: int, context: bool) -> None:
        log_odds, predicted, right = map(torch.cat, zip(*said, strict=True))
        found = class_calibration(log_odds if context else log_odds[:, 0], predicted, right, classes)
        (self.slope, self.sureness), self.known = found, SimpleNamespace(sets=None)


def fitted(model: Segmentor, train: SegmentationDataset, images: int) -> dict[str, Any]:
    """Confidences by name."""
    plain, dim, generator = [], [], torch.Generator().manual_seed(0)
    for number, index in enumerate(track(spread(len(train), images), "training images")):
        image, label, _ = train[index]
        plain.append(judged_cells(look(model, image, label)))
        if number % 2:
            dim.append(judged_cells(look(model, in_bad_light(image, generator), label)))
    classes = model.num_classes
    return {
        "class-aware, plain images": Fitted(plain, classes, False),
        "class-aware, bad light too": Fitted(plain + dim, classes, False),
        "class-aware, bad light and the image's mean": Fitted(plain + dim, classes, True),
    }


def judge(model: Segmentor, data: SegmentationDataset, known: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """By name of the confidence how it finds wrong pixels; and of some pixels of each image probabilities and truth."""
    collectors, pixels = {name: UncertaintyCollector(one) for name, one in known.items()}, []
    for index in track(range(len(data)), "judged images"):
        scene = look(model, *data[index][:2])
        for collector in collectors.values():
            collector.update(scene)
        counted = scene.label >= 0
        scores = scene.at_pixels(scene.output.logits[0].float())[:, counted]
        step = max(1, scores.shape[1] // PIXELS)
        said = pixel_uncertainty(scene)
        odds = [said.log_odds, *(one.log_odds(said.log_odds, said.prediction) for one in known.values())]
        sure = torch.stack([each[counted][::step] for each in odds], 1)
        pixels.append((scores[:, ::step].softmax(0).T.clone(), scene.label[counted][::step], sure))
    found = {name: collector.compute()["class-aware"] for name, collector in collectors.items()}
    first = next(iter(collectors.values()))
    return {"softmax": first.compute()["confidence"], **found}, pixels


def before(probabilities: Tensor, truth: Tensor | None = None) -> Tensor:
    """Probability of the classes likelier than each, ``n c``, or than the true one, ``n`` (APS)."""
    ranked, order = probabilities.sort(1, descending=True)
    mass = torch.zeros_like(ranked).scatter(1, order, ranked.cumsum(1) - ranked)
    return mass if truth is None else mass.gather(1, truth[:, None])[:, 0]


def pseudo_labels(pixels: list[Any], names: Sequence[str], results: dict[str, Found]) -> None:
    """How right those are that each confidence would keep, as many as a threshold of the softmax keeps."""
    p, truth, sure = map(torch.cat, zip(*pixels, strict=True))
    right, kept = p.argmax(1) == truth, int((sure[:, 0].sigmoid() >= THRESHOLD).sum())
    for name, order in zip(names, sure.argsort(0, descending=True).T, strict=True):
        chosen = torch.zeros_like(right).index_fill_(0, order[:kept], True)
        shares = [float((chosen & right)[truth == c].double().mean()) for c in truth.unique()]
        numbers = {"kept": kept / len(p), "right": float(right[chosen].double().mean()), "of a class": mean(shares)}
        for key, value in numbers.items():
            results[f"pseudo-labels, {name}"].setdefault(key, []).append(100 * value)


def label_sets(calibration: list[Any], judged: dict[str, list[Any]], where: str, results: dict[str, Found]) -> None:
    """Coverage (of all pixels, of the least covered class) and size of sets."""
    p, truth = map(torch.cat, [*zip(*calibration, strict=True)][:2])
    own = p.gather(1, truth[:, None])[:, 0]
    level = own.kthvalue(int((1 - COVERAGE) * len(own))).values
    by_class = set_thresholds(own, truth, p.shape[1])
    mass = before(p, truth).kthvalue(int(COVERAGE * len(own)) + 1).values
    for data, pixels in judged.items():
        q, true = map(torch.cat, [*zip(*pixels, strict=True)][:2])
        ways = {"LAC": q >= level, "LAC by class": q >= by_class, "APS": before(q) <= mass}
        for name, sets in ways.items():
            held = sets.gather(1, true[:, None])[:, 0].double()
            least = min(float(held[true == c].mean()) for c in true.unique())
            numbers = {
                "covered": 100 * float(held.mean()),
                "least": 100 * least,
                "size": float(sets.sum(1).double().mean()),
            }
            for key, value in numbers.items():
                results[f"{name}, {where}, {data}"].setdefault(key, []).append(value)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doubt", description=__doc__)
    parser.add_argument("camvid", type=Path, help="CamVid's folder")
    parser.add_argument("checkpoints", nargs="+", type=Path, help="one for each seed")
    parser.add_argument("--images", type=int, default=MAX_IMAGES, help="training images of the fit")
    parser.add_argument(
        "--whole", action="store_true", help="they were trained on the drive at dusk, too: judge on val"
    )
    parser.add_argument("--step", type=int, default=1, help="judge on every so-manieth image")
    parser.add_argument("--plot", type=Path, help="folder for the figures of the first checkpoint")
    chosen = parser.parse_args(arguments)
    train = CamVid(root=chosen.camvid, split="train", sequences=None if chosen.whole else DAY)
    sets = {"val": CamVid(root=chosen.camvid, split="val")}
    if not chosen.whole:
        sets["dusk"] = CamVid(root=chosen.camvid, split="train", sequences=DUSK)
    for images in sets.values():
        images.samples = images.samples[:: chosen.step]
    results: dict[str, Found] = defaultdict(dict)
    for number, path in enumerate(chosen.checkpoints):
        model = open_file(path).model()
        with torch.enable_grad():
            known = fitted(model, train, chosen.images)
        pixels = {}
        for data, images in sets.items():
            found, pixels[data] = judge(model, images, known)
            for name, entry in found.items():
                assert entry.calibration is not None
                numbers = {"wrong": entry.error_rate, "AUROC": entry.auroc, "ECE": entry.calibration.ece}
                for key, value in numbers.items():
                    results[f"{name}, {data}"].setdefault(key, []).append(100 * value)
            if chosen.plot and not number:
                uncertainty_figure(found, f"CamVid {data}, trained by day").savefig(chosen.plot / f"doubt_{data}.png")
        if not chosen.whole:
            pseudo_labels(pixels["dusk"], ["softmax", *known], results)
        day, half = pixels["val"], len(pixels["val"]) // 2
        label_sets(
            day[::2],
            {"val, other half": day[1::2]} | {key: pixels[key] for key in [*sets][1:]},
            "every second image",
            results,
        )
        label_sets(day[:half], {"val, other half": day[half:]}, "first half", results)
        label_sets(day[half:], {"val, other half": day[:half]}, "second half", results)
    for row, numbers in results.items():
        text = (f"{mean(v):.2f}" + (f" ± {stdev(v):.2f}" if len(v) > 1 else "") for v in numbers.values())
        print(f"| {row} | " + " | ".join(f"{key} {value}" for key, value in zip(numbers, text, strict=True)) + " |")


if __name__ == "__main__":
    main()
