"""What ``protoseg teach`` does: open a checkpoint, change its classes, write it; or show and measure what would be."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.text import Text

from protoseg.checkpoint import save_checkpoint
from protoseg.data.class_masks import ClassMasks
from protoseg.data.own import ImageFolder
from protoseg.evaluation.predictor import choose_device
from protoseg.files import write_json
from protoseg.functional.prototypes import nearest_class_cosine
from protoseg.run.evaluate import match_classes
from protoseg.teach import statistics as teach_statistics
from protoseg.teach.edit import ClassEdit, apply_edit, editable_memories, memories, read_edit, write_edit
from protoseg.teach.normalisation import adapt_normalisation
from protoseg.teach.operations import add_classes, merge_classes, refresh_class, remove_classes
from protoseg.teach.statistics import with_statistics
from protoseg.teach.trial import trial
from protoseg.teach.tuning import tune_classes
from protoseg.text import Terminal, override, program, say
from protoseg.trained import TrainedFile, open_file
from protoseg.types import require


def _changing(make: Callable[..., ClassEdit]) -> Callable[..., None]:
    """A command that opens a checkpoint, makes a change of it by ``make(file, …)``, and writes what comes out."""

    def run(checkpoint: Path, trust: Sequence[str], out: Path, delta: Path | None = None, **settings: Any) -> None:
        file = open_file(checkpoint, trust)
        edit = make(file, **settings)
        save_checkpoint(apply_edit(file.content, edit), out)
        say(f"{len(edit.classes)} classes: {', '.join(edit.classes)}")
        if delta is not None:
            write_edit(edit, delta)
            say(f"Change alone: {delta} ({delta.stat().st_size / 1000:.0f} kB)")
        say(f"Evaluate it: {program('evaluate', override('ckpt_path', out))}")

    return run


remove, merge = _changing(remove_classes), _changing(merge_classes)


@_changing
def apply(file: TrainedFile, change: Path) -> ClassEdit:
    editable_memories(file)
    return read_edit(change)


@_changing
def add(
    file: TrainedFile, images: Path, masks: Path, names: list[str], colors: Any, ids: Any, seed: int, device: str | None
) -> ClassEdit:
    dataset = ClassMasks(images, masks, names, colors, ids)
    return _taught(add_classes, file, dataset, names, seed, choose_device(device))


@_changing
def refresh(
    file: TrainedFile, images: Path, masks: Path, name: str, ids: Any, keep: float, seed: int, device: str | None
) -> ClassEdit:
    dataset = ClassMasks(images, masks, [name], [(0, 0, 0)], ids)
    return _taught(refresh_class, file, dataset, name, keep, seed, choose_device(device))


def statistics(checkpoint: Path, trust: Sequence[str], out: Path, root: str | None, device: str | None) -> None:
    """Write the checkpoint with :func:`protoseg.teach.statistics.with_statistics` of its run's training images."""
    file = open_file(checkpoint, trust)
    part = file.datamodule(root, num_workers=0).source
    match_classes(part, file.label_space, file.content["protoseg"].get("relabel", {}))
    dataset, held_out = part.dataset(part.train_split), None
    if part.val_split not in (None, part.train_split):
        held_out = part.dataset(part.val_split)
    save_checkpoint(with_statistics(file, dataset, choose_device(device), "training images", held_out).content, out)
    count = min(len(dataset), teach_statistics.MAX_IMAGES)
    say(f"Statistics of {count} images: {out}; teach add, given it, adds classes by them")


def tune(checkpoint: Path, trust: Sequence[str], out: Path, seed: int, device: str | None, **labelled: Any) -> None:
    """Write the checkpoint with classes that :func:`protoseg.teach.tune_classes` gave it; the rest is of its masks."""
    file, dataset = open_file(checkpoint, trust), ClassMasks(**labelled)
    tuned = _taught(tune_classes, file, dataset, labelled["names"], seed, choose_device(device))
    save_checkpoint(tuned.content, out)
    say(f"Evaluate it: {program('evaluate', override('ckpt_path', out))}")


def adapt(checkpoint: Path, trust: Sequence[str], images: Path, out: Path, device: str | None) -> None:
    """Write the checkpoint with BatchNorm's statistics blended, see :func:`protoseg.teach.adapt_normalisation`."""
    file = open_file(checkpoint, trust)
    dataset = ImageFolder(images, file.label_space, reader=file.reader)
    adapted, found = adapt_normalisation(file, dataset, choose_device(device), "images")
    save_checkpoint(adapted.content, out)
    for network, weight, entropy in found:
        kept = "no weight makes it surer: as it was" if weight == 0 else f"{weight:.0%} of BatchNorm's statistics taken"
        say(f"{network}: {kept}; entropy of its predictions {entropy[0.0]:.3f} before, {entropy[weight]:.3f} now")
    say(f"Evaluate it: {program('evaluate', override('ckpt_path', out))}")


def show(checkpoint: Path, trust: Sequence[str]) -> None:
    """Print a table of the classes; raises ProtosegError where they are learned weights."""
    file = open_file(checkpoint, trust)
    space, found = file.label_space, memories(file.content)
    if not found:
        say(f"{space.num_classes} classes, channels of the network or taught: {', '.join(space.classes)}")
    for network, memory in found.items():
        c, k, d = memory.prototypes.shape
        cosine = nearest_class_cosine(memory.prototypes)
        nearest, places = cosine.clone().fill_diagonal_(-2).max(1)
        rows = []
        for i, (name, color) in enumerate(zip(space.classes, space.colors, strict=True)):
            other = f"{space.classes[int(places[i])]} ({nearest[i]:.2f})" if c > 1 else "–"
            rows.append((Text("██", f"rgb({','.join(map(str, color))})"), name, f"{cosine[i, i]:.2f}", other))
        terminal = Terminal()
        title = f"{space.name}, {network}: {c} classes of {k} prototypes, {d} channels"
        terminal.table(title, ("", "class", "alike within", "nearest"), rows, left=(0, 1, 3))
        terminal.print("Mean cosine of the prototypes of a class; class with the nearest prototype, and its cosine.")


def run_trial(
    checkpoint: Path, trust: list[str], name: str, trained: Path | None, device: str | None, out: Path | None, **of: Any
) -> None:
    """Print and write what :func:`protoseg.teach.trial.trial` measures, of ``shots``, ``draws`` and ``root``."""
    full = None if trained is None else open_file(trained, trust)
    found = trial(open_file(checkpoint, trust), name, trained=full, device=choose_device(device), **of)
    rows = [["without it (its pixels not counted)", "–", f"{100 * found.before.others:.1f}", ""]]
    for count, scores in found.added.items():
        ious, others = [100 * score.iou for score in scores], mean(100 * score.others for score in scores)
        spread = f" ± {stdev(ious):.1f}" if len(ious) > 1 else ""
        images = f"{count} image{'s' if count > 1 else ''}"
        each = ", ".join(f"{iou:.1f}" for iou in ious)
        rows.append([f"added from {images}", f"{mean(ious):.1f}{spread}", f"{others:.1f}", each])
    if found.trained is not None:
        rows.append(["trained with it", f"{100 * found.trained.iou:.1f}", f"{100 * found.trained.others:.1f}", ""])
    terminal = Terminal()
    header = ("model", f"IoU of {name}", "mIoU of the others", "IoU of each draw")
    terminal.table(f"{name} added without training", header, rows, left=(0, 1, 3))
    showing, judged = found.images
    terminal.print(f"Drawn from {showing} training images, judged on {judged} images; in %")
    if out is not None:
        write_json(out, found._asdict())


def _taught(teach: Callable[..., Any], file: TrainedFile, dataset: ClassMasks, *arguments: Any) -> Any:
    dataset.reader = file.reader
    made, found = teach(file, dataset, *arguments, title="images")
    for new in found:
        copies = "" if new.distinct != 1 else " (one direction: too few pixels to tell more apart)"
        seen = f"{new.pixels} cells in {len(dataset)} images, {new.distinct} different prototypes{copies}"
        say(f"{new.name} ({new.network}): {seen}; before, the model called {new.share:.0%} of the cells {new.called}")
        if new.share > 0.95 and new.called != new.name:
            say(f"Is it {new.called}, by another name? Then `protoseg teach refresh` is for it", stderr=True)
    return made


def _labelling_page(command: str, **settings: Any) -> None:
    """Run a command of the page, which as ``conf`` lies beside the package in a checkout, and in it where installed."""
    require("page", "aiohttp")
    installed = "protoseg.labelling_page"
    commands = import_module(f"{installed if find_spec(installed) else 'examples.labelling_page'}.commands")
    getattr(commands, command)(**settings)


page, replay = partial(_labelling_page, "page"), partial(_labelling_page, "replay")
