"""A network with its losses and prototypes, for a training loop of one's own."""

from collections.abc import Sequence

from protoseg.data.class_file import with_made_colors
from protoseg.run.build import build_module
from protoseg.run.config import composed
from protoseg.run.errors import explained
from protoseg.training.base import SegmentationModule
from protoseg.types import LabelSpace


def build(classes: Sequence[str], *overrides: str, **groups: str) -> SegmentationModule:
    """Encoder, decoder, head, losses and prototype memory by name; a LightningModule that needs no Trainer.

    ``loss(image, label)`` is the whole loss of a batch; ``after_optimizer_step()``, called after each step of the
    optimizer, moves the prototypes; ``save(path)`` writes a checkpoint that ``protoseg.load`` and every command opens.

    Args:
        classes: names; the position is the id in labels, in which -1 is ignored.
        overrides: any value of ``conf/train.yaml``, as on the command line: ``"head.num_prototypes=5"``.
        groups: files of ``conf/``: ``encoder="resnet50"``, ``decoder="fpn"``, ``head="prototype"``, ``loss=…``.

    Raises ProtosegError: names or values that the command line would refuse, too.
    """
    of_a_run = ("~data", "~callbacks", "~logger", "paths.output=null")
    with explained():
        cfg = composed("train", [*of_a_run, *(f"{group}={name}" for group, name in groups.items()), *overrides])
        return build_module(cfg, LabelSpace("own", tuple(classes), with_made_colors([None] * len(classes), ())))
