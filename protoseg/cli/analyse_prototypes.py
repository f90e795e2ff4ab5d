"""``protoseg analyse prototypes``: everything there is to see of a checkpoint's prototypes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from protoseg.cli.analyse_common import (
    analysis_command,
    file_name,
    load_config,
    most_frequent,
    save_figure,
    save_json,
    save_picture,
    tell,
)
from protoseg.text import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from protoseg.analysis.embedding import EmbeddingSample
    from protoseg.analysis.patches import Patches
    from protoseg.analysis.structure import Occupancy
    from protoseg.types import LabelSpace

PARTS = ("patches", "activations", "embedding")


def add_prototypes(commands: Any) -> None:
    command = analysis_command(
        commands,
        "prototypes",
        prototypes,
        "Show what each prototype stands for: its nearest training patches, where it fires, the pixels it takes, which "
        "ones are dead or double, and a map of the embeddings.",
        "RUN/checkpoints/best.ckpt --out pictures",
    )
    command.add_argument("--patches", type=int, default=8, metavar="N", help="patches for each prototype (%(default)s)")
    command.add_argument("--pixels", type=int, default=3000, help="pixels on the map of embeddings (%(default)s)")
    command.add_argument(
        "--class",
        action="append",
        dest="classes",
        metavar="NAME",
        help="a class to draw, may be repeated (all, or the 40 most frequent)",
    )
    command.add_argument("--skip", action="append", choices=PARTS, default=[], help="leave a part out, may be repeated")


def prototypes(options: argparse.Namespace) -> None:
    """Write tables and pictures of a checkpoint's prototypes over the training images.

    ``structure.json``, ``within.png``, ``between.png``, ``occupancy.png``, ``patches/CLASS.jpg``,
    ``activations/CLASS.jpg`` (in the image with most pixels of the class), ``embedding.png``.

    Raises:
        ProtosegError: wrong input; see the message.
    """
    from protoseg.analysis.embedding import EmbeddingCollector
    from protoseg.analysis.patches import PatchCollector
    from protoseg.analysis.stream import Collector, collect, prototype_memory, scenes
    from protoseg.analysis.structure import OccupancyCollector, describe
    from protoseg.run.evaluate import image_loader, open_checkpoint

    cfg = load_config(options)
    trained = open_checkpoint(cfg)
    space = trained.label_space
    vectors = prototype_memory(trained.model).prototypes
    c, k, _ = vectors.shape
    named = space.ids(options.classes, "--class") if options.classes else None
    occupancy, patches = OccupancyCollector(c, k), PatchCollector(c, k, options.patches)
    embeddings = EmbeddingCollector(max(1, options.pixels // c))
    parts: dict[str, Collector] = {"patches": patches, "embedding": embeddings}
    with image_loader(cfg, trained, options.images, training=True) as loader:
        stream = scenes(trained.model, loader)
        collect(stream, occupancy, *(part for name, part in parts.items() if name not in options.skip))
        found = occupancy.compute()
        entries = describe(vectors, found.counted, space)
        classes = named or most_frequent(found.counted.sum(1))
        _write_structure(options.out, found, entries, vectors, space, classes)
        if "patches" not in options.skip:
            _draw_patches(options.out, patches.compute(), entries, space, classes)
        if "activations" not in options.skip:
            _draw_activations(options.out, trained.model, loader.dataset, found, space, classes)
    if "embedding" not in options.skip:
        _draw_embedding(options.out, embeddings.compute(), vectors, space)
    _print(entries)
    tell(options.out)


def _write_structure(
    out: Path,
    found: Occupancy,
    entries: list[dict[str, Any]],
    vectors: Tensor,
    space: LabelSpace,
    classes: Sequence[int],
) -> None:
    from protoseg.analysis.structure import between_figure, occupancy_figure, within_figure

    counts = {"true_cells": found.true.tolist(), "predicted_cells": found.predicted.tolist()}
    rows = [entry | {name: rows[i] for name, rows in counts.items()} for i, entry in enumerate(entries)]
    save_json(out / "structure.json", {"classes": rows})
    save_figure(out / "within.png", within_figure(vectors, space, classes))
    save_figure(out / "between.png", between_figure(vectors, space))
    save_figure(out / "occupancy.png", occupancy_figure(found, space, classes))


def _draw_patches(
    out: Path, patches: Patches, entries: list[dict[str, Any]], space: LabelSpace, classes: Sequence[int]
) -> None:
    from protoseg.analysis.patches import patch_sheet

    for i in _drawing(classes, "patches"):
        sheet = patch_sheet(patches.found[i], i, space, entries[i]["shares"])
        save_picture(out / "patches" / f"{file_name(i, space)}.jpg", sheet)


def _draw_activations(
    out: Path, model: nn.Module, dataset: Any, found: Occupancy, space: LabelSpace, classes: Sequence[int]
) -> None:
    from protoseg.analysis.activations import activation, activation_panel
    from protoseg.analysis.stream import look

    for i in _drawing([i for i in classes if found.example[i] >= 0], "activations"):
        image, label, name = dataset[int(found.example[i])]
        scene = look(model, image, label, name=name)
        panel = activation_panel(image, activation(model, scene, i), space)
        save_picture(out / "activations" / f"{file_name(i, space)}.jpg", panel)


def _draw_embedding(out: Path, sample: EmbeddingSample, vectors: Tensor, space: LabelSpace) -> None:
    from protoseg.analysis.embedding import embedding_figure, embedding_map

    with Console(stderr=True).status("t-SNE"):
        places = embedding_map(sample, vectors)
    save_figure(out / "embedding.png", embedding_figure(places, space))


def _drawing(classes: Sequence[int], title: str) -> Iterable[int]:
    return track(classes, title, console=Console(stderr=True))


def _print(entries: list[dict[str, Any]]) -> None:
    from protoseg.evaluation.pictures import MANY_CLASSES

    table = Table(title="Prototypes of each class")
    for i, title in enumerate(("class", "cells", "in use", "mean cosine", "dead", "double", "nearest class")):
        table.add_column(title, justify="right" if 0 < i < 4 else "left")
    for entry in sorted(entries, key=lambda entry: -entry["cells"])[:MANY_CLASSES]:
        table.add_row(
            entry["name"],
            str(entry["cells"]),
            "–" if entry["effective"] is None else f"{entry['effective']:.1f}",
            "–" if entry["mean_cosine"] is None else f"{entry['mean_cosine']:.2f}",
            ", ".join(map(str, entry["dead"])),
            ", ".join(f"{a} = {b}" for a, b, _ in entry["duplicates"][:4]) + (" …" * (len(entry["duplicates"]) > 4)),
            "–" if entry["nearest_class"] is None else f"{entry['nearest_class']} ({entry['nearest_cosine']:.2f})",
        )
    Terminal().print(table)
