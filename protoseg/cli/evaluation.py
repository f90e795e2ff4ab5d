"""``evaluate.py``: judge a checkpoint on labelled data, or predict a folder of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from protoseg.allocator import keep_freed_memory
from protoseg.checkpoint import NETWORKS, check_same_classes
from protoseg.cli.build import compile_networks
from protoseg.data import AdaptationDataModule, SegmentationDataModule, limit_pixels
from protoseg.data.label_spaces import relabelled
from protoseg.evaluation import evaluate
from protoseg.inference import Predictor, choose_device
from protoseg.models.segmentor import Segmentor
from protoseg.prediction import predict
from protoseg.trained import TrainedFile, open_file
from protoseg.types import LabelSpace, ProtosegError

MODES = ("evaluate", "predict")


def run_evaluation(cfg: DictConfig) -> float | None:
    """Evaluate or predict as configured; returns the mIoU in mode ``evaluate``.

    Raises:
        ProtosegError: wrong input; see the message.
    """
    if cfg.mode not in MODES:
        raise ProtosegError(f"mode: expected one of {', '.join(MODES)}, got {cfg.mode!r}")
    if cfg.network not in NETWORKS:
        raise ProtosegError(f"network: expected one of {', '.join(NETWORKS)}, got {cfg.network!r}")
    if cfg.report and cfg.mode == "predict":
        raise ProtosegError("report: expected mode=evaluate, got mode=predict; the page needs images with labels")
    keep_freed_memory()
    trained = open_checkpoint(cfg)
    model, label_space, predictor = trained.model, trained.label_space, trained.predictor
    if cfg.compile:
        compile_networks(model)
    device = choose_device(cfg.device)
    output = Path(cfg.paths.output)
    if cfg.mode == "predict":
        if cfg.images is None:
            raise ProtosegError("mode=predict: expected images, got none; give images=FOLDER, an image or a video")
        save = [kind for kind in cfg.save if kind != "panels"]  # those need a truth
        predict(
            *(model, cfg.images, predictor, label_space, output, device, save, cfg.overwrite, cfg.follow),
            image_range=trained.file.image_range,
        )
        return None
    datamodule = open_data(cfg, trained)
    loader = datamodule.eval_dataloader(cfg.split or datamodule.val_split)
    subsets = (trained.file.content["protoseg"]["config"].get("method") or {}).get("subsets")
    report = None
    if cfg.report:
        from protoseg.cli.report_page import Report

        report = Report(cfg, trained)
    result = evaluate(
        model,
        loader,
        predictor,
        label_space,
        output,
        device,
        tuple(cfg.save),
        cfg.max_overlays,
        subsets=subsets,
        observe=report.observe if report else None,
    )
    if report:
        report.write(output, result)
    return float(result["mIoU"])


class Trained(NamedTuple):
    """What a checkpoint holds, built.

    Attributes:
        file: see :func:`protoseg.trained.open_file`.
        label_space: its classes.
        model: with its weights and prototypes, in eval mode, on the CPU.
        predictor: as configured, else as trained.
    """

    file: TrainedFile
    label_space: LabelSpace
    model: Segmentor
    predictor: Predictor


def open_checkpoint(cfg: DictConfig) -> Trained:
    """The checkpoint at ``cfg.ckpt_path`` with ``cfg.network``, both as of ``evaluate.yaml``.

    Raises:
        ProtosegError: a file that is missing, bad, or asks for what is not allowed.
    """
    limit_pixels(cfg.max_pixels)
    file = open_file(cfg.ckpt_path, cfg.trust)
    predictor = instantiate(cfg.inference) if cfg.get("inference") is not None else file.predictor()
    return Trained(file, file.label_space, file.model(cfg.network), predictor)


def open_data(cfg: DictConfig, trained: Trained) -> SegmentationDataModule | AdaptationDataModule:
    """The DataModule that ``cfg`` names, else that of the checkpoint.

    Raises:
        ProtosegError: it has other classes than the checkpoint.
    """
    changes = {"num_workers": cfg.num_workers}
    if cfg.batch_size is not None:
        changes["val_batch_size"] = cfg.batch_size
    datamodule: SegmentationDataModule | AdaptationDataModule
    if cfg.get("data") is not None:
        with open_dict(cfg.data):
            if cfg.root is not None:
                cfg.data.get("target", cfg.data).root = cfg.root
            own: Any = cfg.data.get("target", cfg.data).get("dataset") or {}
            if own.get("image_range", 0) is None:  # it has this setting, and none is given
                own.image_range = trained.file.image_range
        datamodule = instantiate(cfg.data, **changes)
    else:
        datamodule = trained.file.datamodule(cfg.root, **changes)
    match_classes(datamodule, trained.label_space, trained.file.content["protoseg"].get("relabel", {}))
    check_same_classes(cfg.ckpt_path, trained.label_space, datamodule.label_space)
    return datamodule


def match_classes(
    datamodule: SegmentationDataModule | AdaptationDataModule,
    label_space: LabelSpace,
    relabel: Mapping[str, str | None],
) -> None:
    """Let the data's labels be read as the classes of a model that has the same ones in another order, or more.

    Args:
        datamodule: of one data set, or of adaptation, whose target is meant.
        label_space: the model's.
        relabel: of a checkpoint whose classes were changed after training, see :class:`protoseg.classes.ClassEdit`.
    """
    data = datamodule.target if isinstance(datamodule, AdaptationDataModule) else datamodule
    changes = {old: new for old, new in relabel.items() if old in data.label_space.classes}
    if changes:
        data.map_classes(*relabelled(data.label_space, changes))
    classes = data.label_space.classes
    if classes != label_space.classes and set(classes) <= set(label_space.classes):
        data.map_classes(label_space, {name: name for name in classes})
