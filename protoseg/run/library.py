"""For a program of one's own: a network with its losses and prototypes, and the scores of a model."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from protoseg.api import Model, Source
from protoseg.data.class_file import own_space
from protoseg.data.files import read_label
from protoseg.data.label_spaces import file_ignored
from protoseg.evaluation.evaluate import summary
from protoseg.evaluation.metrics import SegmentationMetrics
from protoseg.models.own import NetworkEncoder
from protoseg.run.build import build_module
from protoseg.run.config import check_ranges, composed, explained
from protoseg.training.base import SegmentationModule
from protoseg.types import IGNORE_INDEX, ProtosegError


def build(
    classes: Sequence[str],
    *overrides: str,
    network: NetworkEncoder | None = None,
    arguments: Mapping[str, Any] | None = None,
    **groups: str,
) -> SegmentationModule:
    """Encoder, decoder, head, losses and prototype memory by name; a LightningModule that needs no Trainer.

    ``loss(image, label)`` is the whole loss of a batch; ``after_optimizer_step()``, called after each step of the
    optimizer, moves the prototypes; ``save(path)`` writes a checkpoint that ``protoseg.load`` and every command opens.

    Args:
        classes: names; the position is the id in labels, in which -1 is ignored.
        network: one's own, in place of encoder and decoder.
        arguments: what its class makes it of, for a checkpoint that ``load(…, trust=[MODULE])`` opens.
        overrides: any value of ``conf/train.yaml``, as on the command line: ``"head.num_prototypes=5"``, ``"seed=1"``.
        groups: files of ``conf/``: ``encoder="resnet50"``, ``decoder="fpn"``, ``head="prototype"``, ``loss=…``.

    Raises ProtosegError: names or values that the command line would refuse, too.
    """
    of_a_run = ("~data", "~callbacks", "~logger", "paths.output=null")
    with explained(), torch.random.fork_rng(devices=[]):
        words = [*(f"{group}={name}" for group, name in groups.items()), *overrides]
        cfg = composed("train", [*of_a_run, *(["decoder=none"] if network is not None else []), *words])
        check_ranges(cfg)
        if network is not None:
            if any(word.lstrip("+~").startswith(("encoder", "decoder")) for word in words):
                raise ProtosegError("build: expected no encoder or decoder beside a network of one's own, got both")
            cfg.encoder = OmegaConf.create(network.config(arguments or {}))
        module = build_module(cfg, own_space(classes))
        module.model.encoder = module.model.encoder if network is None else network
        return module


def evaluate(model: Model, pairs: Iterable[tuple[Source, Any]]) -> dict[str, Any]:
    """Scores of a model over images with labels, in 0 to 1, and NaN where there is nothing to count.

    Pairs are an image, as of :meth:`Model.predict`, and class ids ``h w`` or the path of a PNG of them, in which -1 and
    255 (of 255 classes and more, 65535) are ignored. Returns means, as ``mIoU``, ``pixels``, and ``classes``, rows of
    ``name``, ``IoU``, ``accuracy``, ``true_pixels``, ``predicted_pixels``. Raises ProtosegError: what does not fit.
    """
    metrics, ids = SegmentationMetrics(model.label_space), np.arange(2**16, dtype=np.uint16)
    for image, truth in pairs:
        given = read_label(Path(truth), ids) if isinstance(truth, (str, Path)) else np.asarray(truth)
        if given.dtype.kind not in "iub":
            raise ProtosegError(f"evaluate: expected class ids h w, whole numbers, got {given.dtype} {given.shape}")
        label = torch.from_numpy(given.astype(np.int64))
        label = label.where(label != file_ignored(model.label_space.num_classes), IGNORE_INDEX)
        metrics.update(torch.from_numpy(model.predict(image).labels.astype(np.int64)), label)
    return summary(metrics.compute(), model.label_space)
