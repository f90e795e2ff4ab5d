"""Start a job's processes: this one where one device is enough, else workers of its own on this machine."""

import hashlib
import os
import signal
import subprocess
import sys
import warnings
from datetime import date

from omegaconf import DictConfig

from protoseg.types import ProtosegError


def launch(cfg: DictConfig) -> float:
    """Train on the devices configured, alone or as one process of torchrun or SLURM; returns the best validation mIoU.

    SLURM queues the job again if SIGUSR1 stopped it. Raises ProtosegError: wrong input, a worker that died; Stopped.
    """
    from protoseg.callbacks.checkpoint import Stopped
    from protoseg.run.train import quiet_known_warnings, run_training
    from protoseg.run.workers import run_workers

    quiet_known_warnings()
    try:
        devices, nodes = requested_devices(cfg)
        started = started_processes()
        if started is not None:
            check_started(*started, devices, nodes)
        elif nodes > 1:
            text = f"trainer.num_nodes={nodes}: expected torchrun or srun to start the processes, got this one alone"
            remedy = f"run torchrun --nnodes={nodes} --nproc-per-node={devices} train.py … on every node"
            raise ProtosegError(f"{text}; {remedy}")
        elif devices > 1 and not hasattr(signal, "SIGUSR1"):
            raise ProtosegError(f"trainer.devices: expected 1 on Windows, got {devices}; train in WSL or on Linux")
        elif devices > 1:
            return run_workers(cfg, devices)
        return run_training(cfg)
    except Stopped as stopped:
        if stopped.signum.name == "SIGUSR1":
            requeue()
        raise


def first_process() -> bool:
    """Whether this is the first of the processes that torchrun or srun started, or the only one."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0


def run_name() -> str | None:
    """A name for the run's folder that all processes of torchrun find, or of SLURM, queued again, too; else None."""
    env = os.environ
    command = hashlib.sha256(os.fsencode("\0".join(sys.argv[1:]))).hexdigest()[:6]
    if "SLURM_JOB_ID" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return f"slurm_{env['SLURM_JOB_ID']}_{command}"
    if env.get("GROUP_WORLD_SIZE", "1") != "1":
        return f"torchrun_{env['TORCHELASTIC_RUN_ID']}_{command}"
    if "TORCHELASTIC_RUN_ID" in env:
        return f"{date.today()}_torchrun_{os.getppid()}"
    return None


def requested_devices(cfg: DictConfig) -> tuple[int, int]:
    """Devices per node and nodes that ``cfg.trainer`` asks for, as Lightning understands it."""
    from hydra.utils import instantiate
    from lightning_fabric.plugins.environments import LightningEnvironment
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from protoseg.distributed import usable_cores
    from protoseg.models.build import wrong_input

    silent = {"logger": False, "callbacks": None, "enable_checkpointing": False, "enable_progress_bar": False}
    refused = wrong_input("trainer", ValueError, TypeError, OverflowError, MisconfigurationException)
    with refused, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer of the training says them again
        trainer = instantiate(cfg.trainer, _partial_=True)(**silent, plugins=[LightningEnvironment()])
    cores = usable_cores()
    if cfg.trainer.accelerator == "auto" and trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores:
        text = f"trainer.devices: expected at most {cores} (no GPU, and {cores} CPU cores), got {trainer.num_devices}"
        raise ProtosegError(f"{text}; set trainer.accelerator=cpu to start so many processes all the same")
    return trainer.num_devices, trainer.num_nodes


def started_processes() -> tuple[str, int] | None:
    """Who has started a process per device already, and how many of them; None: nobody."""
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return "torchrun", int(os.environ["WORLD_SIZE"])
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        return "SLURM", int(os.environ["SLURM_NTASKS"])
    return None


def check_started(starter: str, processes: int, devices: int, nodes: int) -> None:
    """Raise ProtosegError unless there is one process per device."""
    if devices * nodes != processes:
        text = f"trainer: expected devices × num_nodes = {processes}, as many as {starter} has started processes"
        raise ProtosegError(f"{text}, got {devices} × {nodes}; set trainer.devices (per node) and trainer.num_nodes")
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1" and os.environ["TORCHELASTIC_RUN_ID"] == "none":
        raise ProtosegError("torchrun: expected a name for the run folder on each node, got none; add --rdzv-id=NAME")


def requeue() -> None:
    """Queue this SLURM job again, once for all its processes; it resumes from its last checkpoint. Else nothing."""
    env = os.environ
    if "SLURM_JOB_ID" not in env or not first_process():
        return
    array = env.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"warning: job {job} was not queued again ({error}); do so by hand", file=sys.stderr)
