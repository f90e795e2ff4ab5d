"""Command line: the only place that knows both data and training. Importing it does not import torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from protoseg.cli.errors import run_with_clear_errors
from protoseg.cli.launch import run_name
from protoseg.cli.sweeps import report
from protoseg.files import CONFIG_DIR as CONFIG_DIR


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


def evaluate() -> None:
    """Entry of ``evaluate.py`` and ``protoseg-evaluate``."""
    _run("evaluate", _evaluate)


def _run(config_name: str, task: Callable[[DictConfig], float | None]) -> None:
    # Hydra would print its own frames; the full error comes to us, and we print one message.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if (name := run_name()) is not None:
        os.environ["PROTOSEG_RUN_NAME"] = name  # for the folders in conf/train.yaml
    main = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(task)
    run_with_clear_errors(main, CONFIG_DIR, config_name)


def _train(cfg: DictConfig) -> float | None:
    from protoseg.cli.jobs import run_job

    return run_job(cfg)


def _evaluate(cfg: DictConfig) -> float | None:
    from protoseg.cli.evaluation import run_evaluation

    return run_evaluation(cfg)
