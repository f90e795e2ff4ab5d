"""What a checkpoint shows: in the tables and pictures of ``protoseg analyse``, and on the page of ``report=true``."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from protoseg.analysis.activations import PatchCollector, activation, activation_panel, patch_sheet
from protoseg.analysis.adaptation import ConfusionCollector, compared, comparison_panel, iou_figure
from protoseg.analysis.embedding import EmbeddingCollector, embedding_figure, embedding_map
from protoseg.analysis.stream import collect, look, prototype_memory, scenes
from protoseg.analysis.structure import OccupancyCollector, between_figure, describe, occupancy_figure, within_figure
from protoseg.analysis.uncertainty import UncertaintyCollector, error_detection, uncertainty_figure, uncertainty_panel
from protoseg.checkpoint import check_same_classes
from protoseg.data.statistics import spread
from protoseg.evaluation.pictures import MANY_CLASSES, confusions_figure
from protoseg.evaluation.writer import jpeg
from protoseg.files import with_ending, write_file, write_json
from protoseg.functional.discriminant import COVERAGE
from protoseg.models.segmentor import Segmentor
from protoseg.page.page import PrototypeReport, WorstImage, figure_uri, pixel_view, prototype_report, write_page
from protoseg.run.evaluate import Trained, image_loader, open_checkpoint, open_data
from protoseg.text import Terminal, progress, say
from protoseg.types import LabelSpace, Names, ProtosegError

_TITLES = {"margin": "prototype margin", "distance": "prototype distance", "confidence": "softmax confidence"}
_TITLES |= {"class-aware": "class-aware confidence"}
PROTOTYPE_IMAGES = 200  # looked at for patches and occupancy
VIEWS = 8  # images to click into
DOUBT_IMAGES = 100  # in which the model's doubt is judged, where it has statistics


def prototypes(
    cfg: DictConfig, out: Path, images: int | None, patches: int, pixels: int, classes: Names | None, skip: Names
) -> None:
    """Write tables and pictures of a checkpoint's prototypes over the training images."""
    trained = open_checkpoint(cfg)
    model, space = trained.model, trained.label_space
    vectors = prototype_memory(model).prototypes
    c, k, _ = vectors.shape
    ids = space.ids(classes, "--class") if classes else None
    occupancy, nearest = OccupancyCollector(c, k), PatchCollector(c, k, patches)
    embeddings = EmbeddingCollector(max(1, pixels // c))
    parts: dict[str, Any] = {"patches": nearest, "embedding": embeddings}
    with image_loader(cfg, trained, images, training=True) as loader:
        collect(scenes(model, loader), occupancy, *(part for name, part in parts.items() if name not in skip))
        found = occupancy.compute()
        entries = describe(vectors, found.counted, space)
        ids = ids or sorted(found.counted.sum(1).argsort(descending=True)[:MANY_CLASSES].tolist())
        counts = zip(entries, found.true.tolist(), found.predicted.tolist(), strict=True)
        rows = [entry | {"true_cells": true, "predicted_cells": predicted} for entry, true, predicted in counts]
        write_json(out / "structure.json", {"classes": rows})
        write_file(out / "within.png", within_figure(vectors, space, ids).savefig)
        write_file(out / "between.png", between_figure(vectors, space).savefig)
        write_file(out / "occupancy.png", occupancy_figure(found, space, ids).savefig)
        if "patches" not in skip:
            best = nearest.compute()
            for i in progress(ids, "patches"):
                sheet = patch_sheet(best[i], i, space, entries[i]["shares"])
                write_file(out / "patches" / _class_file(i, space), jpeg(sheet))
        if "activations" not in skip:
            for i in progress([i for i in ids if found.example[i] >= 0], "activations"):
                image, label, name = loader.dataset[int(found.example[i])]
                scene = look(model, image, label, name=name, shown=space.shown)
                panel = activation_panel(scene.image.cpu(), activation(model, scene, i), space)
                write_file(out / "activations" / _class_file(i, space), jpeg(panel))
    if "embedding" not in skip:
        with Terminal(stderr=True).status("t-SNE"):
            places = embedding_map(embeddings.compute(), vectors)
        write_file(out / "embedding.png", embedding_figure(places, space).savefig)
    header = ("class", "cells", "in use", "mean cosine", "dead", "double", "nearest class")
    shown = sorted(entries, key=lambda entry: -entry["cells"])[:MANY_CLASSES]
    Terminal().table("Prototypes of each class", header, map(_prototype_row, shown), left=(0, 4, 5, 6))
    say(f"Results: {out}")


def _prototype_row(entry: dict[str, Any]) -> list[str]:
    effective = "–" if entry["effective"] is None else f"{entry['effective']:.1f}"
    cosine = "–" if entry["mean_cosine"] is None else f"{entry['mean_cosine']:.2f}"
    nearest = "–" if entry["nearest_class"] is None else f"{entry['nearest_class']} ({entry['nearest_cosine']:.2f})"
    dead, double = ", ".join(map(str, entry["dead"])), ", ".join(f"{a} = {b}" for a, b, _ in entry["duplicates"][:4])
    more = " …" if len(entry["duplicates"]) > 4 else ""
    return [entry["name"], str(entry["cells"]), effective, cosine, dead, double + more, nearest]


def uncertainty(cfg: DictConfig, out: Path, images: int | None, softmax: Path | None, maps: int) -> None:
    """Write ``uncertainty.json``, ``uncertainty.png`` and ``maps/IMAGE.jpg`` for the validation images."""
    trained = open_checkpoint(cfg)
    collector = UncertaintyCollector(trained.model.discriminant)
    twin = _of_same_classes(cfg, softmax, trained.label_space) if softmax is not None else None
    with image_loader(cfg, trained, images) as loader:
        total = len(loader.dataset)
        drawn = spread(total, max(maps, 0))
        for scene in scenes(trained.model, loader, "uncertainty"):
            collector.update(scene)
            if scene.number in drawn:
                panel = uncertainty_panel(scene, trained.label_space)
                write_file(out / "maps" / picture_name(scene.number, scene.name), jpeg(panel))
        found = {_TITLES[name]: entry for name, entry in collector.compute().items()}
        if twin is not None:
            found["confidence of the softmax twin"] = error_detection(twin, loader)["confidence"]
    if not all(entry.pixels for entry in found.values()):
        raise ProtosegError("uncertainty: expected images with labels, got none labelled; choose another split or data")
    sets = collector.label_sets(trained.label_space.classes)
    more = {"label sets": sets} if sets else {}
    write_json(out / "uncertainty.json", {name: entry.summary() for name, entry in found.items()} | more)
    write_file(out / "uncertainty.png", uncertainty_figure(found, f"{total} images").savefig)
    rows = []
    for name, entry in found.items():
        numbers = [entry.error_rate, entry.auroc, entry.aurc, entry.aurc_optimal]
        ece = "–" if entry.calibration is None else f"{100 * entry.calibration.ece:.2f}"
        rows.append([name, *(f"{100 * number:.2f}" for number in numbers), ece])
    terminal = Terminal()
    header = ("measure", "wrong (%)", "AUROC (%)", "AURC (%)", "best AURC (%)", "ECE (%)")
    terminal.table("Finding wrong pixels", header, rows)
    if sets:
        titles = ("pixels of", "covered (%)", "classes in a set", "sets of one (%)")
        cells = [(name, f"{100 * a:.2f}", f"{b:.2f}", f"{100 * c:.2f}") for name, a, b, c in map(dict.values, sets)]
        terminal.table(f"Label sets, made to cover {COVERAGE:.0%} of every class", titles, cells)
    terminal.print("Of histograms; higher AUROC and lower AURC are better.")
    terminal.say(f"Results: {out}")


def adaptation(cfg: DictConfig, out: Path, images: int | None, source_only: Path, panels: int) -> None:
    """Write ``adaptation.json``, ``confusion.png``, ``iou.png`` and ``panels/IMAGE.jpg`` for the target's images."""
    student = open_checkpoint(cfg, network="student")
    space = student.label_space
    models = {"source only": _of_same_classes(cfg, source_only, space), "student": student.model}
    if "teacher" in student.file.networks:
        models["teacher"] = open_checkpoint(cfg, network="teacher").model
    collector = ConfusionCollector(space, open_data(cfg, student).target.unlabelled)
    with image_loader(cfg, student, images) as loader:
        drawn = spread(len(loader.dataset), max(panels, 0))
        for seen in compared(models, loader, student.predictor):
            collector.update(seen)
            if seen.number in drawn:
                place = out / "panels" / picture_name(seen.number, seen.name)
                write_file(place, jpeg(comparison_panel(seen, space)))
    found = collector.scores()
    titles = {f"{name}: mIoU {100 * entry['mIoU']:.1f} %": entry["confusion"] for name, entry in found.items()}
    write_file(out / "confusion.png", confusions_figure(titles, space).savefig)
    write_file(out / "iou.png", iou_figure(found, space).savefig)
    written, rows = {}, []
    for name, entry in found.items():
        ious = dict(zip(space.classes, entry["IoU"].tolist(), strict=True))
        kept = {key: entry[key] for key in ("mIoU", "pixel_accuracy")}
        written[name] = {**kept, "IoU": ious, "confusion": entry["confusion"].tolist()}
        rows.append([name, *(f"{100 * entry[key]:.2f}" for key in ("mIoU", "mean_accuracy", "pixel_accuracy"))])
    write_json(out / "adaptation.json", written)
    Terminal().table("On the target", ("network", "mIoU (%)", "mean accuracy (%)", "pixel accuracy (%)"), rows)
    say(f"Results: {out}")


def _of_same_classes(cfg: DictConfig, path: Path, space: LabelSpace) -> Segmentor:
    other = open_checkpoint(cfg, ckpt_path=path)
    check_same_classes(path, other.label_space, space)
    return other.model


def _class_file(i: int, space: LabelSpace) -> str:
    """The id of a class and what a disk takes of its name."""
    return f"{i:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', space.classes[i])[:40]}.jpg"


def picture_name(number: int, image: str) -> str:
    """A name for the picture of an image: its number and the name of its file."""
    return with_ending(Path(f"{number:05d}_{Path(image).stem}"), ".jpg").name


def write_report(
    cfg: DictConfig, trained: Trained, worst: list[WorstImage], output: Path, result: dict[str, Any]
) -> None:
    """Write ``output/report.html``, after ``evaluate`` has written its files there, and say how large it is."""
    checkpoint, space, settings = Path(cfg.ckpt_path), trained.label_space, result["inference"]
    words = [settings["mode"]]
    if settings["crop_size"]:
        words.append("windows of " + " × ".join(map(str, settings["crop_size"])))
    if settings["scales"] != (1.0,):
        words.append("scales " + ", ".join(map(str, settings["scales"])))
    facts = {
        "checkpoint": str(checkpoint),
        "network": cfg.network,
        "data": f"{result['label_space']}, {result['num_images']} images",
        "inference": ", ".join(words + ["flipped too"] * settings["flip"]),
        "speed": f"{result['images_per_second']:.1f} images/s on {result['device']}",
    }
    prototypes, views = None, []
    if trained.model.head.memory is not None:
        prototypes, facts["prototypes"] = _prototypes(cfg, trained)
        with image_loader(cfg, trained, VIEWS) as loader:
            views = [pixel_view(scene) for scene in scenes(trained.model, loader, "images to click")]
    doubt = None
    if trained.model.discriminant is not None:
        collector = UncertaintyCollector(trained.model.discriminant)
        with image_loader(cfg, trained, DOUBT_IMAGES) as loader:
            collect(scenes(trained.model, loader, "doubt"), collector)
        found = {_TITLES[name]: entry for name, entry in collector.compute().items()}
        doubt = {"figure": figure_uri(uncertainty_figure(found)), "sets": collector.label_sets(space.classes)}
    run, path = checkpoint.absolute().parent.parent, output / "report.html"
    title, confusion = f"{result['label_space']}: {run.name}", np.load(output / "confusion.npy")
    log = run if (run / "logs" / "metrics.csv").is_file() else None
    size = write_page(path, title, facts, result, confusion, space, worst, log, prototypes, views, doubt)
    say(f"Page: {path} ({size / 1e6:.1f} MB)")


def _prototypes(cfg: DictConfig, trained: Trained) -> tuple[PrototypeReport, str]:
    """Of the training images, which made the prototypes; of the judged ones where there are no others here."""
    unsplit = cfg.copy()
    unsplit.split = None
    with ExitStack() as stack:
        kind = "training"
        try:
            loader = stack.enter_context(image_loader(unsplit, trained, PROTOTYPE_IMAGES, training=True))
        except ProtosegError as error:
            kind = "judged"
            loader = stack.enter_context(image_loader(cfg, trained, PROTOTYPE_IMAGES))
            say(f"report: patches come from the judged images: {error}", stderr=True)
        found = prototype_report(trained.model, loader, trained.label_space)
        return found, f"looked at in {len(loader.dataset)} {kind} images"
