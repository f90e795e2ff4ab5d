"""``protoseg teach``: add, refresh, remove and merge the classes of a checkpoint, without training."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from protoseg.cli.tool import Tool, add_trust


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg teach``; ends with exit code 1 and one message at wrong input."""
    text = (
        "Add, refresh, remove and merge the classes of a checkpoint, without training: its head must have prototypes."
    )
    tool = Tool("teach", text, "evaluate")
    add = tool.command(
        "add",
        "protoseg.run.teach:add",
        "Make prototypes of a new class (or several) from a few images with masks.",
        "RUN/best.ckpt --images photos --masks masks --name car --color 0,0,142 --out new.ckpt",
    )
    refresh = tool.command(
        "refresh",
        "protoseg.run.teach:refresh",
        "Bring the prototypes of a class to how it looks in new images (at night, of another camera).",
        "RUN/best.ckpt --images night --masks night_masks --name car --out new.ckpt",
    )
    remove = tool.command(
        "remove",
        "protoseg.run.teach:remove",
        "Take classes out; their pixels go to the next nearest prototype.",
        "RUN/best.ckpt --name Fence --out new.ckpt",
    )
    merge = tool.command(
        "merge",
        "protoseg.run.teach:merge",
        "Make one class of several; its prototypes are clustered from theirs.",
        "RUN/best.ckpt --name Pedestrian --name Bicyclist --into Person --out new.ckpt",
    )
    apply = tool.command(
        "apply",
        "protoseg.run.teach:apply",
        "Bring a change that was written with --delta onto the checkpoint it was made for.",
        "RUN/best.ckpt car.delta --out new.ckpt",
    )
    show = tool.command(
        "show",
        "protoseg.run.teach:show",
        "List the classes of a checkpoint and how alike their prototypes are.",
        "RUN/best.ckpt",
    )
    trial = tool.command(
        "trial",
        "protoseg.run.teach:run_trial",
        "Measure how well a class that the training left out (train.py … 'data.relabel={Car: null}') can be added: IoU "
        "after 1, 5 and 20 images.",
        "RUN/best.ckpt --name Car --trained FULL/best.ckpt --out car.json",
    )
    for command in (add, refresh, remove, merge, apply, show, trial):
        command.add_argument("checkpoint", type=Path, metavar="CKPT", help="a checkpoint of train.py")
        add_trust(command)
    for command in (add, refresh, remove, merge, apply):
        command.add_argument("--out", type=Path, required=True, metavar="NEW.ckpt", help="the new checkpoint")
    for command in (add, refresh, remove, merge):
        command.add_argument("--delta", type=Path, help="also write the change alone, a few kilobytes, for `apply`")
    for command in (add, refresh):
        command.add_argument("--images", type=Path, required=True, help="folder of images")
        command.add_argument("--masks", type=Path, required=True, help="folder of PNG masks with the same names")
        text = "of the class in the masks, once for each; without it, all that is not 0 is the class"
        command.add_argument("--id", action="append", type=int, dest="ids", help=text)
    for command in (add, refresh, trial):
        command.add_argument("--device", help="cuda where there is one, else cpu")
    for command in (add, refresh, merge):
        command.add_argument("--seed", type=int, default=0, help="of the clustering")
    for command in (add, remove, merge):
        text = "of a class; once for each of several"
        command.add_argument("--name", action="append", required=True, dest="names", help=text)
    text = "once for each class"
    add.add_argument("--color", action="append", required=True, type=_color, dest="colors", metavar="R,G,B", help=text)
    refresh.add_argument("--name", required=True, help="of the class")
    text = "weight of the old prototypes, 0 (replace them) to below 1; 0.5"
    refresh.add_argument("--keep", type=float, default=0.5, help=text)
    merge.add_argument("--into", required=True, help="name of the merged class, one of them or a new one")
    apply.add_argument("change", type=Path, metavar="DELTA", help="the file of the change")
    trial.add_argument("--name", required=True, help="of the class, which the checkpoint's data set has")
    trial.add_argument("--shots", type=int, nargs="+", default=[1, 5, 20], help="numbers of images; 1 5 20")
    trial.add_argument("--draws", type=int, default=3, help="of each number of images; 3")
    trial.add_argument("--trained", type=Path, metavar="FULL.ckpt", help="trained with the class, to compare with")
    trial.add_argument("--root", help="folder of the data, where it is not where the training found it")
    trial.add_argument("--out", type=Path, metavar="FILE.json", help="also write the numbers")
    tool.main(arguments)


def _color(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) < 256 for part in parts):
        raise ArgumentTypeError(f"expected three numbers from 0 to 255, e.g. 0,0,142, got {text!r}")
    red, green, blue = map(int, parts)
    return red, green, blue
