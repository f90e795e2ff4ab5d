"""Adding, refreshing, removing and merging classes of a checkpoint, without a gradient."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from protoseg.analysis.stream import look
from protoseg.data import SegmentationDataset
from protoseg.functional.discriminant import Statistics, posterior_mean
from protoseg.functional.prototypes import ClassPrototypes, class_prototypes
from protoseg.functional.sampling import pixel_rows
from protoseg.models.segmentor import Segmentor
from protoseg.nn.discriminant import frozen_maps
from protoseg.teach.edit import ClassEdit, Memory, editable_memories, fingerprint
from protoseg.trained import TrainedFile
from protoseg.types import LabelSpace, Names, ProtosegError

MAX_CELLS = 200_000  # of the grid, kept of each class that is looked for: bounds the memory
AWAY = 0.5  # of the other classes' mean embedding, taken off prototypes: 0.3 to 0.8 did as well (docs/results.md)
Entry = tuple[str, tuple[int, int, int], int]  # name, colour and row (``ClassEdit.rows``) of a class after a change
Means = dict[str, dict[str, Tensor]]  # by network and class, see ``ClassEdit.means``
Old = dict[int, tuple[int, float]]  # by id of the data: row of the class as it is, and the weight to keep
Device = torch.device | str
CPU = "cpu"


class NewClass(NamedTuple):
    """What was found of one class in one network."""

    name: str
    network: str  # ``student`` or ``teacher``
    pixels: int  # cells of the grid that its prototypes were made of
    distinct: int  # how many of these differ, at most K; 0 without prototypes
    called: str  # what the model called most of these pixels before
    share: float  # of them, 0 to 1


def add_classes(
    file: TrainedFile, dataset: SegmentationDataset, names: Names, seed: int = 0, device: Device = CPU, title: str = ""
) -> tuple[ClassEdit, list[NewClass]]:
    """Give a checkpoint classes that it was not trained for, from a few images with masks.

    A new class is found by a linear discriminant of all frozen maps (:mod:`protoseg.functional.discriminant`), whose
    statistics the checkpoint holds (:func:`protoseg.teach.with_statistics`); its K prototypes, clustered from the
    embeddings of its pixels, say what it looks like.

    In ``dataset`` pixels of the new classes are labelled as such, any other label is "not these", ignored pixels take
    no part; names and colours come from its label space. ``seed`` is of the clustering, ``title`` of the progress bar:
    none without it. Returns the change, for :func:`protoseg.teach.apply_edit`, and what was found in each network.

    Raises ProtosegError: classes that are there already or have no pixel; a checkpoint without statistics; a head
    without prototypes, or with learned weights for each class.
    """
    editable_memories(file)
    if file.statistics() is None:
        text = f"checkpoint {file.path}: expected one with statistics of its training images, by which new classes"
        remedy = "protoseg teach statistics makes them (Python: protoseg.teach.with_statistics)"
        raise ProtosegError(f"{text} are found, got none: {remedy}")
    return placed_classes(file, dataset, names, seed, device, title)


def placed_classes(
    file: TrainedFile, dataset: SegmentationDataset, names: Names, seed: int, device: Device, title: str
) -> tuple[ClassEdit, list[NewClass]]:
    """As :func:`add_classes`, of a checkpoint with or without statistics: without, by prototypes alone."""
    space, given = file.label_space, dataset.label_space
    ids = given.ids(names, "classes to add")
    if known := sorted(set(names) & set(space.classes)):
        text = f"classes to add: expected classes that {file.path} does not have, got {', '.join(known)}"
        raise ProtosegError(f"{text}: choose another name, or refresh the class")
    new, found, means = learned(file, dataset, ids, {}, seed, device, title)
    added = [(given.classes[i], given.colors[i], -1 - place) for place, i in enumerate(ids)]
    return edit_of(file, [*entries_of(space), *added], new, {}, means), found


def refresh_class(
    file: TrainedFile,
    dataset: SegmentationDataset,
    name: str,
    keep: float = 0.5,
    seed: int = 0,
    device: Device = CPU,
    title: str = "",
) -> tuple[ClassEdit, list[NewClass]]:
    """Bring the prototypes of a class to how it looks in new images; arguments as of :func:`add_classes`.

    ``keep`` is the weight of the old prototypes among the pixels that are clustered: 0 replaces them, 0.5 gives old and
    new conditions equal weight. Raises ProtosegError: no such class, ``keep`` outside [0, 1), or as ``add_classes``.
    """
    if not 0 <= keep < 1:
        raise ProtosegError(f"keep: expected a share of at least 0 and below 1, got {keep}")
    space = file.label_space
    (row,) = space.ids([name], f"class to refresh in {file.path}")
    (there,) = dataset.label_space.ids([name], "class to refresh in the images")
    placed = file.statistics()
    if not editable_memories(file) and not (placed and placed.taught[placed.classes == row].any()):
        raise ProtosegError(f"class to refresh in {file.path}: expected a taught one, got channels of the network")
    new, found, means = learned(file, dataset, [there], {there: (row, keep)}, seed, device, title)
    entries = [(known, color, -1 if i == row else i) for known, color, i in entries_of(space)]
    for network, of in means.items():
        known = file.statistics(network)
        assert known is not None
        own = (known.classes == row) & known.taught
        if not own.any():  # the head's own class: what the training images say of it stays
            means[network] = {}
        elif keep:
            of[name] = keep * known.means[own].mean(0) + (1 - keep) * of[name]
    return edit_of(file, entries, new, {}, means), found


def remove_classes(file: TrainedFile, names: Names) -> ClassEdit:
    """Take classes out: their pixels go to the next nearest prototype, labels of theirs are ignored from now on.

    Raises ProtosegError: no such class, or none would be left; a head as in ``add_classes``.
    """
    editable_memories(file)
    space = file.label_space
    where = f"classes to remove from {file.path}"
    gone = set(space.ids(names, where))
    if len(gone) == space.num_classes:
        raise ProtosegError(f"{where}: expected at least one class to be left, got all of them")
    return edit_of(file, [e for e in entries_of(space) if e[2] not in gone], {}, dict.fromkeys(names), {})


def merge_classes(file: TrainedFile, names: Names, into: str, seed: int = 0) -> ClassEdit:
    """Make one class of several, in the place of the first; its K prototypes are clustered from theirs.

    Its name ``into`` is one of ``names``, whose colour it has, or a new one, which has the first one's colour. Raises
    ProtosegError: fewer than two classes, one that is not there, a name that another class has; as ``add_classes``.
    """
    found = editable_memories(file)
    space = file.label_space
    merged = sorted(set(space.ids(names, f"classes to merge in {file.path}")))
    if len(merged) < 2 or into in set(space.classes) - set(names):
        text = f"classes to merge in {file.path}: expected two or more, and a name that no other class has"
        raise ProtosegError(f"{text}, got {', '.join(names)} into {into!r}")
    first = merged[0]
    color = space.colors[space.classes.index(into) if into in names else first]
    entries = [(into, color, -1) if e[2] == first else e for e in entries_of(space) if e[2] not in merged[1:]]
    relabel: dict[str, str | None] = {space.classes[i]: into for i in merged if space.classes[i] != into}
    new = {}
    for network, memory in found.items():
        old, updates, occupancy = (buffer[merged] for buffer in memory)
        prototypes = class_prototypes(old.flatten(0, 1), old.shape[1], seed=seed).prototypes
        new[network] = Memory(prototypes[None], updates.amax(0)[None], occupancy.sum(0)[None])
    return edit_of(file, entries, new, relabel, {})


def entries_of(space: LabelSpace) -> list[Entry]:
    """The classes as they are, for :func:`edit_of`."""
    return [(name, color, i) for i, (name, color) in enumerate(zip(space.classes, space.colors, strict=True))]


def edit_of(
    file: TrainedFile, entries: list[Entry], new: dict[str, Memory], relabel: dict[str, str | None], means: Means
) -> ClassEdit:
    names, colors, rows = zip(*entries, strict=True)
    return ClassEdit([*names], [[*color] for color in colors], [*rows], new, relabel, means, fingerprint(file.content))


def learned(
    file: TrainedFile, dataset: SegmentationDataset, ids: list[int], old: Old, seed: int, device: Device, title: str
) -> tuple[dict[str, Memory], list[NewClass], Means]:
    """For each network memory and means of classes ``ids`` of the data, of which ``old`` are kept in part."""
    new, log = {}, []
    means: Means = {}
    memories = editable_memories(file)
    for network in file.networks:
        known, memory = file.statistics(network), memories.get(network)
        made: list[Memory] = []
        model = file.model(network).to(device)
        for i, seen in _looked_at(model, dataset, ids, known, seed, title and f"{title} ({network})").items():
            name = dataset.label_space.classes[i]
            if not seen.cells:
                text = f"class {name!r}: expected pixels of it in the masks, got none on the network's grid in"
                raise ProtosegError(f"{text} {len(dataset)} images: give images that show it, larger")
            if memory is not None:
                found = _clustered(seen, memory, *old.get(i, (-1, 0.0)), seed)
                made.append(Memory(found.prototypes, torch.ones_like(found.counts), found.counts.to(memory[2])))
            calls = torch.stack(seen.calls).sum(0)
            called, share = file.label_space.classes[int(calls.argmax())], float(calls.max() / calls.sum())
            distinct = found.distinct if memory is not None else 0
            log.append(NewClass(name, network, sum(map(len, seen.cells)), distinct, called, share))
            if known is not None:
                mean = posterior_mean(known, torch.stack(seen.means), torch.tensor(seen.counts))
                means.setdefault(network, {})[name] = mean
        if made:
            new[network] = Memory(*(torch.stack(parts) for parts in zip(*made, strict=True)))
    return new, log, means


class _Seen(NamedTuple):
    """A class in each image that shows it."""

    cells: list[Tensor]  # unit embeddings, of large sets of a part of its cells, ``n d``
    means: list[Tensor]  # of all of its cells' frozen maps, whitened, ``D``
    counts: list[int]  # of these
    calls: list[Tensor]  # and of what the model calls them, by class, ``c``
    others: list[Tensor]  # mean embedding of the labelled cells of other classes, ``d``


def _looked_at(
    model: Segmentor, dataset: SegmentationDataset, ids: Sequence[int], known: Statistics | None, seed: int, title: str
) -> dict[int, _Seen]:
    generator = torch.Generator().manual_seed(seed)
    share = max(1, MAX_CELLS // len(dataset))
    found = {i: _Seen([], [], [], [], []) for i in ids}
    for index in track(range(len(dataset)), title, disable=not title):
        scene = look(model, *dataset[index][:2])
        embeddings = pixel_rows(scene.output.embeddings)
        for i, seen in found.items():
            own = (scene.cell_label == i).nonzero().flatten()
            if (rest := scene.labelled & (scene.cell_label != i)).any():
                seen.others.append(embeddings[rest].mean(0).cpu())
            if len(own):
                seen.calls.append(torch.bincount(scene.cell_prediction[own], minlength=model.num_classes).cpu())
                if known is not None:
                    maps = frozen_maps(scene.output, scene.stride, model.feature_strides, own)
                    seen.means.append(known.whitened(maps.mean(0, keepdim=True).cpu())[0])
                    seen.counts.append(len(own))
                drawn = torch.randperm(len(own), generator=generator)[:share] if len(own) > share else slice(None)
                seen.cells.append(embeddings[own[drawn]].cpu())
    return found


def _clustered(seen: _Seen, memory: Memory, row: int, keep: float, seed: int) -> ClassPrototypes:
    """The prototypes of one class, with the old ones among its pixels where they are to be kept."""
    members, k = torch.cat(seen.cells), memory.prototypes.shape[1]
    if keep:  # copies of the old ones that make up about this share of all
        copies = max(1, round(keep / (1 - keep) * len(members) / k))
        members = torch.cat([members, memory.prototypes[row].repeat(copies, 1)])
    found = class_prototypes(members, k, seed=seed)
    if not seen.others:
        return found
    # All pixels share much of their direction: training drives classes apart, averaging does not.
    return found._replace(prototypes=F.normalize(found.prototypes - AWAY * torch.stack(seen.others).mean(0), dim=1))
