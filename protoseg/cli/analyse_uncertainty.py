"""``protoseg analyse uncertainty``: does the model know where it is wrong?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from protoseg.cli.analyse_common import (
    analysis_command,
    load_config,
    picture_name,
    save_figure,
    save_json,
    save_picture,
    tell,
    to_draw,
)
from protoseg.text import Terminal, override
from protoseg.types import ProtosegError

if TYPE_CHECKING:
    from protoseg.analysis.uncertainty import ErrorDetection


_TITLES = {"margin": "prototype margin", "distance": "prototype distance", "confidence": "softmax confidence"}


def add_uncertainty(commands: Any) -> None:
    command = analysis_command(
        commands,
        "uncertainty",
        uncertainty,
        "Compare prototype margin, prototype distance and softmax confidence in finding the wrong pixels: "
        "AUROC, risk-coverage, calibration, and maps.",
        "RUN/checkpoints/best.ckpt --softmax TWIN/checkpoints/best.ckpt",
    )
    command.add_argument("--softmax", type=Path, metavar="CKPT", help="a second checkpoint, with a softmax classifier")
    command.add_argument("--maps", type=int, default=8, metavar="N", help="images to write maps of (%(default)s)")


def uncertainty(options: argparse.Namespace) -> None:
    """Write ``uncertainty.json``, ``uncertainty.png`` and ``maps/IMAGE.jpg`` for the validation images.

    Raises:
        ProtosegError: wrong input; see the message.
    """
    from protoseg.analysis.stream import scenes
    from protoseg.analysis.uncertainty import UncertaintyCollector, error_detection
    from protoseg.analysis.uncertainty_figures import uncertainty_figure, uncertainty_panel
    from protoseg.checkpoint import check_same_classes
    from protoseg.run.evaluate import image_loader, open_checkpoint

    cfg = load_config(options)
    trained = open_checkpoint(cfg)
    twin = open_checkpoint(load_config(options, override("ckpt_path", options.softmax))) if options.softmax else None
    if twin is not None:
        check_same_classes(options.softmax, twin.label_space, trained.label_space)
    collector = UncertaintyCollector()
    with image_loader(cfg, trained, options.images) as loader:
        total = len(loader.dataset)  # type: ignore[arg-type]
        drawn = to_draw(total, options.maps)
        for scene in scenes(trained.model, loader, "uncertainty"):
            collector.update(scene)
            if scene.number in drawn:
                name = picture_name(scene.number, scene.name)
                save_picture(options.out / "maps" / name, uncertainty_panel(scene, trained.label_space))
        found = {_TITLES[name]: entry for name, entry in collector.compute().items()}
        if twin is not None:
            found["confidence of the softmax twin"] = error_detection(twin.model, loader)["confidence"]
    if not all(entry.pixels for entry in found.values()):
        raise ProtosegError("uncertainty: expected images with labels, got none labelled; choose another split or data")
    save_json(options.out / "uncertainty.json", {name: entry.summary() for name, entry in found.items()})
    save_figure(options.out / "uncertainty.png", uncertainty_figure(found, f"{total} images"))
    _print(found)
    tell(options.out)


def _print(found: dict[str, ErrorDetection]) -> None:
    table = Table(title="Finding wrong pixels")
    for i, title in enumerate(("measure", "wrong (%)", "AUROC (%)", "AURC (%)", "best AURC (%)", "ECE (%)")):
        table.add_column(title, justify="right" if i else "left")
    for name, entry in found.items():
        ece = "–" if entry.calibration is None else f"{100 * entry.calibration.ece:.2f}"
        numbers = (entry.error_rate, entry.auroc, entry.aurc, entry.aurc_optimal)
        table.add_row(name, *(f"{100 * number:.2f}" for number in numbers), ece)
    terminal = Terminal()
    terminal.print(table)
    bound = max(max(entry.auroc_bound, entry.aurc_bound) for entry in found.values())
    terminal.print(f"Exact to {100 * bound:.1g} points (histograms); higher AUROC and lower AURC are better.")
