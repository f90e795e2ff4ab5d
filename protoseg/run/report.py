"""``evaluate.py … report=true``: the page ``report.html`` of an evaluation."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor

from protoseg.analysis.stream import scenes
from protoseg.page.page import write_page
from protoseg.page.pixels import pixel_view
from protoseg.page.prototypes import PrototypeReport, prototype_report
from protoseg.page.worst import WorstImages
from protoseg.run.evaluate import image_loader
from protoseg.text import say
from protoseg.types import ProtosegError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from protoseg.run.evaluate import Trained

PROTOTYPE_IMAGES = 200  # looked at for patches and occupancy
VIEWS = 8  # images to click into


class Report:
    """Watches an evaluation, then looks at the prototypes and writes the page.

    Args:
        cfg: as of ``evaluate.yaml``.
        trained: see :func:`protoseg.run.evaluate.open_checkpoint`.
    """

    def __init__(self, cfg: DictConfig, trained: Trained) -> None:
        self.cfg, self.trained = cfg, trained
        self.worst = WorstImages(trained.label_space)

    def observe(self, name: str, image: Tensor, truth: Tensor, prediction: Tensor) -> None:
        """See ``observe`` of :func:`protoseg.evaluation.evaluate.evaluate`."""
        self.worst.update(name, image, truth, prediction)

    def write(self, output: Path, result: dict[str, Any]) -> None:
        """Write ``output/report.html``, after ``evaluate`` has written its files there, and say how large it is.

        Raises:
            ProtosegError: images that cannot be read, or a disk that refuses.
        """
        trained, checkpoint = self.trained, Path(self.cfg.ckpt_path)
        facts = {
            "checkpoint": str(checkpoint),
            "network": self.cfg.network,
            "data": f"{result['label_space']}, {result['num_images']} images",
            "inference": _words(result["inference"]),
            "speed": f"{result['images_per_second']:.1f} images/s on {result['device']}",
        }
        prototypes, views = None, []
        if trained.model.head.memory is not None:
            prototypes, facts["prototypes"] = self._prototypes()
            views = self._views()
        run = checkpoint.absolute().parent.parent
        path = output / "report.html"
        size = write_page(
            path,
            f"{result['label_space']}: {run.name}",
            facts,
            result,
            np.load(output / "confusion.npy"),
            trained.label_space,
            self.worst.found,
            run if (run / "logs" / "metrics.csv").is_file() else None,
            prototypes,
            views,
        )
        say(f"Page: {path} ({size / 1e6:.1f} MB)")

    def _prototypes(self) -> tuple[PrototypeReport, str]:
        """Of the training images, which made the prototypes; of the judged ones where there are no others here."""
        cfg = self.cfg.copy()
        cfg.split = None
        with ExitStack() as stack:
            try:
                loader = stack.enter_context(image_loader(cfg, self.trained, PROTOTYPE_IMAGES, training=True))
                kind = "training"
            except ProtosegError as error:
                loader = stack.enter_context(image_loader(self.cfg, self.trained, PROTOTYPE_IMAGES))
                kind = "judged"
                say(f"report: patches come from the judged images: {error}", stderr=True)
            found = prototype_report(self.trained.model, loader, self.trained.label_space)
            return found, f"looked at in {len(cast(Any, loader.dataset))} {kind} images"

    def _views(self) -> list[dict[str, Any]]:
        with image_loader(self.cfg, self.trained, VIEWS) as loader:
            return [pixel_view(scene) for scene in scenes(self.trained.model, loader, "images to click")]


def _words(settings: dict[str, Any]) -> str:
    """The settings of a predictor that are not the plain ones."""
    words = [settings["mode"]]
    if settings["crop_size"]:
        words.append("windows of " + " × ".join(map(str, settings["crop_size"])))
    if settings["scales"] != (1.0,):
        words.append("scales " + ", ".join(map(str, settings["scales"])))
    return ", ".join(words + ["flipped too"] * settings["flip"])
