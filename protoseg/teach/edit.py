"""What a change of classes is, and how a checkpoint takes it: the only tensors that change are its prototypes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protoseg.checkpoint import NETWORKS, check_class_names, read_tensors, save_checkpoint
from protoseg.functional.discriminant import Statistics
from protoseg.trained import TrainedFile, digest
from protoseg.types import ProtosegError, told

_MEMORY = "head.memory."
_AUXILIARY = tuple(f"{prefix}auxiliary." for prefix in NETWORKS.values())


class Memory(NamedTuple):
    """Buffers of a prototype memory: ``c k d``, int64 ``c k``, ``c k``; see :class:`protoseg.nn.PrototypeMemory`."""

    prototypes: Tensor
    updates: Tensor
    occupancy: Tensor


@dataclass
class ClassEdit:
    """A change of a checkpoint's classes (those of the new label space); a file of its own (:func:`write_edit`)."""

    classes: list[str]
    colors: list[list[int]]
    rows: list[int]  # of each class its place among the old ones; -1, -2, … for the first, second, … row of ``new``
    new: dict[str, Memory]  # by network (student, teacher) the memory of the classes that are new or changed
    relabel: dict[str, str | None] = field(default_factory=dict)  # how labels are read: {old class: new one, or None}
    means: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by network and class, see ``Statistics.means``
    base: str = ""  # fingerprint of the networks whose embeddings the prototypes belong to


def memories(checkpoint: Mapping[str, Any]) -> dict[str, Memory]:
    """The prototype memory, if classes are no channels, of every network; raises ProtosegError if they are weights."""
    state, head = checkpoint["state_dict"], (checkpoint["protoseg"]["config"] or {}).get("head", {})
    found = {
        network: Memory(*(state[f"{prefix}{_MEMORY}{name}"] for name in Memory._fields))
        for network, prefix in NETWORKS.items()
        if f"{prefix}{_MEMORY}prototypes" in state
    }
    tree = checkpoint["protoseg"]["label_space"].get("parents")
    if tree or (not found and "channel_class" not in head):
        got = "a hierarchy" if tree else f"{head.get('_target_', 'another head')}, whose classes are learned weights"
        text = f"classes: expected a checkpoint whose classes are prototypes (head=prototype), got {got}"
        raise ProtosegError(f"{text}: only training can change these")
    return found


def editable_memories(file: TrainedFile) -> dict[str, Memory]:
    """The :func:`memories` of a checkpoint whose classes are prototypes or channels, else raises ProtosegError."""
    found, c = memories(file.content), file.label_space.num_classes
    for network in file.networks:
        file.statistics(network)  # damaged ones are refused
    model, larger = file.blank(c), file.blank(c + 1)
    now, more = ({n: p.shape for n, p in m.named_parameters()} for m in (model, larger))
    # The auxiliary head has learned weights for each class, too, but only training uses it.
    grown = sorted(name for name in now if now[name] != more[name] and not name.startswith("auxiliary."))
    if grown or not model.head.can_change_classes():
        got = ", ".join(grown[:3]) or type(model.head).__name__
        text = f"checkpoint {file.path}: expected a network without learned weights for single classes, got {got}"
        raise ProtosegError(f"{text}: train with head.logits=temperature (and segmentor.attention_per_class=false)")
    return found


def fingerprint(checkpoint: Mapping[str, Any]) -> str:
    """The same for equal weights (prototypes and auxiliary heads aside), statistics and, once changed, classes."""
    own, networks = checkpoint["protoseg"], tuple(NETWORKS.values())
    statistics = own.get("statistics") or {}
    names = [name for name in checkpoint["state_dict"] if name.startswith(networks) and _MEMORY not in name]
    state = {name: checkpoint["state_dict"][name] for name in names if not name.startswith(_AUXILIARY)}
    if "relabel" in own:
        state[repr(own["label_space"]["classes"])] = torch.empty(0)
    return digest(state, *(statistics[network]["factor"] for network in sorted(statistics)))[:16]


def apply_edit(checkpoint: dict[str, Any], edit: ClassEdit) -> dict[str, Any]:
    """The checkpoint with the classes of ``edit``; the old one is not changed, and shares all other tensors.

    The auxiliary head, which only training uses, is left out: it has learned weights for each class. Raises
    ProtosegError if the edit was made for another network.
    """
    if edit.base != fingerprint(checkpoint):
        got = f"another network or other classes ({fingerprint(checkpoint)})"
        text = f"classes: expected the checkpoint that the change was made for ({edit.base}), got {got}"
        raise ProtosegError(f"{text}: prototypes of one network mean nothing to another")
    state = {name: tensor for name, tensor in checkpoint["state_dict"].items() if not name.startswith(_AUXILIARY)}
    for network, old in memories(checkpoint).items():
        # Old rows first, new ones from behind: -1 is the first new one.
        added = edit.new.get(network, Memory(*(part[:0] for part in old)))
        rows = [row if row >= 0 else len(old.prototypes) - 1 - row for row in edit.rows]
        same = len({len(part) for part in added}) == 1
        same &= [part.shape[1:] for part in added] == [part.shape[1:] for part in old]
        if not same or max(rows) >= len(old.prototypes) + len(added.prototypes):
            raise ProtosegError("classes: expected a change whose prototypes fit the checkpoint's, got others")
        for name, *pair in zip(Memory._fields, old, added, strict=True):
            state[f"{NETWORKS[network]}{_MEMORY}{name}"] = torch.cat(pair)[rows]
    own, names = dict(checkpoint["protoseg"]), checkpoint["protoseg"]["label_space"]["classes"]
    own["label_space"] = {"name": own["label_space"]["name"], "classes": edit.classes, "colors": edit.colors}
    # Two changes, one after the other, as one.
    composed = {first: edit.relabel.get(last, last) for first, last in own.get("relabel", {}).items()}
    old_names = {*names, *edit.relabel.values()} - {old for old, new in edit.relabel.items() if new is None}
    fresh = {*edit.classes} - old_names  # whose labels are read as they are
    own["relabel"] = {old: new for old, new in (edit.relabel | composed).items() if old not in fresh}
    own["config"] = _config_for(own["config"], edit, names)
    if kept := own.get("statistics"):
        own["statistics"] = {n: _placed(Statistics(**kept[n]), names, edit, edit.means.get(n, {})) for n in kept}
    return checkpoint | {"state_dict": state, "protoseg": own}


def _placed(known: Statistics, names: list[str], edit: ClassEdit, taught: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics with the classes after an edit: of merged ones all means stay, each a rival of its own."""
    after = [edit.relabel.get(name, name) for name in names]
    if not set(taught) <= set(edit.classes) or any(mean.shape != known.scale.shape for mean in taught.values()):
        raise ProtosegError("classes: expected a change whose means fit the checkpoint's statistics, got others")
    old = enumerate(zip(known.classes.tolist(), known.taught.tolist(), strict=True))
    rows = [row for row, (of, was) in old if after[of] is not None and not (was and names[of] in taught)]
    if known.taught[rows].all():
        text = "classes: expected one that the network was trained for to be left, got only taught ones"
        raise ProtosegError(f"{text}: keep one of them")
    classes = [edit.classes.index(str(after[of])) for of in known.classes[rows].tolist()]
    known = known.with_taught([], [], len(known.bias) + 1)  # the last place is what a class that was not there has
    places = [max(row, -1) for row in edit.rows]
    kept = known._replace(
        means=known.means[rows],
        classes=torch.tensor(classes, dtype=torch.int64),
        taught=known.taught[rows],
        bias=known.bias[places],
        sets=None if known.sets is None else known.sets[places],
    )
    return kept.with_taught([*taught.values()], [*map(edit.classes.index, taught)], len(edit.classes))._asdict()


def _config_for(config: dict[str, Any], edit: ClassEdit, names: list[str]) -> dict[str, Any]:
    """The run's config without what no longer holds: an auxiliary head, ignored classes that are there now, subsets."""
    config = config | {"auxiliary": None, "data": reading_again(config["data"], edit.classes)}
    if (of := (config.get("head") or {}).get("channel_class")) is not None:
        after = [edit.relabel.get(name, name) for name in names]
        moved = [edit.classes.index(name) if name in edit.classes else -1 for name in after] + [-1]  # none's
        config["head"] = config["head"] | {"channel_class": [moved[i] for i in of]}
    method = config.get("method") or {}
    if method.get("subsets"):
        kept = {name: names for name, names in method["subsets"].items() if set(names) <= set(edit.classes)}
        config["method"] = method | {"subsets": kept}
    return config


def reading_again(data: Any, classes: list[str]) -> Any:
    """The section ``data`` of a config in which none of ``classes`` is ignored by ``relabel`` any more."""
    if not isinstance(data, dict):
        return data
    data = data | {part: reading_again(data[part], classes) for part in ("source", "target") if part in data}
    if isinstance(data.get("parts"), dict):
        data["parts"] = {name: reading_again(part, classes) for name, part in data["parts"].items()}
    if isinstance(data.get("relabel"), dict):
        data["relabel"] = {old: new for old, new in data["relabel"].items() if new is not None or old not in classes}
    return data


def write_edit(edit: ClassEdit, path: str | Path) -> None:
    """Write the change alone, a few kilobytes; :func:`read_edit` and :func:`apply_edit` bring it onto a checkpoint."""
    content = asdict(edit) | {"new": {network: memory._asdict() for network, memory in edit.new.items()}}
    save_checkpoint({"protoseg_classes": content}, path)


def read_edit(path: str | Path) -> ClassEdit:
    """What :func:`write_edit` wrote; raises ProtosegError for a file that is not there or another one."""
    content = read_tensors(path).get("protoseg_classes")
    if not isinstance(content, dict):
        raise ProtosegError(f"{path}: expected a change of classes (protoseg.teach … --delta), got another file")
    damage = (AssertionError, AttributeError, KeyError, TypeError, ProtosegError)
    with told(lambda error: f"{path}: expected a change of classes, got a damaged one ({error})", *damage):
        new = {network: Memory(**memory) for network, memory in content["new"].items()}
        edit = ClassEdit(**content | {"new": new})
        assert isinstance(edit.base, str)
        assert {int} >= {type(row) for row in edit.rows}
        assert len(edit.classes) == len(edit.rows)
        assert all(isinstance(mean, Tensor) for means in edit.means.values() for mean in means.values())
        assert all(isinstance(part, Tensor) and part.ndim > 0 for memory in new.values() for part in memory)
        space = {"name": "edit", "classes": edit.classes, "colors": edit.colors}
        check_class_names({"label_space": space, "relabel": edit.relabel, "config": None})
    return edit
