"""``python -m protoseg.classes``: add, refresh, remove and merge the classes of a checkpoint, without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from protoseg.cli.tool import add_trust, run_tool
from protoseg.text import Terminal, command, override, say

if TYPE_CHECKING:
    from protoseg.trained import TrainedFile


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``python -m protoseg.classes``; ends with exit code 1 and one message at wrong input."""
    run_tool(
        "python -m protoseg.classes",
        "Add, refresh, remove and merge the classes of a checkpoint, without training: its head must have prototypes.",
        (_add_add, _add_refresh, _add_remove, _add_merge, _add_apply, _add_show, _add_trial),
        "evaluate",
        arguments,
    )


def _add_add(commands: Any) -> None:
    command = _command(
        commands,
        "add",
        add,
        "Make prototypes of a new class (or several) from a few images with masks.",
        "RUN/best.ckpt --images photos --masks masks --name car --color 0,0,142 --out new.ckpt",
    )
    _add_images(command)
    command.add_argument("--name", action="append", required=True, help="of the class; once for each of several")
    command.add_argument(
        "--color", action="append", required=True, type=_color, metavar="R,G,B", help="once for each class"
    )
    command.add_argument(
        "--id", action="append", type=int, help="of the class in the masks; without it, all that is not 0 is the class"
    )


def _add_refresh(commands: Any) -> None:
    command = _command(
        commands,
        "refresh",
        refresh,
        "Bring the prototypes of a class to how it looks in new images (at night, of another camera).",
        "RUN/best.ckpt --images night --masks night_masks --name car --out new.ckpt",
    )
    _add_images(command)
    command.add_argument("--name", required=True, help="of the class")
    command.add_argument("--id", type=int, help="of the class in the masks; without it, all that is not 0 is the class")
    command.add_argument(
        "--keep", type=float, default=0.5, help="weight of the old prototypes, 0 (replace them) to below 1; 0.5"
    )


def _add_remove(commands: Any) -> None:
    command = _command(
        commands,
        "remove",
        remove,
        "Take classes out; their pixels go to the next nearest prototype.",
        "RUN/best.ckpt --name Fence --out new.ckpt",
    )
    command.add_argument("--name", action="append", required=True, help="of the class; once for each of several")


def _add_merge(commands: Any) -> None:
    command = _command(
        commands,
        "merge",
        merge,
        "Make one class of several; its prototypes are clustered from theirs.",
        "RUN/best.ckpt --name Pedestrian --name Bicyclist --into Person --out new.ckpt",
    )
    command.add_argument("--name", action="append", required=True, help="of a class; once for each")
    command.add_argument("--into", required=True, help="name of the merged class, one of them or a new one")
    command.add_argument("--seed", type=int, default=0, help="of the clustering")


def _add_apply(commands: Any) -> None:
    command = _command(
        commands,
        "apply",
        apply,
        "Bring a change that was written with --delta onto the checkpoint it was made for.",
        "RUN/best.ckpt car.delta --out new.ckpt",
        delta=False,
    )
    command.add_argument("change", type=Path, metavar="DELTA", help="the file of the change")


def _add_show(commands: Any) -> None:
    command = commands.add_parser("show", help="List the classes of a checkpoint and how alike their prototypes are.")
    _add_checkpoint(command, "a checkpoint of train.py")
    command.set_defaults(run=show)


def _add_trial(commands: Any) -> None:
    text = "Measure how well a class that the training left out can be added: IoU after 1, 5 and 20 images."
    command = commands.add_parser(
        "trial",
        help=text,
        description=text,
        epilog="example: python train.py experiment=camvid_prototype 'data.relabel={Car: null}'; "
        "python -m protoseg.classes trial RUN/best.ckpt --name Car --trained FULL/best.ckpt --out car.json",
    )
    _add_checkpoint(command, "trained without the class")
    command.add_argument("--name", required=True, help="of the class, which the checkpoint's data set has")
    command.add_argument("--shots", type=int, nargs="+", default=[1, 5, 20], help="numbers of images; 1 5 20")
    command.add_argument("--draws", type=int, default=3, help="of each number of images; 3")
    command.add_argument("--trained", type=Path, metavar="FULL.ckpt", help="trained with the class, to compare with")
    command.add_argument("--root", help="folder of the data, where it is not where the training found it")
    command.add_argument("--device", help="cuda where there is one, else cpu")
    command.add_argument("--out", type=Path, metavar="FILE.json", help="also write the numbers")
    command.set_defaults(run=run_trial)


def _add_checkpoint(command: Any, text: str) -> None:
    command.add_argument("checkpoint", type=Path, metavar="CKPT", help=text)
    add_trust(command)


def open_file(options: argparse.Namespace, path: Path | None = None) -> TrainedFile:
    """The checkpoint of the command line, or another that it names."""
    from protoseg import trained

    return trained.open_file(path or options.checkpoint, options.trust)


def _command(commands: Any, name: str, run: Any, text: str, example: str, delta: bool = True) -> Any:
    command = commands.add_parser(
        name, help=text, description=text, epilog=f"example: python -m protoseg.classes {name} {example}"
    )
    _add_checkpoint(command, "a checkpoint of train.py")
    command.add_argument("--out", type=Path, required=True, metavar="NEW.ckpt", help="the new checkpoint")
    if delta:
        command.add_argument("--delta", type=Path, help="also write the change alone, a few kilobytes, for `apply`")
    command.set_defaults(run=run)
    return command


def _add_images(command: Any) -> None:
    command.add_argument("--images", type=Path, required=True, help="folder of images")
    command.add_argument("--masks", type=Path, required=True, help="folder of PNG masks with the same names")
    command.add_argument("--seed", type=int, default=0, help="of the clustering")
    command.add_argument("--device", help="cuda where there is one, else cpu")


def _color(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) < 256 for part in parts):
        raise argparse.ArgumentTypeError(f"expected three numbers from 0 to 255, e.g. 0,0,142, got {text!r}")
    red, green, blue = map(int, parts)
    return red, green, blue


def add(options: argparse.Namespace) -> None:
    """``add``; raises ProtosegError as ``add_classes``."""
    from protoseg.classes import add_classes
    from protoseg.data.class_masks import ClassMasks
    from protoseg.inference import choose_device

    file = open_file(options)
    dataset = ClassMasks(options.images, options.masks, options.name, options.color, options.id)
    dataset.image_range = file.image_range
    device = choose_device(options.device)
    edit, found = add_classes(file, dataset, options.name, options.seed, device, "images")
    _print_found(found, len(dataset))
    _write(options, file, edit)


def refresh(options: argparse.Namespace) -> None:
    """``refresh``; raises ProtosegError as ``refresh_class``."""
    from protoseg.classes import refresh_class
    from protoseg.data.class_masks import ClassMasks
    from protoseg.inference import choose_device

    file = open_file(options)
    ids = None if options.id is None else [options.id]
    dataset = ClassMasks(options.images, options.masks, [options.name], [(0, 0, 0)], ids)
    dataset.image_range = file.image_range
    device = choose_device(options.device)
    edit, found = refresh_class(file, dataset, options.name, options.keep, options.seed, device, "images")
    _print_found(found, len(dataset))
    _write(options, file, edit)


def remove(options: argparse.Namespace) -> None:
    """``remove``; raises ProtosegError as ``remove_classes``."""
    from protoseg.classes import remove_classes

    file = open_file(options)
    _write(options, file, remove_classes(file, options.name))


def merge(options: argparse.Namespace) -> None:
    """``merge``; raises ProtosegError as ``merge_classes``."""
    from protoseg.classes import merge_classes

    file = open_file(options)
    edit = merge_classes(file, options.name, options.into, options.seed)
    _write(options, file, edit)


def apply(options: argparse.Namespace) -> None:
    """``apply``; raises ProtosegError as ``read_edit`` and ``apply_edit``."""
    from protoseg.classes import read_edit

    _write(options, open_file(options), read_edit(options.change))


def show(options: argparse.Namespace) -> None:
    """Print a table of the classes; raises ProtosegError where they are no prototypes."""
    from protoseg.classes.edit import memories
    from protoseg.functional.prototypes import nearest_class_cosine

    file = open_file(options)
    space = file.label_space
    for network, memory in memories(file.content).items():
        c, k, d = memory.prototypes.shape
        table = Table(title=f"{space.name}, {network}: {c} classes of {k} prototypes, {d} channels")
        for name, justify in (("", "left"), ("class", "left"), ("alike within", "right"), ("nearest", "left")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        cosine = nearest_class_cosine(memory.prototypes)
        for i, (name, color) in enumerate(zip(space.classes, space.colors, strict=True)):
            row = cosine[i].clone()
            row[i] = -2
            other = f"{space.classes[int(row.argmax())]} ({row.max():.2f})" if c > 1 else "–"
            table.add_row(Text("██", f"rgb({','.join(map(str, color))})"), name, f"{cosine[i, i]:.2f}", other)
        Terminal().print(table)
        Terminal().print("Mean cosine of the prototypes of a class; class with the nearest prototype, and its cosine.")


def run_trial(options: argparse.Namespace) -> None:
    """``trial``; raises ProtosegError as :func:`protoseg.classes.trial.trial`."""
    from statistics import mean, stdev

    from protoseg.classes.trial import trial
    from protoseg.inference import choose_device
    from protoseg.report import write_json

    found = trial(
        open_file(options),
        options.name,
        options.shots,
        options.draws,
        None if options.trained is None else open_file(options, options.trained),
        options.root,
        choose_device(options.device),
    )
    showing, judged = found.images
    table = Table(title=f"{options.name} added without training")
    for column in ("model", f"IoU of {options.name}", "mIoU of the others", "IoU of each draw"):
        table.add_column(column, justify="right" if "mIoU" in column else "left")
    table.add_row("without it (its pixels not counted)", "–", f"{100 * found.before.others:.1f}", "")
    for count, scores in found.added.items():
        ious, others = [100 * score.iou for score in scores], mean(100 * score.others for score in scores)
        spread = f" ± {stdev(ious):.1f}" if len(ious) > 1 else ""
        images = f"{count} image{'s' if count > 1 else ''}"
        draws = ", ".join(f"{iou:.1f}" for iou in ious)
        table.add_row(f"added from {images}", f"{mean(ious):.1f}{spread}", f"{others:.1f}", draws)
    if found.trained is not None:
        table.add_row("trained with it", f"{100 * found.trained.iou:.1f}", f"{100 * found.trained.others:.1f}", "")
    Terminal().print(table)
    Terminal().print(f"Drawn from {showing} training images, judged on {judged} images; in %")
    if options.out is not None:
        write_json(options.out, found._asdict())


def _print_found(found: Sequence[Any], images: int) -> None:
    for new in found:
        copies = "" if new.distinct > 1 else " (one direction: too few pixels to tell more apart)"
        say(
            f"{new.name} ({new.network}): {new.pixels} cells in {images} images, {new.distinct} different "
            f"prototypes{copies}, turned away from the other classes by {new.turned:.1f}"
        )


def _write(options: argparse.Namespace, file: TrainedFile, edit: Any) -> None:
    from protoseg.checkpoint import AtomicCheckpointIO
    from protoseg.classes import apply_edit, write_edit

    AtomicCheckpointIO().save_checkpoint(apply_edit(file.content, edit), options.out)
    say(f"{len(edit.classes)} classes: {', '.join(edit.classes)}")
    if getattr(options, "delta", None) is not None:
        write_edit(edit, options.delta)
        say(f"Change alone: {options.delta} ({options.delta.stat().st_size / 1000:.0f} kB)")
    say(f"Evaluate it: {command('python', 'evaluate.py', override('ckpt_path', options.out))}")
