"""Label spaces of hierarchies: what a tree makes of the classes, what is refused, and the trees that are shipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from protoseg.data import CAMVID
from protoseg.data.class_file import in_tree
from protoseg.data.label_spaces import ADE20K_150, CITYSCAPES, COCO_STUFF
from protoseg.evaluation.metrics import subset_means
from protoseg.types import LabelSpace, ProtosegError
from tests.conftest import CONF
from tests.functional.test_hierarchy import PARENTS, line

TREE = {"top": {"ab": ["a", "b"], "c's": ["c"], "d": None}}
SPACE = LabelSpace("toy", tuple("abcde"), tuple((i, i, i) for i in range(5)))


def tree() -> LabelSpace:
    """The tree of ``PARENTS``."""
    return in_tree(SPACE, TREE)


def test_groups_stand_behind_the_classes() -> None:
    space = tree()
    assert space.classes == ("a", "b", "c", "d", "e", "ab", "c's", "top")
    assert space.parents == PARENTS
    assert space.leaves == 5
    assert len(set(space.colors)) == 8
    assert space.colors[:5] == SPACE.colors
    assert in_tree(LabelSpace("toy", ("ab", *"edcba"), ((9, 9, 9), *SPACE.colors)), TREE).classes == (
        *("e", "d", "c", "b", "a"),
        *("ab", "c's", "top"),
    )
    assert (SPACE.parents, SPACE.leaves) == ((), 5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"x": ["a", "z"]}, "z"),
        ({"x": ["a"], "y": ["a"]}, "a"),
        ({"x": ["a", "a"], "y": "road"}, "a, road"),
        ({"a": ["b"], "x": ["a", "b"]}, "b, a"),
        ({"x": 5}, "5"),
        ({"z": None}, "z"),
        ({2024: ["a"], None: ["b"]}, "2024, None"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused(wrong: dict[str, Any], named: str) -> None:
    text = r"^hierarchy: expected \{group: \[class, …\]\} of a, b, c, d, e, each once, got "
    with pytest.raises(ProtosegError, match=f"{text}{named}, which are no classes or named twice"):
        in_tree(SPACE, wrong)


def test_no_class_of_a_tree_can_be_left_out_or_put_in_between() -> None:
    space = tree()
    for parents in (
        PARENTS[:-1],
        (-1, *PARENTS),
        (5, 5, 6, 7, -1, 7, 7, 7),
        (5, 5, 6, 7, -1, 4, 7, -1),
        (6,) * 7 + (-1,),
    ):
        with pytest.raises(ProtosegError, match="expected the classes of its hierarchy, got others"):
            LabelSpace("toy", space.classes, space.colors, parents=parents)


@pytest.mark.parametrize(
    ("name", "space", "levels"),
    [("camvid", CAMVID, 1), ("cityscapes", CITYSCAPES, 1), ("coco_stuff", COCO_STUFF, 3), ("ade20k", ADE20K_150, 1)],
)
def test_the_trees_that_are_shipped_name_every_class(name: str, space: LabelSpace, levels: int) -> None:
    given = OmegaConf.to_container(OmegaConf.load(CONF / "hierarchy" / f"{name}.yaml"))
    found = in_tree(space, given["hierarchy"])  # type: ignore[index,call-overload]
    assert found.classes[: space.num_classes] == space.classes
    alone = {"camvid": {"Sky", "Road"}, "cityscapes": {"sky"}}.get(name, set())
    assert {n for n, p in zip(found.classes, found.parents, strict=True) if p == -1} - alone == {*given["hierarchy"]}  # type: ignore[index,call-overload]
    assert len(subset_means(torch.zeros(found.num_classes), found, {})) == levels
    if name in ("coco_stuff", "ade20k"):
        things = {n for n in found.classes[: space.num_classes] if "things" in path(found, n)}
        assert things == {*space.things}
    if name == "coco_stuff":
        inside = [n for n in found.classes if found.parents[found.classes.index(n)] in groups(found, 2)]
        assert len(inside) == 27  # supercategories, of which the class person is one


def path(space: LabelSpace, name: str) -> list[str]:
    return [space.classes[i] for i in line(space.classes.index(name), space.parents)]


def groups(space: LabelSpace, depth: int) -> list[int]:
    return [i for i in range(space.leaves, space.num_classes) if len(line(i, space.parents)) == depth]
