"""What a file of mappings says of a kind of published weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]

BENCHMARKS = {19: "cityscapes", 150: "ade20k", 171: "coco_stuff"}
"""The data that published networks of so many classes are of, as ``data=`` names them."""


def _as_it_is(state: State) -> State:
    return state


@dataclass(frozen=True)
class Kind:
    """A kind of files with published weights.

    Attributes:
        name: of the network and whose code it is.
        mark: a name that all files of this kind have, and no file of another.
        rules: patterns of the file's names, and what becomes of a name that one matches as a whole: our name, or None
            where the network does without it. A name that no rule matches is left over, and the file refused.
        settings: from the tensors in our names, what ``train.py`` would be told to train such a network.
        mend: what changes in the tensors besides, in the file's names.
        encoder_only: ImageNet weights, which have no decoder.
    """

    name: str
    mark: str
    rules: Sequence[tuple[str, str | None]]
    settings: Callable[[State], list[str]]
    mend: Callable[[State], State] = _as_it_is
    encoder_only: bool = False

    def renamed(self, state: State) -> tuple[State, list[str]]:
        """The tensors in our names, and the names that are left over."""
        found: State = {}
        left: list[str] = []
        for name, tensor in self.mend(dict(state)).items():
            rule = next((rule for rule in self.rules if re.fullmatch(rule[0], name)), None)
            if rule is None:
                left.append(name)
            elif rule[1] is not None:
                found[re.sub(rule[0], rule[1], name)] = tensor
        return found, left
