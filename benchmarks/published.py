"""Published files against their figures: ``python -m benchmarks.published FOLDER DATA``.

Every file of FOLDER is converted, and judged on each validation set of DATA that has its classes; the built-in scenes,
read as Cityscapes, are there always, so that the whole way can be rehearsed without any other data.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from protoseg.data import SegmentationDataModule
from protoseg.data.loading import Loader
from protoseg.data.statistics import spread
from protoseg.evaluation.evaluate import evaluate
from protoseg.evaluation.predictor import choose_device
from protoseg.run.config import composed
from protoseg.run.convert import convert
from protoseg.run.evaluate import match_classes
from protoseg.trained import open_file
from protoseg.types import LabelSpace, ProtosegError

SUFFIXES = (".pth", ".pt", ".safetensors")
DATA = ("cityscapes", "acdc", "dark_zurich", "ade20k", "coco_stuff", "camvid", "streets")
EXPECTED = (
    ("*gta2cs_daformer*", "cityscapes", 68.85, "DAFormer's README, of the file it provides"),
    ("*gtaHR2csHR_hrda*", "cityscapes", 73.79, "HRDA's README, of the file it provides"),
    ("*gtaHR2csHR_mic_hrda*", "cityscapes", 75.9, "MIC's README, mean of three seeds"),
    ("*hrnet_proto_80k*", "cityscapes", 80.1, "ProtoSeg's authors, of the file they provide"),
    ("*segformer_mit-b0*ade20k*", "ade20k", 37.41, "mmsegmentation's README"),
    ("*segformer_mit-b4*ade20k*", "ade20k", 48.46, "mmsegmentation's README"),
    ("*segformer_mit-b5_512*ade20k*", "ade20k", 49.13, "mmsegmentation's README"),
)
"""Pattern of a file's path, data, mIoU in percent, and whose figure it is."""


class Judged(NamedTuple):
    """A file on a data set: mIoU in percent, expected and got; or why there is none."""

    file: str
    data: str
    expected: float | None
    got: float | None
    note: str


def expected(file: Path, data: str) -> tuple[float | None, str]:
    """The figure that was published of a file on some data, and by whom."""
    for pattern, where, figure, source in EXPECTED:
        if data == where and fnmatch(file.as_posix(), pattern):
            return figure, source
    return None, "no figure was published of it"


def datasets(folder: Path, space: LabelSpace) -> Iterator[tuple[str, SegmentationDataModule]]:
    """The data sets under ``folder``, by the names that ``conf/data`` gives their folders, with these classes."""
    for name in DATA:
        cfg = composed("train", [f"data={name}", f"paths.data={folder}", "data.num_workers=0"]).data
        if cfg.root is not None and not Path(cfg.root).is_dir():
            continue
        data = instantiate(cfg)
        if name == "streets" and "terrain" in space.classes:
            data.map_classes(space, "camvid_to_cityscapes")
        match_classes(data, space, {})
        if data.label_space.classes == space.classes:
            yield name, data


def judge(folder: Path, data: Path, images: int | None, overrides: Sequence[str] = ()) -> Iterator[Judged]:
    """One row for every file and data set, and for every file that is refused or has no data.

    ``images``: at most so many of each data set, spread evenly; ``overrides``: as of ``protoseg convert``.
    """
    for file in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        name = file.relative_to(folder).as_posix()
        with TemporaryDirectory() as scratch:
            out = Path(scratch) / "out.ckpt"
            try:
                kind = convert(file, out, overrides=overrides)
            except ProtosegError as error:
                yield Judged(name, "–", None, None, str(error).replace(str(file), name))
                continue
            if kind is None or kind.encoder_only:
                yield Judged(name, "–", None, None, "weights of an encoder: nothing to judge")
                continue
            trained = open_file(out)
            network, device, found = trained.model("student"), choose_device(None), False
            for title, part in datasets(data, trained.label_space):
                found, dataset = True, part.dataset(part.val_split)
                if images is not None and images < len(dataset):
                    dataset.samples = [dataset.samples[i] for i in spread(len(dataset), images)]
                loader = Loader(dataset, 0, 0, batch_size=1)
                got = evaluate(network, loader, trained.predictor(), trained.label_space, scratch, device, save=())
                figure, source = expected(file, title)
                yield Judged(name, title, figure, 100 * float(got["mIoU"]), source)
            if not found:
                yield Judged(name, "–", None, None, f"no data set of its {trained.label_space.num_classes} classes")


def table(rows: Sequence[Judged]) -> Table:
    """Expected, got and difference, in percent of mIoU."""
    out = Table("file", "data", "expected", "got", "difference", "whose figure, or why none")
    for row in rows:
        difference = None if row.expected is None or row.got is None else row.got - row.expected
        numbers = [row.expected, row.got, difference]
        signs = ("{:.2f}", "{:.2f}", "{:+.2f}")
        cells = ["–" if x is None else sign.format(x) for sign, x in zip(signs, numbers, strict=True)]
        out.add_row(row.file, row.data, *cells, row.note)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``python -m benchmarks.published``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.add_argument("folder", type=Path, help="published files, at any depth, with the names they came with")
    parser.add_argument("data", type=Path, help="folder of data sets, each as conf/data names it: cityscapes, …")
    parser.add_argument("--images", type=int, help="at most so many of each data set; figures are of all")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, as of protoseg convert")
    options = parser.parse_intermixed_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"expected a folder of published files, got {options.folder}")
    Console().print(table(list(judge(options.folder, options.data, options.images, options.overrides))))


if __name__ == "__main__":
    main()
