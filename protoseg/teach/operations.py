"""Adding, refreshing, removing and merging classes of a checkpoint, without a gradient."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from protoseg.analysis.stream import look
from protoseg.data import SegmentationDataset
from protoseg.functional.class_prototypes import ClassPrototypes, class_prototypes, turned_away
from protoseg.models.segmentor import Segmentor
from protoseg.teach.edit import ClassEdit, Memory, editable_memories, fingerprint
from protoseg.trained import TrainedFile
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError

MAX_CELLS = 200_000
"""Cells of the grid kept of each class that is looked for, and of all others together: bounds the memory."""

OTHER = -1

Entry = tuple[str, tuple[int, int, int], int]
"""Name, colour and row (see :attr:`ClassEdit.rows`) of a class after a change."""


class NewClass(NamedTuple):
    """What was found of one class in one network."""

    name: str
    network: str  # ``student`` or ``teacher``
    pixels: int  # cells of the grid that its prototypes were made of
    distinct: int  # how many of these differ, at most K
    turned: float  # how far they were turned away from other classes, 0 to 1; see ``functional.class_prototypes``


def add_classes(
    file: TrainedFile,
    dataset: SegmentationDataset,
    names: Sequence[str],
    seed: int = 0,
    device: torch.device | str = "cpu",
    title: str = "",
) -> tuple[ClassEdit, list[NewClass]]:
    """Give a checkpoint classes that it was not trained for, from a few images with masks.

    K prototypes of each class are clustered from the frozen embeddings of its pixels, and turned away from those of the
    other labelled pixels in the same images (:func:`protoseg.functional.class_prototypes.turned_away`).

    In ``dataset`` pixels of the new classes are labelled as such, any other label is "not these", ignored pixels take
    no part; names and colours come from its label space. ``seed`` is of the clustering, ``title`` of the progress bar:
    none without it. Returns the change, for :func:`protoseg.teach.apply_edit`, and what was found in each network.

    Raises ProtosegError: classes that are there already or have no pixel; a head without prototypes, or with learned
    weights for each class.
    """
    space, given = file.label_space, dataset.label_space
    ids = given.ids(names, "classes to add")
    if known := sorted(set(names) & set(space.classes)):
        raise ProtosegError(
            f"classes to add: expected classes that {file.path} does not have, got {', '.join(known)}: choose another "
            "name, or refresh the class"
        )
    new, found = _prototypes(file, dataset, ids, {}, seed, device, title)
    added = [(given.classes[i], given.colors[i], -1 - place) for place, i in enumerate(ids)]
    return _edit(file, [*_entries(space), *added], new), found


def refresh_class(
    file: TrainedFile,
    dataset: SegmentationDataset,
    name: str,
    keep: float = 0.5,
    seed: int = 0,
    device: torch.device | str = "cpu",
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
    new, found = _prototypes(file, dataset, [there], {there: (row, keep)}, seed, device, title)
    entries = [(known, color, -1 if i == row else i) for known, color, i in _entries(space)]
    return _edit(file, entries, new), found


def remove_classes(file: TrainedFile, names: Sequence[str]) -> ClassEdit:
    """Take classes out: their pixels go to the next nearest prototype, labels of theirs are ignored from now on.

    Raises ProtosegError: no such class, or none would be left; a head as in ``add_classes``.
    """
    editable_memories(file)
    space = file.label_space
    gone = set(space.ids(names, f"classes to remove from {file.path}"))
    if len(gone) == space.num_classes:
        raise ProtosegError(
            f"classes to remove from {file.path}: expected at least one class to be left, got all of them"
        )
    return _edit(file, [e for e in _entries(space) if e[2] not in gone], {}, dict.fromkeys(names))


def merge_classes(file: TrainedFile, names: Sequence[str], into: str, seed: int = 0) -> ClassEdit:
    """Make one class of several, in the place of the first; its K prototypes are clustered from theirs.

    Its name ``into`` is one of ``names``, whose colour it has, or a new one, which has the first one's colour. Raises
    ProtosegError: fewer than two classes, one that is not there, a name that another class has; as ``add_classes``.
    """
    found = editable_memories(file)
    space = file.label_space
    merged = sorted(set(space.ids(names, f"classes to merge in {file.path}")))
    if len(merged) < 2 or into in set(space.classes) - set(names):
        raise ProtosegError(
            f"classes to merge in {file.path}: expected two or more, and a name that no other class has, got "
            f"{', '.join(names)} into {into!r}"
        )
    first = merged[0]
    color = space.colors[space.classes.index(into) if into in names else first]
    entries = [(into, color, -1) if e[2] == first else e for e in _entries(space) if e[2] not in merged[1:]]
    relabel: dict[str, str | None] = {space.classes[i]: into for i in merged if space.classes[i] != into}
    new = {}
    for network, memory in found.items():
        old, updates, occupancy = (buffer[merged] for buffer in memory)
        prototypes = class_prototypes(old.flatten(0, 1), old.shape[1], seed=seed).prototypes
        new[network] = Memory(prototypes[None], updates.amax(0)[None], occupancy.sum(0)[None])
    return _edit(file, entries, new, relabel)


def _entries(space: LabelSpace) -> list[Entry]:
    return [(name, color, i) for i, (name, color) in enumerate(zip(space.classes, space.colors, strict=True))]


def _edit(
    file: TrainedFile, entries: list[Entry], new: dict[str, Memory], relabel: dict[str, str | None] | None = None
) -> ClassEdit:
    names, colors, rows = zip(*entries, strict=True)
    return ClassEdit([*names], [[*color] for color in colors], [*rows], new, relabel or {}, fingerprint(file.content))


def _prototypes(
    file: TrainedFile,
    dataset: SegmentationDataset,
    ids: list[int],
    old: dict[int, tuple[int, float]],
    seed: int,
    device: torch.device | str,
    title: str,
) -> tuple[dict[str, Memory], list[NewClass]]:
    """For each network the memory of classes ``ids`` of the data set, with ``old`` = {id: (row, weight to keep)}."""
    found = editable_memories(file)
    new, log = {}, []
    for network, memory in found.items():
        model = file.model(network).to(device)
        cells, labels = _labelled_cells(model, dataset, ids, seed, title and f"{title} ({network})")
        members = {i: cells[labels == i] for i in ids}
        start = [_clustered(members[i], i, memory, old.get(i), dataset, seed) for i in ids]
        made = []
        for place, (label, first) in enumerate(zip(ids, start, strict=True)):
            # The other new classes count as rivals too; the old prototypes of a refreshed class do not.
            kept = [row for row in range(len(memory.prototypes)) if label not in old or row != old[label][0]]
            rest = [other.prototypes for i, other in enumerate(start) if i != place]
            rivals = torch.cat([memory.prototypes[kept].flatten(0, 1), *rest])
            prototypes, turned = turned_away(first.prototypes, members[label], cells[labels != label], rivals)
            made.append(Memory(prototypes, torch.ones_like(first.counts), first.counts.to(memory.occupancy)))
            name, number = dataset.label_space.classes[label], len(members[label])
            log.append(NewClass(name, network, number, first.distinct, turned))
        new[network] = Memory(*(torch.stack(parts) for parts in zip(*made, strict=True)))
    return new, log


def _clustered(
    members: Tensor, label: int, memory: Memory, old: tuple[int, float] | None, dataset: SegmentationDataset, seed: int
) -> ClassPrototypes:
    """The prototypes of one class, with the old ones among its pixels where they are to be kept."""
    if len(members) == 0:
        raise ProtosegError(
            f"class {dataset.label_space.classes[label]!r}: expected pixels of it in the masks, got none on the "
            f"network's grid in {len(dataset)} images: give images that show it, larger"
        )
    row, keep = old or (-1, 0.0)
    k = memory.prototypes.shape[1]
    if keep:  # copies of the old ones that make up about this share of all
        copies = max(1, round(keep / (1 - keep) * len(members) / k))
        members = torch.cat([members, memory.prototypes[row].repeat(copies, 1)])
    return class_prototypes(members, k, seed=seed)


def _labelled_cells(
    model: Segmentor, dataset: SegmentationDataset, classes: Sequence[int], seed: int, title: str
) -> tuple[Tensor, Tensor]:
    """Unit embeddings ``n d`` and labels ``n`` of labelled cells, of large sets a part; other classes are ``OTHER``."""
    generator = torch.Generator().manual_seed(seed)
    share = max(1, MAX_CELLS // len(dataset))
    embeddings, labels = [], []
    for index in track(range(len(dataset)), title, disable=not title):
        image, label, _ = dataset[index]
        scene = look(model, image, label)
        grid = scene.cell_label.cpu()
        sought = torch.isin(grid, torch.tensor(classes))
        known = torch.where(sought, grid, OTHER)
        chosen = torch.cat([_drawn(known == i, share, generator) for i in classes]
            + [_drawn(~sought & (grid != IGNORE_INDEX), share, generator)])  # fmt: skip
        embeddings.append(scene.output.embeddings[0].flatten(1).T[chosen.to(scene.image.device)].cpu())
        labels.append(known[chosen])
    return torch.cat(embeddings), torch.cat(labels)


def _drawn(wanted: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of at most ``count`` of the wanted cells."""
    found = wanted.nonzero().flatten()
    return found if len(found) <= count else found[torch.randperm(len(found), generator=generator)[:count]]
