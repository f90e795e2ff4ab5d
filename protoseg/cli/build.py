"""From a resolved config to objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from protoseg.data import SegmentationDataModule
from protoseg.losses import CrossEntropy, LossTerm
from protoseg.models.segmentor import Segmentor
from protoseg.training.base import SegmentationModule
from protoseg.types import LabelSpace, ProtosegError

PROTOTYPE_TERMS = ("ppc", "ppd")


@contextmanager
def wrong_input(section: str, *kinds: type[Exception]) -> Iterator[None]:
    """Tell what a constructor refuses as wrong input of a section of the config."""
    try:
        yield
    except ProtosegError:
        raise
    except kinds as error:
        raise ProtosegError(f"{section}: {error}; see python train.py --cfg job") from error


def build_datamodule(cfg: DictConfig) -> SegmentationDataModule:
    """The DataModule; no file is looked at before its ``setup``."""
    return instantiate(cfg.data)


def build_model(cfg: DictConfig, num_classes: int, pretrained: bool = True) -> Segmentor:
    """Encoder, decoder, head and auxiliary head of the config, in channels-last memory.

    ``pretrained=False`` overrules the encoder's own setting: where a checkpoint brings the weights, no other file is
    opened or downloaded.
    """
    torch.manual_seed(cfg.get("seed", 0))
    unloaded = {} if pretrained else {"pretrained": False, "weights": None}
    with wrong_input("encoder, decoder or head", TypeError):
        # Checkpoints of before the group existed have no segmentor.
        make = instantiate(cfg.segmentor, _partial_=True) if cfg.get("segmentor") else Segmentor
        model = make(
            encoder=instantiate(cfg.encoder, **unloaded),
            decoder=instantiate(cfg.decoder, _partial_=True),
            head=instantiate(cfg.head, _partial_=True),
            num_classes=num_classes,
            auxiliary=instantiate(cfg.auxiliary, _partial_=True) if cfg.get("auxiliary") else None,
        )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_module(cfg: DictConfig, label_space: LabelSpace) -> SegmentationModule:
    """The LightningModule of ``cfg.method``, with the resolved config attached for its checkpoints."""
    losses: dict[str, LossTerm] = {}
    for name, term in cfg.loss.items():
        if term is None:
            continue
        if "_target_" not in term:
            if name in PROTOTYPE_TERMS:
                continue  # an experiment's weights, run with the softmax twin
            raise ProtosegError(f"loss.{name}: expected a term with a _target_, got {term}; correct the name")
        # Only terms on class logits know the number of classes; it comes from the data, never from the config.
        needs_classes = issubclass(get_class(term["_target_"]), CrossEntropy)
        losses[name] = instantiate(term, **({"num_classes": label_space.num_classes} if needs_classes else {}))
    if not losses:
        raise ProtosegError("loss: expected at least one term, got none; use loss=prototype or loss=parametric")
    terms = adaptation_terms(cfg)
    # Partial, because Hydra would turn our values into configs when merging them as arguments.
    module = instantiate(cfg.method, _partial_=True, **dict.fromkeys(terms))(
        model=build_model(cfg, label_space.num_classes, pretrained=cfg.resume is None),
        label_space=label_space,
        losses=losses,
        optimizer=instantiate(cfg.optimizer, _partial_=True),
        schedule=instantiate(cfg.schedule, _partial_=True),
        predictor=instantiate(cfg.inference),
        seed=cfg.seed,
        **terms,
    )
    module.config = plain(cfg)
    return module


def adaptation_terms(cfg: DictConfig) -> dict[str, dict[str, LossTerm]]:
    """The groups of terms in ``cfg.method``, built, ``cfg.contrast`` among them; empty for supervised training.

    Raises:
        ProtosegError: a contrast beside a method without adaptation terms to add it to.
    """
    built: dict[str, dict[str, LossTerm]] = {
        group: {name: instantiate(term) for name, term in (cfg.method[group] or {}).items() if term is not None}
        for group in ("source_terms", "terms")
        if group in cfg.method
    }
    if "_target_" in (cfg.get("contrast") or {}):
        if not built.get("terms"):
            raise ProtosegError(
                f"contrast: expected a method of adaptation to add it to, got {cfg.method['_target_']}; use "
                "method=dacs, daformer or mic, or contrast=none"
            )
        built["terms"]["contrast"] = instantiate(cfg.contrast)
    return built


def instances(group: DictConfig | None) -> list[Any]:
    """Instantiate every entry of a group (callbacks, loggers); an entry set to null is left out."""
    return [instantiate(node) for node in (group or {}).values() if node is not None]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values, interpolations resolved: what a checkpoint keeps."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]
