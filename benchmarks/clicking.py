"""Labelling by clicks, with a simulated annotator: ``python -m benchmarks.clicking curve camvid --out curve.json``.

The annotator clicks each class once, and then says the true class of the pixel that a ranking offers: of the first
mark of the image that the page shows next (``ours``), of the largest entropy, of one by chance; no image comes twice
before all have come. With ``error`` the truth offers it: the middle of the largest region that is labelled wrong, in an
image by chance, that the page shows next, or that has the largest. Judged are other images, which are never clicked.
``five`` instead clicks one class five times, in images that show it; ``picture`` draws the curves of several files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import cv2
import hydra
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from examples.labelling_page.clicks import NONE, Session
from examples.labelling_page.evidence import blank_file
from protoseg.checkpoint import read_checkpoint
from protoseg.data import CAMVID, CamVid, SegmentationDataset, Streets
from protoseg.data.statistics import spread
from protoseg.evaluation.metrics import confusion_matrix, scores
from protoseg.trained import TrainedFile
from protoseg.types import LabelSpace

JUDGED_AT = (5, 10, 15, 20, 30, 40, 50, 60)  # clicks
WEEDS = LabelSpace("cwfid", ("soil", "crop", "weed"), ((0, 0, 0), (0, 255, 0), (255, 0, 0)))
LITE0: dict[str, Any] = {
    "_target_": "protoseg.models.encoders.TimmEncoder",
    "name": "tf_efficientnet_lite0",
    "pretrained": True,
}
ROOT = Path(os.environ.get("PROTOSEG_DATA", "data"))
Label = NDArray[np.uint8]
Photo = tuple[Path, Label]  # and its truth, ``H W``, 255 where there is none


class Photos(NamedTuple):
    """Two parts of a data set, which share no image."""

    space: LabelSpace
    clicked: list[Photo]
    judged: list[Photo]


def camvid(seed: int) -> Photos:
    """24 images of train, by chance, and 16 of val, always the same."""
    return _parts(CamVid(root=ROOT / "camvid", split="train"), CamVid(root=ROOT / "camvid", split="val"), seed)


def streets(seed: int) -> Photos:
    """The same of the built-in scenes."""
    return _parts(Streets(split="train"), Streets(split="val"), seed)


def _parts(train: SegmentationDataset, val: SegmentationDataset, seed: int) -> Photos:
    chosen = sorted(random.Random(seed).sample(range(len(train)), 24))
    clicked, judged = (
        [(data.samples[i][0], data.read_label(i).astype(np.uint8)) for i in ids]
        for data, ids in ((train, chosen), (val, spread(len(val), 16)))
    )
    return Photos(replace(CAMVID, name=type(train).__name__.lower()), clicked, judged)


def cwfid(seed: int) -> Photos:
    """Eight of the twelve images, by chance, and the other four."""
    paths = sorted((ROOT / "cwfid" / "images").glob("*_image.png"))
    random.Random(seed).shuffle(paths)
    photos = [(path, _weed_truth(path)) for path in paths]
    return Photos(WEEDS, photos[:8], photos[8:])


def _weed_truth(path: Path) -> Label:
    place = path.parents[1] / "annotations" / path.name.replace("_image", "_annotation")
    drawn = np.asarray(Image.open(place).convert("RGB"))
    truth = np.full(drawn.shape[:2], NONE, np.uint8)
    for class_id, color in enumerate(WEEDS.colors):
        truth[(drawn == color).all(2)] = class_id
    return truth


DATA: dict[str, Callable[[int], Photos]] = {"camvid": camvid, "cwfid": cwfid, "streets": streets}


class Click(NamedTuple):
    """A pixel, its true class, and how large the region around it is."""

    x: int
    y: int
    class_id: int
    pixels: int


def largest_error(label: Label, truth: Label, class_ids: Sequence[int] | None = None) -> Click | None:
    """The middle of the largest region of one true class that is labelled otherwise, ``H W``; None: there is none.

    The middle is the pixel that is farthest from the region's edge. Pixels without truth (255) take no part; nor, where
    ``class_ids`` are given, do those of other true classes.
    """
    wrong = (label != truth) & (truth != NONE)
    click = None
    for class_id in np.unique(truth[wrong]).tolist() if class_ids is None else class_ids:
        own = (wrong & (truth == class_id)).astype(np.uint8)
        _, regions, facts, _ = cv2.connectedComponentsWithStats(own, connectivity=4)
        areas = facts[1:, cv2.CC_STAT_AREA]
        if len(areas) and (click is None or areas.max() > click.pixels):
            inner = (regions == 1 + int(areas.argmax())).astype(np.uint8)
            depth = cv2.distanceTransform(np.pad(inner, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            click = Click(int(x), int(y), class_id, int(areas.max()))
    return click


def start(checkpoint: Path | None) -> TrainedFile:
    """What is taught: a checkpoint, or an ImageNet encoder without a class."""
    if checkpoint is not None:
        return TrainedFile(checkpoint, read_checkpoint(checkpoint))
    return blank_file(LITE0["name"], LITE0, hydra.utils.instantiate(LITE0))


class Annotator:
    """A session on images whose truth is known; the first ``clicked`` of its images may be clicked."""

    def __init__(self, data: Photos, folder: Path, file: TrainedFile) -> None:
        self.data, self.truths = data, [truth for _, truth in (*data.clicked, *data.judged)]
        photos = folder / "photos"
        photos.mkdir()
        for i, (path, _) in enumerate((*data.clicked, *data.judged)):
            (photos / f"{i:02}_{path.name}").symlink_to(path.absolute())
        self.session = Session(file, photos, folder / data.space.name)
        self.clicks, self.chance = 0, random.Random(0)

    def forget(self) -> None:
        """Take back all that was said."""
        while self.session.actions:
            self.session.act({"do": "undo"})
        self.clicks = 0

    def ids(self) -> list[int]:
        """The session's class for each class of the data; -1: none yet."""
        there = self.session.space.classes
        return [there.index(name) if name in there else -1 for name in self.data.space.classes]

    def label(self, i: int) -> Label:
        """The session's label of an image in the data's classes."""
        table = np.full(256, NONE, np.uint8)
        for class_id, there in enumerate(self.ids()):
            if there >= 0:
                table[there] = class_id
        found: Label = table[self.session.labels(i)]
        return found

    def say(self, i: int, x: int, y: int, class_id: int) -> None:
        """Click a pixel, whose class is made if there is none yet."""
        there = self.ids()[class_id]
        if there < 0:
            space = self.data.space
            there = self.session.add_class(space.classes[class_id], space.colors[class_id])
        self.session.click(i, x, y, there)
        self.clicks += 1

    def begin(self) -> None:
        """Click each class once, in the middle of its largest region in an image drawn by chance."""
        for class_id in range(self.data.space.num_classes):
            showing = [i for i, (_, truth) in enumerate(self.data.clicked) if (truth == class_id).any()]
            if showing:
                i = self.chance.choice(showing)
                click = largest_error(np.full_like(self.truths[i], NONE), self.truths[i], [class_id])
                assert click is not None
                self.say(i, click.x, click.y, class_id)

    def judge(self) -> list[float]:
        """IoU of each class on the images that are not clicked, in percent; a pixel without a label is wrong."""
        c = self.data.space.num_classes
        total = torch.zeros(c + 1, c + 1, dtype=torch.int64)
        for i in range(len(self.data.clicked), len(self.truths)):
            truth, label = (torch.from_numpy(part.astype(np.int64)) for part in (self.truths[i], self.label(i)))
            truth[truth == NONE], label[label == NONE] = -1, c
            total += confusion_matrix(label, truth, c + 1)
        return (100 * scores(total, [c])["IoU"][:c]).tolist()


Pixel = tuple[float, int, int]  # how much it is worth, x, y


def by_marks(annotator: Annotator, i: int) -> Pixel | None:
    """The first mark of the page that has a truth."""
    for x, y, worth in annotator.session.worth(i)[1]:
        if annotator.truths[i][y, x] != NONE:
            return worth, x, y
    return None


def by_entropy(annotator: Annotator, i: int) -> Pixel | None:
    """The cell of the largest entropy by itself, of those that have a truth and of which nothing was said."""
    session, stride = annotator.session, annotator.session.model.stride
    found = torch.special.entr(session.scores(i).softmax(1)).sum(1)[0]
    found[torch.from_numpy(session.evidence(i) != NONE)] = -1
    void = torch.from_numpy(annotator.truths[i][stride // 2 :: stride, stride // 2 :: stride] == NONE)
    rows, columns = (min(pair) for pair in zip(void.shape, found.shape, strict=True))
    found = found[:rows, :columns].masked_fill(void[:rows, :columns], -1)
    y, x = divmod(int(found.argmax()), columns)
    return float(found.max()), x * stride + stride // 2, y * stride + stride // 2


def by_chance(annotator: Annotator, i: int) -> Pixel | None:
    """A pixel that has a truth."""
    rows, columns = np.nonzero(annotator.truths[i] != NONE)
    place = annotator.chance.randrange(len(rows))
    return annotator.chance.random(), int(columns[place]), int(rows[place])


def by_error(annotator: Annotator, i: int) -> Pixel | None:
    """The middle of the largest error, which only the truth knows, in an image by chance."""
    click = largest_error(annotator.label(i), annotator.truths[i])
    return click and (annotator.chance.random(), click.x, click.y)


def by_largest_error(annotator: Annotator, i: int) -> Pixel | None:
    """The middle of the largest error in the image that has the largest."""
    click = largest_error(annotator.label(i), annotator.truths[i])
    return click and (click.pixels, click.x, click.y)


def by_error_in_doubt(annotator: Annotator, i: int) -> Pixel | None:
    """The middle of the largest error in the image that the page shows next."""
    click, points = largest_error(annotator.label(i), annotator.truths[i]), annotator.session.worth(i)[1]
    return click and (points[0][2] if points else -1e9, click.x, click.y)


RANKINGS: dict[str, Callable[[Annotator, int], Pixel | None]] = {
    "ours": by_marks,
    "entropy": by_entropy,
    "random": by_chance,
    "error": by_error,
    "error-ours": by_error_in_doubt,
    "error-largest": by_largest_error,
}


def curve(annotator: Annotator, how: str, seed: int, most: int) -> dict[int, list[float]]:
    """IoU of each class by the number of clicks; no image comes twice before all have been opened."""
    annotator.forget()
    annotator.chance = random.Random(seed)
    found = dict[int, list[float]]()
    if annotator.session.blank:
        annotator.begin()
    found[annotator.clicks] = annotator.judge()
    left = set(range(len(annotator.data.clicked)))
    while annotator.clicks < most and left:
        offers = {i: offer for i in left if (offer := RANKINGS[how](annotator, i))} if how != "error" else {}
        for i in annotator.chance.sample(sorted(left), len(left)) if how == "error" else ():
            if offer := by_error(annotator, i):
                offers = {i: offer}
                break
        if not offers:
            break
        i = max(offers, key=lambda i: offers[i][0])
        _, x, y = offers[i]
        annotator.say(i, x, y, int(annotator.truths[i][y, x]))
        left = left - {i} or set(range(len(annotator.data.clicked)))
        if annotator.clicks in JUDGED_AT:
            found[annotator.clicks] = annotator.judge()
    return found


def five(annotator: Annotator, name: str, seed: int, clicks: int = 5) -> tuple[list[float], list[float]]:
    """IoU of each class before and after five clicks of one class, at its largest missed regions, an image each."""
    annotator.forget()
    data = annotator.data
    class_id, before = data.space.classes.index(name), annotator.judge()
    showing = [i for i, (_, truth) in enumerate(data.clicked) if (truth == class_id).mean() > 0.01]
    for i in random.Random(seed).sample(showing, len(showing)) * clicks:
        click = largest_error(annotator.label(i), annotator.truths[i], [class_id])
        if click and annotator.clicks < clicks:
            annotator.say(i, click.x, click.y, class_id)
    return before, annotator.judge()


LABELS = {
    "ours": "marks of the page",
    "entropy": "entropy of one cell",
    "random": "by chance",
    "error": "largest error",
}


def picture(files: Sequence[Path], path: Path) -> None:
    """The curves of the files, one panel each: mean over seeds, and their range."""
    figure = Figure(figsize=(5.2 * len(files), 3.6), layout="constrained")
    for axes, file in zip(np.atleast_1d(figure.subplots(1, len(files))), files, strict=True):
        content = json.loads(file.read_text())
        for how, style in (("ours", "C0-o"), ("entropy", "C1-s"), ("random", "C7-^"), ("error", "C2--")):
            if how not in content["runs"]:
                continue
            runs = [{int(n): float(np.nanmean(ious)) for n, ious in run.items()} for run in content["runs"][how]]
            counts = sorted(set.intersection(*(set(run) for run in runs)))
            values = np.array([[run[n] for n in counts] for run in runs])
            axes.plot(counts, values.mean(0), style, label=LABELS[how], markersize=4)
            axes.fill_between(counts, values.min(0), values.max(0), color=style[:2], alpha=0.15, linewidth=0)
        if "trained" in content:
            label, value = content["trained"]
            axes.axhline(value, color="k", linewidth=1, label=label)
        axes.set(title=content["title"], xlabel="clicks", ylabel="mIoU on images never clicked, %")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clicking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("curve", "five"):
        command = commands.add_parser(name)
        command.add_argument("data", choices=DATA)
        command.add_argument("--checkpoint", type=Path, help="start from it; without: an ImageNet encoder alone")
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        command.add_argument("--out", type=Path, help="add what was found to this JSON file")
    commands.choices["curve"].add_argument("--by", nargs="+", choices=RANKINGS, default=["ours", "entropy", "random"])
    commands.choices["curve"].add_argument("--clicks", type=int, default=60)
    commands.choices["curve"].add_argument("--title", default="")
    commands.choices["five"].add_argument("--name", required=True, help="the class that is clicked")
    drawn = commands.add_parser("picture")
    drawn.add_argument("files", nargs="+", type=Path)
    drawn.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    {"curve": _curves, "five": _fives, "picture": lambda c: picture(c.files, c.out)}[chosen.command](chosen)


def _curves(chosen: argparse.Namespace) -> None:
    content: dict[str, Any] = {"title": chosen.title or chosen.data, "runs": {}}
    if chosen.out and chosen.out.is_file():
        content = json.loads(chosen.out.read_text())
    for seed, annotator in _annotators(chosen):
        for how in chosen.by:
            run = curve(annotator, how, seed, chosen.clicks)
            content["runs"].setdefault(how, []).append(run)
            means = {n: round(float(np.nanmean(ious)), 1) for n, ious in run.items()}
            print(f"{chosen.data}, {how}, seed {seed}: mIoU by clicks {means}", flush=True)
        if chosen.out:
            chosen.out.write_text(json.dumps(content))


def _fives(chosen: argparse.Namespace) -> None:
    found = []
    for seed, annotator in _annotators(chosen):
        place = annotator.data.space.classes.index(chosen.name)
        runs = five(annotator, chosen.name, seed)
        found.append([value for ious in runs for value in (ious[place], float(np.nanmean(np.delete(ious, place))))])
        print(f"{chosen.name}, seed {seed}: IoU {found[-1][0]:.1f} -> {found[-1][2]:.1f}", flush=True)
    titles = ("before", "the others", "after", "the others")
    for title, values in zip(titles, zip(*found, strict=True), strict=True):
        print(f"{title}: {mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}")


def _annotators(chosen: argparse.Namespace) -> Iterator[tuple[int, Annotator]]:
    """One for each seed, which draws the images; what the network makes of them is computed once."""
    for seed in chosen.seeds:
        with tempfile.TemporaryDirectory() as folder:
            annotator = Annotator(DATA[chosen.data](seed), Path(folder), start(chosen.checkpoint))
            yield seed, annotator
            annotator.session.close()


if __name__ == "__main__":
    main()
