"""``evaluate.py``: judge a checkpoint on labelled data, or predict a folder of images."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from protoseg.allocator import keep_freed_memory
from protoseg.checkpoint import check_same_classes, checkpoint_config, checkpoint_label_space, read_checkpoint
from protoseg.cli.build import build_model
from protoseg.evaluation import evaluate, predict_folder
from protoseg.models.segmentor import Segmentor
from protoseg.types import LabelSpace, ProtosegError

MODES = ("evaluate", "predict")
NETWORKS = {"student": "model.", "teacher": "teacher.module."}
BUILT = ("encoder", "decoder", "segmentor", "head", "auxiliary")
"""Sections of the trained config that make the model."""


def run_evaluation(cfg: DictConfig) -> float | None:
    """Evaluate or predict as configured; returns the mIoU in mode ``evaluate``.

    Raises:
        ProtosegError: wrong input; see the message.
    """
    if cfg.mode not in MODES:
        raise ProtosegError(f"mode: expected one of {', '.join(MODES)}, got {cfg.mode!r}")
    if cfg.network not in NETWORKS:
        raise ProtosegError(f"network: expected one of {', '.join(NETWORKS)}, got {cfg.network!r}")
    keep_freed_memory()
    checkpoint = read_checkpoint(cfg.ckpt_path)
    own_data = cfg.get("data") is not None
    sections = [*BUILT, *([] if own_data else ["data"]), *([] if cfg.get("inference") else ["inference"])]
    trained = OmegaConf.create(checkpoint_config(cfg.ckpt_path, checkpoint, sections))
    label_space = checkpoint_label_space(checkpoint)
    model = load_model(trained, checkpoint, label_space, cfg.network)
    device = choose_device(cfg.device)
    predictor = instantiate(cfg.get("inference") or trained.inference)
    output = Path(cfg.paths.output)
    if cfg.mode == "predict":
        if cfg.images is None:
            raise ProtosegError("mode=predict: expected a folder of images, got none; give images=FOLDER")
        save = [kind for kind in cfg.save if kind != "panels"]  # those need a truth
        predict_folder(model, cfg.images, predictor, label_space, output, device, save)
        return None
    data = cfg.data if own_data else trained.data
    with open_dict(data):
        data.num_workers = cfg.num_workers
        if cfg.batch_size is not None:
            data.val_batch_size = cfg.batch_size
        if cfg.root is not None:
            data.get("target", data).root = cfg.root
    datamodule = instantiate(data)
    check_same_classes(cfg.ckpt_path, label_space, datamodule.label_space)
    loader = datamodule.eval_dataloader(cfg.split or datamodule.val_split)
    subsets = (checkpoint["protoseg"]["config"].get("method") or {}).get("subsets")
    result = evaluate(
        model, loader, predictor, label_space, output, device, tuple(cfg.save), cfg.max_overlays, subsets=subsets
    )
    return float(result["mIoU"])


def choose_device(name: str | None) -> torch.device:
    """The named device, or the best there is.

    Raises:
        ProtosegError: no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ProtosegError(
            f"device: cannot use {name!r} here ({str(error).splitlines()[0]}); try device=cpu"
        ) from error
    return device


def load_model(trained: DictConfig, checkpoint: dict, label_space: LabelSpace, network: str = "student") -> Segmentor:
    """The model of a checkpoint, with its weights and prototypes, in eval mode.

    Args:
        trained: the config inside the checkpoint.
        checkpoint: see :func:`protoseg.checkpoint.read_checkpoint`.
        label_space: its classes.
        network: ``student`` (what supervised training makes, too) or ``teacher``.

    Raises:
        ProtosegError: no teacher in it, or weights that do not fit the config inside the checkpoint.
    """
    model = build_model(trained, label_space.num_classes, pretrained=False)
    prefix = NETWORKS[network]
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    if not weights:
        raise ProtosegError(f"network: expected a checkpoint with a {network}, got one without; use network=student")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ProtosegError(f"checkpoint: the weights do not fit its config: {' '.join(str(error).split())}") from error
    return model.eval()
