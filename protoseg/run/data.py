"""What ``protoseg data`` does: tables, faults and pictures of a data set, a faster copy, a submission."""

import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.markup import escape

from protoseg.analysis.stream import look
from protoseg.analysis.wrong_labels import judged_regions, region_picture
from protoseg.checkpoint import check_same_classes
from protoseg.data import AdaptationDataModule, RareClasses, SegmentationDataModule, SegmentationDataset, checking
from protoseg.data.export import convert, export_predictions, pack, write_form
from protoseg.data.statistics import channel_statistics, class_statistics, image_sizes, rare_class_probability, spread
from protoseg.evaluation import pictures
from protoseg.evaluation.predictor import choose_device
from protoseg.evaluation.writer import jpeg
from protoseg.files import write_file, write_text
from protoseg.losses.segmentation import balanced_class_weights
from protoseg.run.build import build_datamodule
from protoseg.text import Terminal, command, override, progress, say, write_csv
from protoseg.trained import TrainedFile, open_file
from protoseg.types import ProtosegError

_SIZES_SHOWN = 4
_COLUMNS, _WIDTH = 2, 420  # of a sheet: pairs in a row, width of a picture


def info(cfg: DictConfig, data: str, out: Path) -> None:
    """Print images, sizes and class frequencies of both splits; write ``DATA_classes.png``."""
    datasets = _datasets(build_datamodule(cfg))
    sizes_of = {title: image_sizes(dataset) for title, dataset in datasets.items()}
    terminal = Terminal()
    rows = []
    for title, dataset in datasets.items():
        sizes = sizes_of[title].most_common()
        shown = [f"{w} x {h} ({count:,})" for (w, h), count in sizes[:_SIZES_SHOWN]]
        more = [f"{len(sizes) - _SIZES_SHOWN} more sizes"] if len(sizes) > _SIZES_SHOWN else []
        rows.append([title, f"{len(dataset):,}", f"{_masks(dataset):,}", ", ".join(shown + more)])
    terminal.table(data, ("split", "images", "masks", "width x height"), rows, left=(0, 3))
    found = {title: class_statistics(dataset) for title, dataset in datasets.items() if _masks(dataset) == len(dataset)}
    if not found:
        terminal.print("No split has masks.")
        return
    space = datasets[next(iter(found))].label_space
    shares = {title: each.pixels / max(1, each.pixels.sum()) for title, each in found.items()}
    rows = []
    for name, ids in _class_rows(space.classes, np.sum([*shares.values()], axis=0)):
        kind = "thing" if space.classes[ids[0]] in space.things else "stuff"
        row = [str(ids[0]), name, kind if space.things else ""] if len(ids) == 1 else ["", name, ""]
        for title, each in found.items():
            row += [f"{100 * shares[title][ids].sum():.3f}", f"{(each.counts[:, ids] > 0).any(axis=1).sum():,}"]
        rows.append(row)
    header = ["id", "class", "kind"] + [name for title in found for name in (f"{title}: pixels %", f"{title}: images")]
    terminal.table(f"{space.num_classes} classes of the label space {space.name!r}", header, rows, left=range(3))
    for title, each in found.items():
        if not each.counts.any():
            raise checking.nothing_labelled(datasets[title])
        total = sum(width * height * count for (width, height), count in sizes_of[title].items())
        for line in checking.split_notes(title, datasets[title], each.pixels, 1 - each.pixels.sum() / total):
            terminal.say(line)
    path = out / f"{data}_classes.png"
    write_file(path, pictures.bars_figure(shares, space, f"{data}: share of the labelled pixels").savefig)
    terminal.say(f"Picture: {path}")


def check(cfg: DictConfig, data: str, trained: Path | None, out: Path, top: int) -> None:
    """List the faults of both splits, one a line; exit code 1 if there is any, else say what looks wrong to a model."""
    datamodule, file = build_datamodule(cfg), open_file(trained) if trained else None
    if file:
        check_same_classes(file.path, file.label_space, datamodule.label_space)
    total = sum(_check(splits) for splits in _parts(datamodule))
    if total:
        say(f"{total} fault{'s' if total > 1 else ''} found")
        sys.exit(1)
    say("no faults")
    if file:
        _doubt(file, _datasets(datamodule), out, top)


def _doubt(file: TrainedFile, datasets: dict[str, SegmentationDataset], out: Path, top: int) -> None:
    """Write which labelled regions a model takes for another class, the surest first; show ``top`` of them."""
    model, classes, found = file.model().to(choose_device(None)), file.label_space.classes, []
    for title, dataset in datasets.items():
        dataset.reader = file.reader
        for index in progress(range(len(dataset)), escape(title)):
            scene = look(model, *dataset[index][:2], index)
            found += [(title, x) for x in judged_regions(scene, file.label_space.leaves) if x.score > 0]
    rows: list[list[Any]] = []
    for rank, (title, region) in enumerate(sorted(found, key=lambda pair: -pair[1].score), 1):
        image, said = datasets[title].samples[region.scene][0], [classes[region.given], classes[region.suggested]]
        rows.append([title, image, *said, f"{region.pixels}", f"{region.score:.3f}", *region.box])
        if rank <= top:
            picture = region_picture(*datasets[title][region.scene][:2], region, file.label_space)
            write_file(out / "wrong_labels" / f"{rank:03d}.jpg", jpeg(picture))
    header = ["split", "image", "class", "suggested", "pixels", "score", "left", "top", "width", "height"]
    write_file(out / "wrong_labels.csv", lambda path: write_csv(path, [header, *rows]))
    shown = [[row[0], row[1].name, *row[2:6]] for row in rows[:top]]
    Terminal().table("Regions that look like another class", header[:6], shown, range(4))
    say(f"{len(rows)} regions: {out / 'wrong_labels.csv'}; the first as pictures: {out / 'wrong_labels'}")


def _check(splits: dict[str, Callable[[], SegmentationDataset]]) -> int:
    """Print what is wrong with the splits of one part; returns how many faults."""
    made = {title: checking.listing_faults(make) for title, make in splits.items()}
    datasets = {title: dataset for title, (dataset, _) in made.items() if dataset is not None}
    found = [fault for _, faults in made.values() for fault in faults] + checking.repeated_images(datasets)
    counted = {title: np.zeros(dataset.label_space.num_classes + 1, np.int64) for title, dataset in datasets.items()}
    for title, dataset in datasets.items():
        for checked in progress(checking.check_samples(dataset), f"checking {escape(title)}", len(dataset)):
            found += checked.faults
            counted[title] += checked.pixels
    found += [str(checking.nothing_labelled(datasets[t])) for t, n in counted.items() if n.any() and not n[:-1].any()]
    found = list(dict.fromkeys(found))  # splits may list the same folder
    for title, dataset in datasets.items():
        say(f"{title}: {len(dataset)} images and {_masks(dataset)} masks read")
        pixels = counted[title]
        for line in checking.split_notes(title, dataset, pixels[:-1], pixels[-1] / max(1, pixels.sum())):
            say(line)
    for note in dict.fromkeys(note for dataset in datasets.values() for note in checking.image_notes(dataset)):
        say(f"note: {note}")
    for message in found:
        say(f"fault: {message}")
    return len(found)


def show(cfg: DictConfig, data: str, count: int, out: Path) -> None:
    """Write ``DATA_SPLIT.jpg`` for both splits."""
    for title, dataset in _datasets(build_datamodule(cfg)).items():
        if dataset.reader.channels:
            channel_statistics(dataset)
        path = out / f"{data}_{title.replace(' ', '_')}.jpg"
        write_file(path, jpeg(_sheet(dataset, count)))
        say(f"Picture: {path}")


def _sheet(dataset: SegmentationDataset, count: int) -> pictures.Picture:
    """Pairs of image and overlay in rows over a legend; ``count`` samples, spread evenly."""
    space, paper = dataset.label_space, pictures.PAPER[0]
    tiles: list[pictures.Picture] = []
    classes: set[int] = set()
    for index in progress(spread(len(dataset), count), "drawing"):
        image, label, _ = dataset[index]
        classes |= set(label.unique().tolist())
        for picture in (pictures.as_picture(image, space.shown), pictures.overlay(image, label, space)):
            tiles.append(pictures.fit_width(picture, (_WIDTH, _WIDTH)))
    height = max(len(tile) for tile in tiles)
    padded = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0)), constant_values=paper) for tile in tiles]
    sheet = pictures.tile_grid([("", tile, None) for tile in padded], 2 * _COLUMNS, (_WIDTH, _WIDTH), 0, 1)
    return np.concatenate([sheet, pictures.legend(space, sheet.shape[1], classes)])


def stats(cfg: DictConfig, data: str) -> None:
    """Make (where missing) and print the class statistics that training reads."""
    datamodule = build_datamodule(cfg)
    found, frequencies = datamodule.source.class_statistics(), datamodule.source.class_frequencies()
    temperature, pixels, total = RareClasses.temperature, found.pixels, found.pixels.sum()
    probability = rare_class_probability(frequencies.numpy(), temperature)
    weights = balanced_class_weights(frequencies)
    rows = []
    for name, ids in _class_rows(found.classes, pixels):
        counts = found.counts[:, ids]
        row = [name, f"{counts.sum():,}", f"{100 * counts.sum() / total:.3f}", f"{(counts > 0).any(axis=1).sum():,}"]
        row += [f"{counts.sum(axis=1).max():,}", f"{100 * probability[ids].sum():.2f}"]
        rows.append([*row, f"{weights[ids[0]].item():.2f}" if len(ids) == 1 else ""])
    header = ("class", "pixels", "share %", "images", "most in one image", f"drawn % at T = {temperature}", "weight")
    Terminal().table(f"{data}: {len(found.names)} training masks", header, rows)
    if (reader := (dataset := datamodule.source.train_dataset()).reader).channels:
        names, measured = reader.bands or range(reader.channels), channel_statistics(dataset)
        rows = [[str(n), *(f"{x:.6g}" for x in (*r, m, s))] for n, r, m, s in zip(names, *measured, strict=True)]
        titles = ("channel", "becomes 0", "becomes 1", "mean then", "std then")
        Terminal().table(f"{reader.channels} channels", titles, rows)
    say(f"File: {found.path or 'none could be written'}")


def draw(cfg: DictConfig, data: str, share: Fraction, seed: int, out: Path) -> None:
    """Write the names of some training images, in which every class occurs, as ``train_list`` takes them."""
    part = build_datamodule(cfg).source
    if part.parts:
        text = f"draw: expected one data set, got {data!r}, of several: draw of each of them"
        raise ProtosegError(f"{text}, for its data.parts.NAME.train_list")
    names = part.train_dataset().names
    number = int(share) if share >= 1 else max(1, round(share * len(names)))
    chosen = [names[index] for index in part.class_statistics().draw(number, seed)]
    head = f"# {number} of the {len(names)} images of {data}: protoseg data draw {data} --share {share} --seed {seed}"
    write_text(out, "\n".join([head, *chosen, ""]))
    say(f"{number} of {len(names)} images: {out}")


def pack_data(cfg: DictConfig, data: str, to: Path) -> None:
    """Pack both splits into the folder ``to``, and say what it takes."""
    datamodule, root = build_datamodule(cfg), cfg.data.get("root")
    if not isinstance(datamodule, SegmentationDataModule) or root is None:
        raise ProtosegError(f"pack: expected data with one data.root, got {data!r}; pack source and target one by one")
    before, after = (size / 1e9 for size in pack([*_datasets(datamodule).values()], Path(root), to))
    say(f"{before:.3f} GB packed to {after:.3f} GB; train on it with {command(override('data.root', to))}")


def export(benchmark: str, labels: Path, out: Path) -> None:
    """Write label PNGs as a benchmark's server wants them."""
    say(f"{len(export_predictions(labels, out, benchmark))} files for {benchmark}: {out}")


def convert_data(inputs: Sequence[Path], out: Path, to: str | None, classes: Path | None, **reading: Any) -> None:
    """Make a folder to train on of annotation files (``reading``: of ``convert``), or write one in the form ``to``."""
    if (to and (len(inputs) > 1 or any(reading.values()))) or (classes and not to):
        raise ProtosegError("convert: expected one folder, OUT and --classes alone with --to: leave out the others")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ProtosegError(f"convert: expected a new or empty folder, got {out.absolute()}: choose another")
    if to:
        say(f"{write_form(inputs[0], out, to, classes)} label maps as {to}: {out}")
        return
    form, names, count, left_out = convert(inputs, out, **reading)
    say(f"{count} images, read as {form}; {len(names)} classes: {', '.join(names)}")
    for reason, places in left_out.items():
        say(f"left out: {len(places)} x {reason} (first: {places[0]})")
    say(f"Train with {command('data=folder', override('data.root', out))}")


def _parts(
    datamodule: SegmentationDataModule | AdaptationDataModule,
) -> list[dict[str, Callable[[], SegmentationDataset]]]:
    """Of each part (of adaptation two) the splits that are read, by their titles, without the target's own masks."""
    if isinstance(datamodule, SegmentationDataModule):
        return [_splits(datamodule, "", True)]
    source = _splits(datamodule.source, "source ", datamodule.validate_source)
    return [source, _splits(datamodule.target, "target ", True)]


def _splits(part: SegmentationDataModule, title: str, validated: bool) -> dict[str, Callable[[], SegmentationDataset]]:
    if part.parts:
        found = [_splits(one, f"{title}{name} ", validated) for name, one in part.parts.items()]
        return {title: make for splits in found for title, make in splits.items()}
    labels = {part.train_split: part.labels} | ({part.val_split: True} if validated else {})
    return {f"{title}{split}": partial(part.dataset, split, labels) for split, labels in labels.items() if split}


def _datasets(datamodule: SegmentationDataModule | AdaptationDataModule) -> dict[str, SegmentationDataset]:
    return {title: make() for splits in _parts(datamodule) for title, make in splits.items()}


def _masks(dataset: SegmentationDataset) -> int:
    return sum(mask is not None for _, mask in dataset.samples)


def _class_rows(classes: Sequence[str], pixels: NDArray[np.number]) -> list[tuple[str, list[int]]]:
    """Names and ids of the rows of a table: each class, or the most frequent ones and the rest together."""
    chosen = pictures.frequent_classes(pixels)
    rest = np.setdiff1d(np.arange(len(pixels)), chosen).tolist()
    rows = [(pictures.short_name(classes[i]), [i]) for i in chosen]
    return rows + ([(f"{len(rest)} more classes", rest)] if rest else [])
