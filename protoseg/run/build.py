"""From a resolved config to objects."""

from typing import Any, cast

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.utilities import rank_zero_only

from protoseg.checkpoint import NETWORKS, checkpoint_label_space
from protoseg.data import AdaptationDataModule, SegmentationDataModule, limit_pixels
from protoseg.data.channels import OPTIONS, ImageReader
from protoseg.data.statistics import channel_statistics
from protoseg.losses import FeatureDistance, Term
from protoseg.models.adapters import ORIGINAL
from protoseg.models.build import build_model, compile_networks
from protoseg.models.segmentor import Segmentor
from protoseg.models.weights import listed_keys
from protoseg.text import say, visible
from protoseg.training.base import SegmentationModule
from protoseg.types import LabelSpace, ProtosegError


def build_datamodule(cfg: DictConfig) -> SegmentationDataModule | AdaptationDataModule:
    """The DataModule; no file is looked at before its ``setup``."""
    limit_pixels(cfg.max_pixels)
    # A DataModule of one's own may know nothing of transforms, where none are chosen.
    options = {"augment": steps} if (steps := instances(cfg.get("augment"))) else {}
    return instantiate(cfg.data, _partial_=True)(**options)


def with_channels(cfg: DictConfig) -> DictConfig:
    """The config with what images of other channels than RGB need: their range, mean and std, measured unless given.

    A pair is measured on its source. Raises ProtosegError: images that cannot be read, or parts of different channels.
    """
    cfg = cfg.copy()
    sides = [cfg.data[key] for key in ("source", "target") if key in cfg.data] or [cfg.data]
    parts = [part for side in sides for part in (side.parts.values() if side.get("parts") else [side])]
    given = [{key: (part.get("dataset") or {}).get(key) for key in OPTIONS} for part in parts]
    counts = {ImageReader(**options).channels for options in given}
    if len(counts) > 1:
        raise ProtosegError(f"data.*.dataset.channels: expected one number for all parts, got {counts}")
    if counts == {None}:
        return cfg
    datamodule: Any = build_datamodule(cfg)
    ranges, mean, std = channel_statistics(datamodule.source.train_dataset())
    with open_dict(cfg):
        for part in [part for part, options in zip(parts, given, strict=True) if options["image_range"] is None]:
            part.dataset.image_range = ranges
        for key, value in {"in_chans": len(mean), "mean": mean, "std": std}.items():
            cfg.encoder[key] = value if cfg.encoder.get(key) is None else cfg.encoder[key]
    rank_zero_only(say)(f"{len(mean)} channels: brightness and contrast are augmented, not saturation and hue")
    return cfg


def build_module(cfg: DictConfig, label_space: LabelSpace) -> SegmentationModule:
    """The LightningModule of ``cfg.method``, with the resolved config attached for its checkpoints."""
    losses: dict[str, Term] = {}
    for name, term in cfg.loss.items():
        if "_target_" in (term or {}):
            losses[name] = instantiate(term)
        elif term is not None and name not in ("ppc", "ppd"):  # of an experiment that is run with the softmax twin
            raise ProtosegError(f"loss.{name}: expected a term with a _target_, got {term}; correct the name")
    if not losses:
        raise ProtosegError("loss: expected at least one term, got none; use loss=prototype or loss=parametric")
    terms = method_terms(cfg)
    # Before the method refuses, in other words, what an experiment has set for another one.
    method: Any = get_class(cfg.method["_target_"])
    method.check_terms([*losses.items(), *terms.get("terms", {}).items()])
    torch.manual_seed(cfg.seed)
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
    if cfg.compile:
        compile_networks(module)
    return module


def start_from(module: SegmentationModule, checkpoint: dict[str, Any], cfg: DictConfig) -> str:
    """Let every network of a new training (student and teacher) begin as the student of a checkpoint, where it fits.

    Tensors of the same name and shape are taken; of those with a row for each class (prototypes, classifiers), where
    the classes are others, the rows of classes of the same name. Returns what was taken and what is new, in words.
    Raises ProtosegError: nothing fits.
    """
    prefix, state = NETWORKS["student"], checkpoint["state_dict"]
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    old, new, now = checkpoint_label_space(checkpoint).classes, module.label_space.classes, module.model.state_dict()
    by_class: set[str] = set()
    if old != new:
        with torch.device("meta"):
            wider = build_model(cfg, len(new) + 1, pretrained=False).state_dict()
        by_class = {name for name in now if now[name].shape != wider[name].shape}
    same = [name for name in new if name in old]
    taken = {}
    for name in [name for name in now if name.endswith(ORIGINAL)]:  # a weight that is adapted from now on
        plain_name = name.removesuffix(ORIGINAL) + ".weight"
        if plain_name in given:
            given[name] = given.pop(plain_name)
    for name in [name for name in now if name in given]:
        value, mine = given[name], now[name]
        if name in by_class and same and value.shape == (len(old), *mine.shape[1:]):
            taken[name] = mine.clone()
            taken[name][[new.index(each) for each in same]] = value[[old.index(each) for each in same]].to(mine)
        elif name not in by_class and value.shape == mine.shape:
            taken[name] = value
    left = [visible(name) for name in given if name not in taken]
    fresh = [name for name in now if name not in taken]
    said = listed_keys({"tensors taken": [*taken], "new": fresh, "of the file not used": left})
    if not taken:
        raise ProtosegError(f"init_from={cfg.init_from}: expected tensors of the network's names and shapes: {said}")
    blank = cfg.encoder.get("pretrained") is False and not cfg.encoder.get("weights")
    for part in module.modules():
        if isinstance(part, Segmentor):
            part.load_state_dict(taken, strict=False)
        elif isinstance(part, FeatureDistance):  # of what its reference knew nothing: all, or a plain ViT's pyramid
            known = module.model.encoder.state_dict().items()
            unlearned = {name: value for name, value in known if blank or name.startswith("pyramid.")}
            part.reference.load_state_dict(unlearned, strict=False)
    if old == new:
        return said
    others = {"classes of the same name": same, "new classes": [name for name in new if name not in old]}
    return f"{said}; {listed_keys(others)}"


def method_terms(cfg: DictConfig) -> dict[str, dict[str, Term]]:
    """The groups of terms in ``cfg.method``, built, ``cfg.contrast`` among them."""
    built: dict[str, dict[str, Term]] = {}
    for group in [group for group in ("source_terms", "terms") if group in cfg.method]:
        terms = (cfg.method[group] or {}).items()
        built[group] = {name: instantiate(term) for name, term in terms if term is not None}
    if "_target_" in (cfg.get("contrast") or {}):
        if "terms" not in built:
            text = "contrast: expected a method with terms to add it to, got one without (source_only)"
            raise ProtosegError(f"{text}; use method=supervised, dacs, daformer or mic, or contrast=none")
        built["terms"]["contrast"] = instantiate(cfg.contrast)
    return built


def instances(group: DictConfig | None) -> list[Any]:
    """Instantiate every entry of a group (callbacks, loggers); an entry set to null is left out."""
    return [instantiate(node) for node in (group or {}).values() if node is not None]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values, interpolations resolved: what a checkpoint keeps."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
