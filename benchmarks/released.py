"""The head of ProtoSeg's released code on the inputs of ours, from a file that the caller has; none of it is here.

``FILE`` is a module with a class that has ``prototype_learning(embeddings, scores, label, cosines)`` and keeps its
prototypes in ``prototypes``: ``lib/models/nets/hrnet.py`` of github.com/tfzhou/ProtoSeg, or that class alone. Its
imports are looked for beside it and in every folder above it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.types import IGNORE_INDEX, ProtosegError

METHOD = "prototype_learning"
MOMENTUM, WEIGHT_CONTRAST, WEIGHT_DISTANCE = 0.999, 0.01, 0.001  # of H_48_D_4_proto.json


def released_head(file: Path, prototypes: Tensor) -> Any:
    """The released module without its network, with these prototypes ``c k d``; raises ProtosegError."""
    if not file.is_file():
        raise ProtosegError(f"--against: expected a Python file with a class that has {METHOD}, got no file {file}")
    sys.path[:0] = [str(folder) for folder in file.resolve().parents[:-1]]
    try:
        spec = importlib.util.spec_from_file_location("released_head", file)
        assert spec is not None, file
        assert spec.loader is not None, file
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ProtosegError(f"--against {file}: {error}; put what it imports on PYTHONPATH") from error
    finally:
        del sys.path[: len(file.resolve().parents) - 1]
    kinds: list[Any] = [kind for kind in vars(module).values() if isinstance(kind, type) and hasattr(kind, METHOD)]
    if not kinds:
        raise ProtosegError(f"--against {file}: expected a class that has {METHOD}, got none")
    c, k, _ = prototypes.shape
    head: Any = kinds[0].__new__(kinds[0])  # not __init__, which makes the whole network
    nn.Module.__init__(head)
    head.num_classes, head.num_prototype, head.gamma, head.update_prototype = c, k, MOMENTUM, True
    head.mask_norm = nn.LayerNorm(c).to(prototypes.device)
    head.prototypes = nn.Parameter(prototypes.clone(), requires_grad=False)
    return head


def released_step(head: Any, embeddings: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient of unit embeddings ``n d`` and labels ``n``, as its forward and loss put them together.

    Pixels without label are -1 here, not 255, which is a prototype's number where there are many. Prototypes move.
    """
    cosines = torch.einsum("nd,kmd->nmk", embeddings, head.prototypes)
    scores = head.mask_norm(cosines.amax(1))
    logits, target = getattr(head, METHOD)(embeddings, scores, label.float(), cosines)
    target = target.long()
    seen = target != IGNORE_INDEX
    assigned = logits[seen].gather(1, target[seen].unsqueeze(1))
    loss = (
        F.cross_entropy(scores, label, ignore_index=IGNORE_INDEX)
        + WEIGHT_CONTRAST * F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)
        + WEIGHT_DISTANCE * (1 - assigned).square().mean()
    )
    (gradient,) = torch.autograd.grad(loss, embeddings)
    return loss.detach(), gradient
