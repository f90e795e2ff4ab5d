"""How well swapped labels are found: ``python -m benchmarks.wrong_labels CHECKPOINT --root FOLDER --cleanlab FOLDER``.

About 5 % of the labelled regions of a split (those that ``protoseg data check --model`` looks at) get another class,
drawn evenly from those that do not touch the region, so that it stays one. The regions of these labels are ranked by
that command's score, and by cleanlab's segmentation filter on the same model's probabilities: by the share of the
region's pixels that it flags, ties by their mean doubt; and by that doubt alone, 1 - the probability of the label.
Precision at k is the share of swapped ones among the first k; a region counts as swapped where most of its pixels are.
The data are those of the checkpoint; whether it was trained on other labels or on these swapped ones, the reader of the
figures must be told. ``--write FOLDER`` writes the training split as the first seed swaps it, and val as it is, for
``data=folder data.root=FOLDER``; with ``--share 0`` the clean one, the ``--root`` for ranking by a model of the other.

cleanlab (AGPL) is no requirement: ``pip install --target FOLDER cleanlab``. It knows no ignored pixels: they are given
the class that the model says, so that none is flagged. Its images must be of one size.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from protoseg.analysis.stream import look
from protoseg.analysis.wrong_labels import judged_regions, regions
from protoseg.data import SegmentationDataset
from protoseg.trained import open_file

FIRST = (10, 20, 50)


class Swapped(NamedTuple):
    """The labels of an image after a swap, and where it was."""

    label: Tensor
    pixels: NDArray[np.bool_]


def swap(label: Tensor, classes: int, share: float, random: np.random.Generator) -> Swapped:
    """Give some regions of ``h w`` another class that does not touch them."""
    new, pixels = label.clone(), np.zeros(label.shape, bool)
    for given, _, mask in regions(label):
        if random.random() >= share:
            continue
        near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        free = np.setdiff1d(np.arange(classes), [given, *np.unique(new.numpy()[near])])
        if len(free):
            new[torch.from_numpy(mask)] = int(random.choice(free))
            pixels |= mask
    return Swapped(new, pixels)


def write(datamodule: Any, folder: Path, share: float, seed: int) -> None:
    """The data as a folder of images and masks of ids, 255 where ignored; regions of the training split are swapped."""
    space = datamodule.label_space
    names = {name: list(color) for name, color in zip(space.classes, space.colors, strict=True)}
    for split, part in ((datamodule.train_split, share), (datamodule.val_split, 0.0)):
        dataset = datamodule.dataset(split)
        for index, (image, _) in enumerate(track(dataset.samples, split)):
            label, _ = swap(dataset[index].label, space.num_classes, part, np.random.default_rng([seed, index]))
            ids = Image.fromarray(label.where(label >= 0, 255).numpy().astype(np.uint8))
            for kind, file in (("images", image), ("masks", image.with_suffix(".png"))):
                place = folder / kind / {datamodule.train_split: "train"}.get(split, "val") / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(image, place) if kind == "images" else ids.save(place)
    (folder / "classes.yaml").write_text(yaml.safe_dump({"classes": names, "void": [255]}, sort_keys=False))


def precision(score: NDArray[np.float64], swapped: NDArray[np.bool_]) -> dict[str, float]:
    """Share of swapped ones among the first k, in %, of ``n`` regions; and among as many as there are."""
    order = swapped[np.argsort(-score, kind="stable")]
    total = int(swapped.sum())
    return {str(k): 100 * float(order[:k].mean()) for k in FIRST} | {"all": 100 * float(order[:total].mean())}


def by_cleanlab(labels: NDArray[np.int16], probabilities: NDArray[np.float32]) -> Iterator[dict[str, list[float]]]:
    """Of each image the scores of its regions, high where wrong, by the name of the ranking."""
    from cleanlab.segmentation.filter import find_label_issues  # type: ignore[import-not-found]

    known = np.where(labels < 0, probabilities.argmax(1), labels)
    flagged = find_label_issues(known, probabilities, n_jobs=1, verbose=False)
    for label, flags, said in zip(labels, flagged, probabilities, strict=True):
        doubt = 1 - np.take_along_axis(said, label.clip(0).astype(np.int64)[None], 0)[0]
        found: dict[str, list[float]] = {"cleanlab, share flagged": [], "1 - probability of the label": []}
        for _, _, mask in regions(torch.from_numpy(label)):
            unsure = float(doubt[mask].mean())
            found["cleanlab, share flagged"].append(float(flags[mask].mean()) + 1e-6 * unsure)
            found["1 - probability of the label"].append(unsure)
        yield found


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Entry of the command; the precisions of each seed by ranking."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wrong_labels", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--root", help="folder of the data, where it is not where the training found it")
    parser.add_argument("--split", default="val")
    parser.add_argument("--share", type=float, default=0.05, help="of the regions that are swapped")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the swaps")
    parser.add_argument("--step", type=int, default=1, help="every so-manieth image")
    parser.add_argument("--cleanlab", type=Path, help="the folder that it was installed into")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write swapped data there, and rank nothing")
    chosen = parser.parse_args(arguments)
    if chosen.cleanlab:
        sys.path.append(str(chosen.cleanlab))  # last, so that its NumPy and pandas do not stand before the others
    file = open_file(chosen.checkpoint)
    datamodule = file.datamodule(chosen.root).target
    if chosen.write:
        write(datamodule, chosen.write, chosen.share, chosen.seeds[0])
        return {}
    dataset = datamodule.dataset(chosen.split)
    dataset.samples = dataset.samples[:: chosen.step]
    with TemporaryDirectory() as folder:
        return judge(file.model(), dataset, chosen, Path(folder) / "probabilities.npy")


def judge(model: Any, dataset: SegmentationDataset, chosen: Any, place: Path) -> dict[str, list[dict[str, float]]]:
    """Print and give precisions; the probabilities lie in a file meanwhile."""
    classes, began = dataset.label_space.num_classes, time.perf_counter()
    scores: dict[Any, list[float]] = defaultdict(list)
    swapped: dict[int, list[bool]] = defaultdict(list)
    labels: dict[int, list[NDArray[np.int16]]] = defaultdict(list)
    kept: Any = None
    for index in track(range(len(dataset)), "judged images"):
        scene = look(model, *dataset[index][:2], index)
        if chosen.cleanlab:
            said = scene.at_pixels(scene.output.logits[0].float()).softmax(0).cpu().numpy()
            if kept is None:
                kept = np.lib.format.open_memmap(place, "w+", np.float32, (len(dataset), *said.shape))
            kept[index] = said
        for seed in chosen.seeds:
            random = np.random.default_rng([seed, index * chosen.step])  # as of the whole split, which may be written
            label, pixels = swap(scene.label.cpu(), classes, chosen.share, random)
            judged = judged_regions(scene._replace(label=label), dataset.label_space.leaves)
            scores[seed, "data check --model"] += [region.score for region in judged]
            swapped[seed] += [pixels[mask].mean() > 0.5 for _, _, mask in regions(label)]
            labels[seed].append(label.numpy().astype(np.int16))
    print(f"model and our scores of {len(chosen.seeds)} swaps: {time.perf_counter() - began:.0f} s")
    for seed in chosen.seeds if chosen.cleanlab else ():
        began = time.perf_counter()
        for of_image in by_cleanlab(np.stack(labels[seed]), kept):
            for name, found in of_image.items():
                scores[seed, name] += found
        print(f"cleanlab, seed {seed}: {time.perf_counter() - began:.0f} s")
    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    for (seed, name), found in scores.items():
        results[name].append(precision(np.array(found), np.array(swapped[seed])))
    counts = ", ".join(f"{sum(found)} of {len(found)}" for found in swapped.values())
    print(f"swapped regions: {counts} (by chance {100 * np.mean([np.mean(x) for x in swapped.values()]):.1f} %)")
    print("| ranking | " + " | ".join(f"first {k}" for k in (*FIRST, "as many as swapped")) + " |")
    for name, runs in results.items():
        columns = ([run[key] for run in runs] for key in runs[0])
        print(f"| {name} | " + " | ".join(_shown(values) for values in columns) + " |")
    return results


def _shown(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
