"""``protoseg analyse adaptation``: source-only, student and teacher on the same target images."""

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

if TYPE_CHECKING:
    from protoseg.evaluation.metrics import Scores


def add_adaptation(commands: Any) -> None:
    command = analysis_command(
        commands,
        "adaptation",
        adaptation,
        "Show what adaptation changed on target images: panels before and after, and the confusions of the source-only "
        "network, the student and the teacher.",
        "ADAPTED/checkpoints/last.ckpt --source-only SOURCE_ONLY/checkpoints/last.ckpt",
    )
    command.add_argument("--source-only", type=Path, metavar="CKPT", required=True, help="the checkpoint of before")
    command.add_argument("--panels", type=int, default=12, metavar="N", help="images to write panels of (%(default)s)")


def adaptation(options: argparse.Namespace) -> None:
    """Write ``adaptation.json``, ``confusion.png``, ``iou.png`` and ``panels/IMAGE.jpg`` for the target's images.

    Raises:
        ProtosegError: wrong input; see the message.
    """
    from protoseg.analysis.adaptation import ConfusionCollector, compared, comparison_panel, iou_figure
    from protoseg.checkpoint import check_same_classes
    from protoseg.evaluation.pictures import confusions_figure
    from protoseg.run.evaluate import image_loader, open_checkpoint

    cfg = load_config(options, "network=student")
    student = open_checkpoint(cfg)
    space = student.label_space
    before = open_checkpoint(load_config(options, override("ckpt_path", options.source_only)))
    check_same_classes(options.source_only, before.label_space, space)
    models = {"source only": before.model, "student": student.model}
    if "teacher" in student.file.networks:
        models["teacher"] = open_checkpoint(load_config(options, "network=teacher")).model
    collector = ConfusionCollector(space)
    with image_loader(cfg, student, options.images) as loader:
        total = len(loader.dataset)  # type: ignore[arg-type]
        drawn = to_draw(total, options.panels)
        for seen in compared(models, loader, student.predictor):
            collector.update(seen)
            if seen.number in drawn:
                name = picture_name(seen.number, seen.name)
                save_picture(options.out / "panels" / name, comparison_panel(seen, space))
    found = collector.scores()
    titles = {f"{name}: mIoU {100 * entry['mIoU']:.1f} %": entry["confusion"] for name, entry in found.items()}
    save_figure(options.out / "confusion.png", confusions_figure(titles, space))
    save_figure(options.out / "iou.png", iou_figure(found, space))
    save_json(
        options.out / "adaptation.json",
        {
            name: {
                "mIoU": entry["mIoU"],
                "pixel_accuracy": entry["pixel_accuracy"],
                "IoU": dict(zip(space.classes, entry["IoU"].tolist(), strict=True)),
                "confusion": entry["confusion"].tolist(),
            }
            for name, entry in found.items()
        },
    )
    _print(found)
    tell(options.out)


def _print(found: dict[str, Scores]) -> None:
    table = Table(title="On the target")
    for i, title in enumerate(("network", "mIoU (%)", "mean accuracy (%)", "pixel accuracy (%)")):
        table.add_column(title, justify="right" if i else "left")
    for name, entry in found.items():
        numbers = (entry["mIoU"], entry["mean_accuracy"], entry["pixel_accuracy"])
        table.add_row(name, *(f"{100 * number:.2f}" for number in numbers))
    Terminal().print(table)
