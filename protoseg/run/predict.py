"""``protoseg predict``: label maps of images without labels. What opens a checkpoint needs no training's packages."""

from pathlib import Path
from typing import NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig

from protoseg.data.decoding import limit_pixels
from protoseg.evaluation.predict import predict
from protoseg.evaluation.predictor import Predictor, choose_device
from protoseg.models.build import compile_networks
from protoseg.models.segmentor import Segmentor
from protoseg.trained import TrainedFile, open_file
from protoseg.types import LabelSpace, ProtosegError


def run_prediction(cfg: DictConfig) -> None:
    """Predict as configured; raises ProtosegError at wrong input."""
    if cfg.report:
        raise ProtosegError("report: expected mode=evaluate, got mode=predict; the page needs images with labels")
    if cfg.images is None:
        raise ProtosegError("mode=predict: expected images, got none; give images=FOLDER, an image or a video")
    trained = open_checkpoint(cfg)
    save = tuple(kind for kind in cfg.save if kind != "panels")  # those need a truth
    to = (trained.predictor, trained.label_space, cfg.paths.output, choose_device(cfg.device), save, cfg.overwrite)
    predict(trained.model, cfg.images, *to, cfg.follow, trained.file.reader)


class Trained(NamedTuple):
    """What a checkpoint holds, built."""

    file: TrainedFile
    label_space: LabelSpace
    model: Segmentor  # with its weights and prototypes, in eval mode, on the device
    predictor: Predictor  # as configured, else as trained


def open_checkpoint(cfg: DictConfig, ckpt_path: Path | None = None, network: str | None = None) -> Trained:
    """What ``evaluate.yaml`` names, unless another checkpoint or network is given; ProtosegError if bad."""
    limit_pixels(cfg.max_pixels)
    file = open_file(ckpt_path or cfg.ckpt_path, cfg.trust)
    predictor = instantiate(cfg.inference) if cfg.get("inference") is not None else file.predictor()
    model = file.model(network or cfg.network).to(choose_device(cfg.device))
    if cfg.compile:
        compile_networks(model)
    return Trained(file, file.label_space, model, predictor)
