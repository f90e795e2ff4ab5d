"""From the sections of a resolved config to a model."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from protoseg.models.segmentor import Segmentor
from protoseg.types import told

_UNLOADED = {"pretrained": False, "weights": None, "encoder_weights": None}  # the last is smp's


def wrong_input(section: str, *kinds: type[Exception]) -> AbstractContextManager[None]:
    """Tell what a constructor refuses as wrong input of a section of the config."""
    return told(lambda error: f"{section}: {' '.join(str(error).split())}; see python train.py --cfg job", *kinds)


def build_model(cfg: DictConfig, num_classes: int, pretrained: bool = True, encoder: Any = None) -> Segmentor:
    """Encoder, decoder, head and auxiliary head of the config, in channels-last memory.

    ``pretrained=False`` overrules the encoder's own settings: where a checkpoint brings the weights, no other file is
    opened or downloaded. ``encoder``: in place of the config's. Random weights come from torch's global generator.
    """
    unloaded = {} if pretrained or encoder else _unloaded(cfg.encoder)
    with wrong_input("encoder, decoder or head", TypeError):
        # Checkpoints of before the group existed have no segmentor.
        make = instantiate(cfg.segmentor, _partial_=True) if cfg.get("segmentor") else Segmentor
        model = make(
            encoder=encoder or instantiate(cfg.encoder, _convert_="all", **unloaded),
            decoder=instantiate(cfg.decoder, _partial_=True),
            head=instantiate(cfg.head, _partial_=True),
            num_classes=num_classes,
            auxiliary=instantiate(cfg.auxiliary, _partial_=True) if cfg.get("auxiliary") else None,
        )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_networks(module: nn.Module) -> None:
    """Let ``torch.compile`` make the forward and backward of every network in ``module`` (student and teacher)."""
    for part in module.modules():
        if isinstance(part, Segmentor):
            # In place, so that names in checkpoints stay. Every size is compiled for itself, up to torch's limit: SAME
            # padding over symbolic sizes takes minutes.
            part.compile(dynamic=False)


def _unloaded(section: DictConfig) -> dict[str, object]:
    off: dict[str, object] = {key: value for key, value in _UNLOADED.items() if key in section}
    return off | ({"network": _unloaded(section.network)} if "network" in section else {})
