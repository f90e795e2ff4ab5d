"""Data sets whose layout is described by patterns of file names: a table in place of code."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from protoseg.data.channels import as_list
from protoseg.data.class_file import class_file, read_class_file
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.decoding import check_pixels, check_regular
from protoseg.data.files import Color, labels_of_colors, labels_of_ids, read_mask
from protoseg.data.label_spaces import Ids, read_classes, read_colors, read_ids
from protoseg.data.pairing import IMAGE_SUFFIXES, FilePair, by_key, fault, list_images, pair, read_lines
from protoseg.types import LabelSpace, ProtosegError, told

Patterns = str | Sequence[str]
Classes = str | Mapping[str, Any]
Words = Mapping[str, str]  # what stands in braces in patterns, and for what
Choices = Mapping[str, Sequence[Any] | Mapping[Any, str]]  # what each may be, and what this stands for in patterns
_TABLES = Path(__file__).parent / "label_spaces"
CONVERTED = "_labelTrainIds"  # ends masks that DAFormer's and mmsegmentation's converters write beside the originals


class LayoutDataset(SegmentationDataset):
    """Images and masks found by patterns below a folder, so that a data set is one YAML (``docs/extending.md``).

    In patterns ``*`` is any text inside a name, ``**/`` any folders, ``.*`` any suffix of images that is read. An image
    and a mask belong together where their stars stand for the same. ``{split}`` and the names of ``choices`` are
    replaced. Of several patterns all are searched, the first before the others. Upper and lower case are one.

    Args:
        root, name: the folder, and what messages call the data set.
        split: one of ``splits``.
        labels: False lists the images alone.
        images, masks: patterns, e.g. ``leftImg8bit/{split}/**/*_leftImg8bit.png``; masks also of MATLAB files.
        classes: a table of ``label_spaces`` by its name, or a file of classes (``read_class_file``), or its content.
        ids: the column of that table with the ids in the masks; ``color``: masks hold the colours of the classes.
        splits: their names, or name: what stands for ``{split}``, or name: the list of its images.
        unlabelled: the splits without masks.
        lists: file with the names of a split's images, in the first column of its lines. If all splits are in one file,
            the names begin with the split.
        choices: what other words in braces may be; each is an argument of its own: one, several, or None for all.
        sequences: keep the images whose file name begins with one of these; None keeps all.
        leave_out: names without suffix of images that are left out.
        skip: folders whose names begin so are not looked into.
        channel: of the ids in masks that have several.
        variable: of the ids in MATLAB files, with dots between the fields of structures.
        source: where the data set comes from and under which terms, for the message when it is absent.
        **chosen: values of ``choices``.

    Raises ProtosegError: an unknown split, choice or table, or files that are missing or do not pair up.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        labels: bool = True,
        *,
        images: Patterns,
        masks: Patterns,
        classes: Classes,
        ids: str = "id",
        splits: Sequence[str] | Mapping[str, str | Sequence[str]] = ("train", "val"),
        unlabelled: Sequence[str] = (),
        lists: str | None = None,
        choices: Choices | None = None,
        sequences: str | Sequence[str] | None = None,
        leave_out: Sequence[str] = (),
        skip: str | None = None,
        channel: int | None = None,
        variable: str = "",
        source: str = "",
        name: str = "data set",
        **chosen: Any,
    ) -> None:
        self.label_space, self.id_table, colors = described_classes(classes, ids, name)
        self.colors = colors if ids == "color" else {}
        self.root, self.name, self.variable, self.skip = Path(root), name, variable, skip
        if channel is not None:
            self.id_channel = channel
        self.source = source or self.source
        if split not in splits:
            raise ProtosegError(f"{name}: expected a split out of {', '.join(splits)}, got {split!r}")
        place = splits[split] if isinstance(splits, Mapping) else split
        names = None if isinstance(place, str) else place
        samples: list[FilePair] = []
        for words in _combinations(name, choices or {}, chosen):
            words["split"] = place if isinstance(place, str) else split
            self.lists = [] if lists is None else [self.root / _filled(lists, words)]
            shared = lists is not None and "{split}" not in lists
            wanted = masks if labels and split not in unlabelled else None
            samples += self._pairs(images, wanted, words, names, shared)
        samples = [sample for sample in samples if sample[0].stem not in leave_out]
        super().__init__(samples if sequences is None else self._beginning(samples, sequences), split)

    @classmethod
    def space(cls, **options: Any) -> LabelSpace | None:
        said = {key: options[key] for key in ("classes", "ids", "name") if key in options}
        return described_classes(**said)[0] if "classes" in said else super().space()

    def read_label(self, index: int) -> Ids:
        mask = self.samples[index][1]
        if mask is not None and mask.suffix.lower() == ".mat":
            return labels_of_ids(mask, read_matlab(mask, self.variable), self.id_table)
        if mask is None or not self.colors:
            return super().read_label(index)
        found = read_mask(mask)
        if found.kind not in ("colour", "palette"):
            remedy = "choose the masks of the release, or set data.dataset.ids to the ids that these hold"
            raise ProtosegError(f"mask {mask}: expected the colours of the classes, got {found.kind} values: {remedy}")
        return labels_of_colors(mask, found._replace(clear=None), self.colors, self.id_table.dtype)

    def _pairs(
        self, images: Patterns, masks: Patterns | None, words: Words, names: Sequence[str] | None, shared: bool
    ) -> list[FilePair]:
        """The pairs of one combination of ``words``, of ``names`` or of a list, which may be of all splits."""
        found, folder, where = self._found(images, words)
        labels, folders = None, [folder]
        if masks is not None:
            labels, folder, there = self._found(masks, words)
            for key in [key for key in labels if key.endswith(CONVERTED) and key.removesuffix(CONVERTED) in labels]:
                del labels[key]
            if found.keys() - labels.keys():  # so that ``pair`` says why a JPEG is none
                pictures = [re.sub(r"\.\w+$", end, mask) for mask in as_list(masks) for end in (".jpg", ".jpeg")]
                labels = {k: path for k, path in self._found(pictures, words)[0].items() if k in found} | labels
            folders, where = [*folders, folder], f"{where} and {there}"
        where = f"{self.name}: {where}"
        if self.lists:
            names = read_names(self.lists[0], words["split"] if shared else None)
        if names is not None:
            # A file is meant by its name, or by the end of a path.
            ends = {name: [name.split("/", i)[-1] for i in range(1 + name.count("/"))] for name in names}
            keys = {name: next(filter(found.__contains__, each), None) for name, each in ends.items()}
            if missing := [name for name, key in keys.items() if key is None]:
                shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
                source = self.lists[0] if self.lists else f"split {words['split']!r}"
                fault(f"{where}: expected {len(keys)} images of {source}, got none of {shown}: add them or name others")
            found = {key: found[key] for key in keys.values() if key is not None}
            labels = None if labels is None else {key: labels[key] for key in found if key in labels}
        return pair(found, labels, where, folders)

    def _found(self, patterns: Patterns, words: Words) -> tuple[dict[str, Path], Path, str]:
        """The files by what the stars stand for, the folder of the first pattern that is there, and both in words."""
        filled = [_filled(pattern, words) for pattern in as_list(patterns)]
        cuts = (re.findall(r"^((?:[^*/]*/)*)(.*)", pattern)[0] for pattern in filled)  # at the last / before a star
        places = [(self.root / folder, rest) for folder, rest in cuts]
        there = [(folder, rest) for folder, rest in places if folder.is_dir()]
        if not there:
            self.check_folder(places[0][0], f"Read are {', '.join(filled)} in {self.root}. ")
        files: dict[str, Path] = {}
        for folder, rest in there:
            files = matching(folder, rest, self.skip) | files
        return files, there[0][0], f"{', '.join(filled)} in {there[0][0]}"

    def _beginning(self, samples: list[FilePair], sequences: str | Sequence[str]) -> list[FilePair]:
        prefixes = tuple(as_list(sequences))
        names = [image.name for image, _ in samples]
        for prefix in prefixes or ("",):
            if not prefix or not any(name.startswith(prefix) for name in names):
                known = ", ".join(sorted({name.split("_")[0] for name in names}))
                text = f"{self.name}: expected sequences of {samples[0][0].parent} ({known}), got {prefix!r}"
                raise ProtosegError(f"{text}: correct data.dataset.sequences (null keeps all)")
        return [sample for sample in samples if sample[0].name.startswith(prefixes)]


def described_classes(
    classes: Classes, ids: str = "id", name: str = "data set"
) -> tuple[LabelSpace, Ids, Mapping[Color, int]]:
    """Label space, train id of each id, and label of each colour; raises ProtosegError."""
    setting = "data.dataset.classes"
    plain = None if isinstance(classes, str) else OmegaConf.to_container(OmegaConf.create({"name": name, **classes}))
    if plain is not None or str(classes).endswith((".yaml", ".yml")):
        file = read_class_file(str(classes)) if plain is None else class_file(plain, Path(setting))
        if file.transparent:
            raise ProtosegError(f"{setting}: expected void ids or colours, got transparent, for data=folder alone")
        return file[:3]
    known = sorted(path.stem for path in _TABLES.glob("*.tsv"))
    if classes not in known:
        raise ProtosegError(f"{setting}: expected one of {', '.join(known)}, or a file FILE.yaml, got {classes!r}")
    with told(lambda _: f"ids: expected a column of {classes!r} with ids, or color, got {ids!r}", KeyError, ValueError):
        return read_classes(classes), read_ids(classes, "id" if ids == "color" else ids), read_colors(classes)


def matching(folder: Path, pattern: str, skip: str | None = None) -> dict[str, Path]:
    """The files in ``folder`` as the pattern says, by what its stars stand for; raises as ``by_key``."""
    any_suffix = pattern.endswith(".*")
    escaped = re.escape(pattern.removesuffix(".*")).replace(r"\*\*/", "((?:.*/)?)").replace(r"\*", "([^/]*)")
    expression = re.compile(escaped + (r"\.[^./]+" if any_suffix else ""), re.IGNORECASE)
    suffixes = IMAGE_SUFFIXES if any_suffix else (Path(pattern).suffix.lower(),)
    paths = list_images(folder, recursive="/" in pattern, skip=skip, suffixes=suffixes)
    found = {path: expression.fullmatch(path.relative_to(folder).as_posix()) for path in paths}
    keys = {path: "".join(match.groups()) for path, match in found.items() if match}
    return by_key(keys, keys.__getitem__)


def _filled(pattern: str, words: Words) -> str:
    for name, text in words.items():
        pattern = pattern.replace(f"{{{name}}}", text)
    return pattern


def _combinations(name: str, choices: Choices, chosen: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Every combination of the values chosen, by the words that they stand for."""
    if other := chosen.keys() - choices.keys():
        raise ProtosegError(f"{name}: expected settings out of {', '.join(choices) or 'none'}, got {', '.join(other)}")
    texts: list[list[str]] = []
    for option, offered in choices.items():
        known = {str(key): str(offered[key] if isinstance(offered, Mapping) else key) for key in offered}
        value = chosen.get(option)
        one = isinstance(value, str | int | float)
        wanted = list(known) if value is None else [str(value)] if one else [str(v) for v in value]
        if not wanted or not set(wanted) <= known.keys():
            got = repr(value) if one else ", ".join(wanted) or "none"
            text = f"{name}: expected {'a ' if one else ''}{option} out of {', '.join(known)}, got {got}"
            raise ProtosegError(f"{text}: correct data.dataset.{option}{'' if one else ' (null keeps all)'}")
        texts.append([known[key] for key in wanted])
    return (dict(zip(choices, values, strict=True)) for values in product(*texts))


def read_names(path: Path, start: str | None = None) -> list[str]:
    """The first column of a list, without suffixes; with ``start`` what is in that folder. Raises as ``read_lines``."""
    names = [line.split()[0].strip("/") for line in read_lines(path) if line.strip()]
    names = [name.removesuffix(end) if (end := Path(name).suffix).lower() in IMAGE_SUFFIXES else name for name in names]
    return names if start is None else [name for name in names if name.startswith(f"{start}/")]


def read_matlab(path: Path, variable: str) -> NDArray[Any]:
    """Ids ``h w`` of a MATLAB file (to version 7.2); raises ProtosegError where there are none."""
    from scipy.io import loadmat  # which albumentations needs, too

    text = f"mask {path}: expected a MATLAB file with whole numbers h w in {variable}"
    # Whatever scipy meets in a file that is none.
    with told(lambda error: f"{text}, got {error}: unpack it again", Exception):
        check_regular(path)
        found: Any = loadmat(path, simplify_cells=True)
        for field in variable.split("."):
            found = found[field]
        ids = np.asarray(found)
        if ids.ndim != 2 or ids.dtype.kind not in "ui":
            raise ValueError(f"it is {ids.dtype} of {ids.ndim} dimensions")
    check_pixels(f"mask {path}", ids.shape[1], ids.shape[0])
    return ids
