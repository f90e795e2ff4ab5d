"""Command line: the only place that knows both data and training. Importing it does not import torch."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig

from protoseg.files import existing_checkpoint
from protoseg.run import config
from protoseg.run.launch import run_name
from protoseg.run.multirun import report, run_job


def train() -> None:
    """Entry of ``train.py`` and ``protoseg-train``; ends with exit code 1 where a job of a sweep failed."""
    ended = False
    try:
        _run("train", _train)
        ended = True
    finally:
        failed = report(ended)
    if failed:
        sys.exit(1)


def evaluate(places: Sequence[str] = ("ckpt_path",)) -> None:
    """Entry of ``evaluate.py`` and ``protoseg-evaluate``; ``places``: keys of words without ``KEY=``."""
    sys.argv[1:] = config.named(sys.argv[1:], places)
    given = next((word.partition("=")[2] for word in sys.argv if word.startswith("ckpt_path=")), "")
    checkpoints = Path(given.strip("'\"")).parent
    os.environ.pop("PROTOSEG_RUN", None)  # of another command in this process
    if checkpoints.name == "checkpoints" and os.access(checkpoints.parent, os.W_OK):
        os.environ["PROTOSEG_RUN"] = str(checkpoints.parent)  # for the folder in conf/evaluate.yaml
    _run("evaluate", _evaluate)


def _run(config_name: str, task: Callable[[DictConfig], float | None]) -> None:
    # Hydra would print its own frames; the full error comes to us, and we print one message.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if (name := run_name()) is not None:
        os.environ["PROTOSEG_RUN_NAME"] = name  # for the folders in conf/train.yaml
    program = Path(sys.argv[0]).name
    os.environ["PROTOSEG_COMMAND"] = f"python {program}" if program.endswith(".py") else program  # for --help
    failed: list[Exception] = []

    def job(cfg: DictConfig) -> float | None:
        try:
            hydra_config = HydraConfig.get()
            choices, values = config.split_choices(hydra_config.overrides.task)
            if values:
                load = GlobalHydra.instance().config_loader().load_configuration
                config.check_names(values, load(hydra_config.job.config_name, choices, RunMode.RUN))
            config.check_hidden(hydra_config.runtime)
            config.check_ranges(cfg)
            with config.explained(config_name):  # while Hydra's folder is known
                return task(cfg)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # the sweeper wants to know
            failed.append(error)  # past Hydra, which would print a line of its own before our message
            return None

    def main() -> None:
        if {"--help", "-h"} & {*sys.argv}:
            ConfigLoaderImpl.get_group_options = _group_options  # type: ignore[assignment]
        hydra.main(version_base="1.3", config_path=str(config.CONFIG_DIR), config_name=config_name)(job)()
        if failed:
            raise failed[0]

    config.run_with_clear_errors(main, config_name)


def _group_options(loader: ConfigLoaderImpl, group_name: str, results_filter: Any = ObjectType.CONFIG) -> list[str]:
    """As Hydra's, which copies all of its configs for each of the 170 lists of a help text: two thirds of its time."""
    return loader.repository.get_group_options(group_name, results_filter)


def _train(cfg: DictConfig) -> float | None:
    for path in (cfg.resume, cfg.init_from):
        if path not in (None, "auto"):
            existing_checkpoint(path)  # before torch, which takes seconds
    return run_job(cfg)


def _evaluate(cfg: DictConfig) -> float | None:
    existing_checkpoint(cfg.ckpt_path)
    from protoseg.run.evaluate import run_evaluation

    return run_evaluation(cfg)
