"""``protoseg evaluate`` and ``protoseg predict``: judge a checkpoint on labelled data, or write label maps of images.

What opens a checkpoint and predicts needs none of a training's packages, which take seconds and memory.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.utils.data import Subset

from protoseg.checkpoint import check_same_classes
from protoseg.data.channels import OPTIONS
from protoseg.data.decoding import limit_pixels
from protoseg.data.label_spaces import relabelled
from protoseg.data.statistics import spread
from protoseg.distributed import rank
from protoseg.evaluation.predict import predict
from protoseg.evaluation.predictor import Predictor, choose_device
from protoseg.files import write_text
from protoseg.models.build import compile_networks
from protoseg.models.segmentor import Segmentor
from protoseg.trained import TrainedFile, digest, open_file
from protoseg.types import LabelSpace, ProtosegError, check_choice

if TYPE_CHECKING:
    from protoseg.data import AdaptationDataModule, SegmentationDataModule

RESULTS = ("labels", "overlays", "panels", "probabilities", "report.html")  # what is added to, file by file


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
    given = cfg.get("inference")
    if given is not None and "_target_" not in given:
        text = f"inference: expected a choice before its settings, got {given} alone"
        raise ProtosegError(f"{text}; add inference=auto, whole, slide or multiscale")
    predictor = instantiate(given) if given is not None else file.predictor()
    model = file.model(network or cfg.network).to(choose_device(cfg.device))
    if cfg.get("fall_back") is not None and not file.label_space.parents:
        raise ProtosegError("fall_back: expected a checkpoint trained with a hierarchy, got one without")
    model.arrange(file.label_space.parents, cfg.get("fall_back"))
    if cfg.compile:
        compile_networks(model)
    return Trained(file, file.label_space, model, predictor)


def claim_folder(cfg: DictConfig, trained: Trained) -> None:
    """See that no results of another command stand beside those of this one; with ``overwrite`` these are removed.

    Raises ProtosegError: there are some, in a folder whose ``made_by.json`` says that it is another's.
    """
    place, output, settings = Path(cfg.images or "").resolve(), Path(cfg.paths.output), OmegaConf.to_container(cfg)
    now = {key: cast(Any, settings).get(key) for key in ("mode", "fall_back", "data", "root", "split")}
    now["images"] = str(place.parent if place.is_file() else place) if cfg.images else None
    now |= {"network": digest(trained.model.state_dict()), "classes": trained.label_space.classes}
    record, text = output / "made_by.json", json.dumps(now | {"inference": str(vars(trained.predictor))}, indent=2)
    there = [name for name in RESULTS if (output / name).exists()]
    if there and record.is_file() and record.read_text() != text:
        if not cfg.overwrite:
            got = f"{output}: expected no results of another command, got {', '.join(there)} of that in made_by.json"
            raise ProtosegError(f"{got}: choose another hydra.run.dir=FOLDER, or remove these with overwrite=true")
        for name in there if rank() == 0 else ():
            shutil.rmtree(output / name) if (output / name).is_dir() else (output / name).unlink()
    if rank() == 0:
        write_text(record, text)


def run_prediction(cfg: DictConfig) -> None:
    """Predict as configured; raises ProtosegError at wrong input."""
    if cfg.report:
        raise ProtosegError("report: expected mode=evaluate, got mode=predict; the page needs images with labels")
    if cfg.images is None:
        raise ProtosegError("mode=predict: expected images, got none; give images=FOLDER, an image or a video")
    trained = open_checkpoint(cfg)
    claim_folder(cfg, trained)
    save = tuple(kind for kind in cfg.save if kind != "panels")  # those need a truth
    to = (trained.predictor, trained.label_space, cfg.paths.output, choose_device(cfg.device), save, cfg.overwrite)
    predict(trained.model, cfg.images, *to, cfg.follow, trained.file.reader)


def run_evaluation(cfg: DictConfig) -> float | None:
    """Evaluate or predict as configured; returns the mIoU in mode ``evaluate``; ProtosegError at wrong input."""
    check_choice("mode", cfg.mode, ("evaluate", "predict"))
    if cfg.mode == "predict":
        run_prediction(cfg)
        return None
    from protoseg.evaluation.evaluate import evaluate

    trained = open_checkpoint(cfg)
    datamodule, output = open_data(cfg, trained), Path(cfg.paths.output)
    loader = datamodule.target.eval_dataloader(cfg.split or datamodule.target.val_split)
    claim_folder(cfg, trained)
    subsets = (trained.file.content["protoseg"]["config"].get("method") or {}).get("subsets")
    worst, unlabelled = None, datamodule.target.unlabelled
    if cfg.report:
        from protoseg.page.page import WorstImages
        from protoseg.run.analyse import write_report

        worst = WorstImages(trained.label_space, unlabelled=unlabelled)
    observe = worst.update if worst else None
    facts = {"checkpoint": str(Path(cfg.ckpt_path).absolute()), "network": cfg.network}
    if trained.label_space.parents:
        facts["fall_back"] = cfg.get("fall_back")
    to = (trained.predictor, trained.label_space, output, choose_device(cfg.device), tuple(cfg.save), cfg.max_overlays)
    result = evaluate(trained.model, loader, *to, subsets, observe, unlabelled, facts)
    if worst:
        write_report(cfg, trained, worst.found, output, result)
    return float(result["mIoU"])


def open_data(cfg: DictConfig, trained: Trained) -> "SegmentationDataModule | AdaptationDataModule":
    """The DataModule that ``cfg`` names, else that of the checkpoint; ProtosegError if its classes are others."""
    changes = {"num_workers": cfg.num_workers}
    if cfg.batch_size is not None:
        changes["val_batch_size"] = cfg.batch_size
    if cfg.get("data") is not None:
        with open_dict(cfg.data):
            sides = [cfg.data[side] for side in ("source", "target") if side in cfg.data] or [cfg.data]
            if cfg.root is not None:
                sides[-1].root = cfg.root
            for part in [part for side in sides for part in (side.get("parts") or {"": side}).values()]:
                own: Any = (part or {}).get("dataset") or {}
                missing = [key for key in OPTIONS if own.get(key, 0) is None]  # it has this setting, and none is given
                own.update(trained.file.image_options(*missing))
        datamodule = instantiate(cfg.data, **changes)
    else:
        datamodule = trained.file.datamodule(cfg.root, **changes)
    for side in {datamodule.source, datamodule.target}:
        match_classes(side, trained.label_space, trained.file.content["protoseg"].get("relabel", {}))
    check_same_classes(cfg.ckpt_path, trained.label_space, datamodule.label_space)
    return datamodule


def image_loader(
    cfg: DictConfig, trained: Trained, limit: int | None = None, training: bool = False
) -> AbstractContextManager[Any]:
    """A ``Loader`` of at most ``limit`` images with labels, unchanged, spread evenly: of ``cfg.split``, or validation.

    Of data for adaptation, the target's; with ``training`` the training split, of adaptation the source's.
    """
    data = open_data(cfg, trained)
    part = data.source if training else data.target
    dataset: Any = part.dataset(cfg.split or (part.train_split if training else part.val_split))
    if limit is not None and limit < len(dataset):
        dataset = Subset(dataset, spread(len(dataset), limit))
    from protoseg.data.loading import Loader

    return closing(Loader(dataset, cfg.num_workers, seed=0, batch_size=1))


def match_classes(data: "SegmentationDataModule", label_space: LabelSpace, relabel: Mapping[str, str | None]) -> None:
    """Let labels be read as the classes of a model; ``relabel`` as of :class:`protoseg.teach.ClassEdit`."""
    changes = {old: new for old, new in relabel.items() if old in data.label_space.classes}
    if changes:
        data.map_classes(*relabelled(data.label_space, changes))
    classes = data.label_space.classes
    if classes != label_space.classes and set(classes) <= set(label_space.classes):
        data.map_classes(label_space, {name: name for name in classes})
