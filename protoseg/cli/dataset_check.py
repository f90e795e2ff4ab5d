"""``python -m protoseg.data check``: everything that is wrong with a data set."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from protoseg.cli.dataset_splits import Splits, data_command, load_data, splits_by_part
from protoseg.data.checking import check_samples, deep_images, listing_faults, repeated_images, turned_images
from protoseg.data.labelled import label_notes, nothing_labelled
from protoseg.text import say


def add_check(commands: Any) -> None:
    data_command(
        commands,
        "check",
        check,
        "Open every file of the training and validation splits and list all faults: files without partner, unreadable "
        "ones, sizes that differ, unknown labels, images listed twice. Exit code 1 if there is any. Notes tell what is "
        "not read, and which images their EXIF turns.",
        "camvid",
    )


def check(options: argparse.Namespace) -> None:
    """List the faults of ``data=…``, one a line; exit code 1 if there is any."""
    total = 0
    for part, splits in splits_by_part(load_data(options)).items():
        total += _check_part(f"{part} " if part else "", splits)
    if total:
        say(f"{total} fault{'s' if total > 1 else ''} found")
        sys.exit(1)
    say("no faults")


def _check_part(part: str, splits: Splits) -> int:
    """Check the splits of one part and print what is found; returns how many faults."""
    made = {f"{part}{split}": listing_faults(make) for split, make in splits.items()}
    datasets = {title: dataset for title, (dataset, _) in made.items() if dataset is not None}
    found = [fault for _, faults in made.values() for fault in faults] + repeated_images(datasets)
    counted: dict[str, NDArray[np.int64]] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for title, dataset in datasets.items():
            task = progress.add_task(f"checking {escape(title)}", total=len(dataset))
            counted[title] = np.zeros(dataset.label_space.num_classes + 1, np.int64)
            for checked in check_samples(dataset):
                found += checked.faults
                counted[title] += checked.pixels
                progress.advance(task)
    for title, pixels in counted.items():
        if pixels.any() and not pixels[:-1].any():
            found.append(str(nothing_labelled(datasets[title])))
    # Splits may list the same folder.
    found = list(dict.fromkeys(found))
    for title, dataset in datasets.items():
        masks = sum(mask is not None for _, mask in dataset.samples)
        say(f"{title}: {len(dataset)} images and {masks} masks read")
        if dataset.mask_reading:
            say(f"{title}: masks are read as: {dataset.mask_reading}")
        pixels = counted[title]
        if pixels[:-1].any():
            looked = f"the {masks} masks of {title}"
            for note in label_notes(dataset.label_space, pixels[:-1], pixels[-1] / pixels.sum(), looked):
                say(f"note: {note}")
    looks = ((*data.notes, turned_images(data), deep_images(data)) for data in datasets.values())
    for note in dict.fromkeys(note for notes in looks for note in notes if note):
        say(f"note: {note}")
    for message in found:
        say(f"fault: {message}")
    return len(found)
