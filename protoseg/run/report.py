"""``evaluate.py … report=true``: the page ``report.html`` of an evaluation."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig

from protoseg.analysis.stream import scenes
from protoseg.page.page import PrototypeReport, WorstImage, pixel_view, prototype_report, write_page
from protoseg.run.evaluate import image_loader
from protoseg.run.predict import Trained
from protoseg.text import say
from protoseg.types import ProtosegError

PROTOTYPE_IMAGES = 200  # looked at for patches and occupancy
VIEWS = 8  # images to click into


def write_report(
    cfg: DictConfig, trained: Trained, worst: list[WorstImage], output: Path, result: dict[str, Any]
) -> None:
    """Write ``output/report.html``, after ``evaluate`` has written its files there, and say how large it is."""
    checkpoint, space = Path(cfg.ckpt_path), trained.label_space
    facts = {
        "checkpoint": str(checkpoint),
        "network": cfg.network,
        "data": f"{result['label_space']}, {result['num_images']} images",
        "inference": _words(result["inference"]),
        "speed": f"{result['images_per_second']:.1f} images/s on {result['device']}",
    }
    prototypes, views = None, []
    if trained.model.head.memory is not None:
        prototypes, facts["prototypes"] = _prototypes(cfg, trained)
        with image_loader(cfg, trained, VIEWS) as loader:
            views = [pixel_view(scene) for scene in scenes(trained.model, loader, "images to click")]
    run, path = checkpoint.absolute().parent.parent, output / "report.html"
    title, confusion = f"{result['label_space']}: {run.name}", np.load(output / "confusion.npy")
    log = run if (run / "logs" / "metrics.csv").is_file() else None
    size = write_page(path, title, facts, result, confusion, space, worst, log, prototypes, views)
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
        return found, f"looked at in {len(cast(Any, loader.dataset))} {kind} images"


def _words(settings: dict[str, Any]) -> str:
    """The settings of a predictor that are not the plain ones."""
    words = [settings["mode"]]
    if settings["crop_size"]:
        words.append("windows of " + " × ".join(map(str, settings["crop_size"])))
    if settings["scales"] != (1.0,):
        words.append("scales " + ", ".join(map(str, settings["scales"])))
    return ", ".join(words + ["flipped too"] * settings["flip"])
