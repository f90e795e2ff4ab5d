"""A small step of adaptation for the tests of pixel contrast, and the presets sized for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from protoseg.losses.contrast import PixelContrast
from protoseg.losses.term import Mixed, Seen, Step, Target
from protoseg.nn import ParametricHead, PrototypeHead
from protoseg.types import IGNORE_INDEX, LabelSpace, SegOutput

CONF = Path(__file__).parents[2] / "conf"
PRESETS = ("pgpc", "pixel_to_pixel", "u2pl", "sepico_proto", "pixel_contrast", "cycle_association")
STRIDE, SIDE, CHANNELS = 2, 12, 6
MANY = 80  # more than there are pixels of a class: the sample is everything


class Model(nn.Module):
    """A head on features that stand in for an encoder and a decoder."""

    def __init__(self, classes: int, head: str = "parametric") -> None:
        super().__init__()
        make = PrototypeHead(CHANNELS, classes, 2) if head == "prototype" else ParametricHead(CHANNELS, classes)
        self.head: Any = make.eval()

    def forward(self, features: Tensor) -> SegOutput:
        return self.head(features)._replace(features=[features, F.avg_pool2d(features, 2)])


def space(classes: int) -> LabelSpace:
    return LabelSpace("toy", tuple(map(str, range(classes))), ((0, 0, 0),) * classes)


class Case:
    """A step on random features: source, mixed and teacher, all by one model in fp64."""

    def __init__(self, classes: int = 4, head: str = "parametric", seed: int = 0) -> None:
        torch.manual_seed(seed)
        side = SIDE // STRIDE
        self.model = Model(classes, head).double()
        self.features = {k: torch.randn(2, CHANNELS, side, side).double() for k in ("source", "mixed", "teacher")}
        # Labels in blocks of a cell and a half: some cells have no majority.
        self.label = torch.randint(0, classes, (2, 4, 4)).repeat_interleave(3, 1).repeat_interleave(3, 2)
        self.label[0, :, :2] = IGNORE_INDEX
        self.pasted = torch.rand(2, SIDE, SIDE) > 0.6
        self.weight = torch.rand(2, SIDE, SIDE, dtype=torch.float64) + 0.1
        self.pseudo_label = torch.randint(0, classes, (2, 6, 6)).repeat_interleave(2, 1).repeat_interleave(2, 2)
        self.pseudo_label[:, -3:] = IGNORE_INDEX  # rows that are left out
        self.confidence = torch.rand(2, SIDE, SIDE, dtype=torch.float64)

    def batch(self, images: slice = slice(None)) -> Step:
        """Its gradients go to ``source`` and ``mixed`` of ``self.features``."""
        outputs = {}
        for name, features in self.features.items():
            features.requires_grad_(name != "teacher").grad = None
            with torch.set_grad_enabled(name != "teacher"):
                outputs[name] = self.model(features[images])
        mixed_label = self.pseudo_label.where(~self.pasted, self.label)
        return Step(
            model=self.model,
            labelled=Seen(outputs["source"], self.label[images], STRIDE),
            mixed=Mixed(
                outputs["mixed"], mixed_label[images], STRIDE, pasted=self.pasted[images], weight=self.weight[images]
            ),
            target=Target(
                image=torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)[images],
                label=self.pseudo_label[images],
                confidence=self.confidence[images],
                quality=torch.tensor(0.5),
                teacher=outputs["teacher"],
            ),
        )


def make(preset: str, case: Case, **changes: Any) -> PixelContrast:
    """A preset as its YAML says, with room for every pixel of the toy batch."""
    with initialize_config_dir(str(CONF / "contrast"), version_base="1.3"):
        cfg = compose(preset)
    options: dict[str, Any] = {
        "dim": 5,
        "queue_length": 4 * MANY,
        "per_step": MANY,
        "anchors": MANY,
        "pixels": MANY,
        "size": [5, 7],
    }
    options.update(
        temperature=0.5, reliable=0.6, confident=0.2, entropy_share=0.4, negatives=20, low_rank=2, keys=20, alpha=0.9
    )
    options = {key: value for key, value in {**options, **changes}.items() if key in cfg}
    torch.manual_seed(1)
    term = instantiate(cfg, **options)
    term.prepare(case.model, space(case.model.head.num_classes))
    return term.double()


def warm(term: PixelContrast, case: Case) -> PixelContrast:
    """Two steps, so that prototypes, means and queues hold something and the averaged projection differs."""
    for _ in range(2):
        term(case.batch())
        if term.memory is not None:
            for observation in term.observations:
                term.memory.observe_accumulated([observation])
            term.memory.step()
        with torch.no_grad():
            for parameter in term.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        term.after_optimizer_step()
    return term


def record(owner: Any, name: str) -> list[Any]:
    """What a method returns from now on."""
    original, returned = getattr(owner, name), []

    def wrapper(*args: Any) -> Any:
        returned.append(original(*args))
        return returned[-1]

    setattr(owner, name, wrapper)
    return returned


def cells(case: Case) -> list[tuple[int, int, int, int, int]]:
    """Image, row and column of every cell of the grid, with the row and column of its centre pixel."""
    side = SIDE // STRIDE
    return [(b, y, x, 2 * y + 1, 2 * x + 1) for b in range(2) for y in range(side) for x in range(side)]


def target_cells(case: Case) -> list[tuple[int, int, int, int, int]]:
    hidden = case.pasted | (case.pseudo_label == IGNORE_INDEX)
    return [(b, y, x, v, u) for b, y, x, v, u in cells(case) if not hidden[b, v, u]]


def vector(projection: nn.Module, output: SegOutput, b: int, y: int, x: int) -> Tensor:
    return F.normalize(projection(output.embeddings[b, :, y, x]), dim=0)
