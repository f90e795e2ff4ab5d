"""``protoseg analyse``: what prototypes stand for, where a model errs, what adaptation changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protoseg.cli.tool import Tool


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg analyse``; ends with exit code 1 and one message at wrong input."""
    text = "Look into a trained model: its prototypes, its errors, what adaptation or the number of prototypes changed."
    tool = Tool("analyse", text, "evaluate")
    prototypes = tool.command(
        "prototypes",
        "protoseg.run.analyse:prototypes",
        "Show what each prototype stands for: its nearest training patches, where it fires, the pixels it takes, which "
        "ones are dead or double, and a map of the embeddings.",
        "RUN/checkpoints/best.ckpt --out pictures",
    )
    uncertainty = tool.command(
        "uncertainty",
        "protoseg.run.analyse:uncertainty",
        "Compare prototype margin, prototype distance and softmax confidence in finding the wrong pixels: "
        "AUROC, risk-coverage, calibration, and maps.",
        "RUN/checkpoints/best.ckpt --softmax TWIN/checkpoints/best.ckpt",
    )
    adaptation = tool.command(
        "adaptation",
        "protoseg.run.analyse:adaptation",
        "Show what adaptation changed on target images: panels before and after, and the confusions of the source-only "
        "network, the student and the teacher.",
        "ADAPTED/checkpoints/last.ckpt --source-only SOURCE_ONLY/checkpoints/last.ckpt",
    )
    settings = "as for evaluate.py: data=…, split=…, network=teacher, device=… (else the checkpoint's own data)"
    for command in (prototypes, uncertainty, adaptation):
        command.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="RUN/checkpoints/best.ckpt")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=settings)
        default = Path("runs/analysis")
        command.add_argument("--out", type=Path, default=default, help="folder of the results (%(default)s)")
        command.add_argument("--images", type=int, help="look at so many images, spread evenly (all unless said)")
    add = prototypes.add_argument
    add("--patches", type=int, default=8, metavar="N", help="patches for each prototype (%(default)s)")
    add("--pixels", type=int, default=3000, help="pixels on the map of embeddings (%(default)s)")
    text = "a class to draw, may be repeated (all, or the 40 most frequent)"
    add("--class", action="append", dest="classes", metavar="NAME", help=text)
    parts = ("patches", "activations", "embedding")
    add("--skip", action="append", choices=parts, default=[], help="leave a part out, may be repeated")
    add = uncertainty.add_argument
    add("--softmax", type=Path, metavar="CKPT", help="a second checkpoint, with a softmax classifier")
    add("--maps", type=int, default=8, metavar="N", help="images to write maps of (%(default)s)")
    add = adaptation.add_argument
    add("--source-only", type=Path, metavar="CKPT", required=True, help="the checkpoint of before")
    add("--panels", type=int, default=12, metavar="N", help="images to write panels of (%(default)s)")

    add = tool.command(
        "sweep",
        "protoseg.run.multirun:compare",
        "Compare the settings of a sweep (train.py -m): mean and sample standard deviation over seeds as a table, CSV, "
        "Markdown and plots. A sweep that is not finished is compared by what it has.",
        "runs/sweep/2025-01-31_12-00-00",
    ).add_argument
    add("folder", type=Path, help="the sweep's folder, which holds its manifest.json")
    add("--out", type=Path, help="folder for the files (default: the sweep's)")
    text = (
        "instead of the best val/mIoU of each run the last value of this column of its metrics.csv, e.g. "
        "val/teacher_mIoU or val/IoU/Car"
    )
    add("--metric", help=text)
    tool.main(arguments)
