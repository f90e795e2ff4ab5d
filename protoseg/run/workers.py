"""A process per device of this machine, on the config that the job's folder holds; and what such a process does."""

import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch.distributed import TCPStore
from torch.distributed.elastic import multiprocessing as elastic
from torch.distributed.elastic.multiprocessing import ProcessFailure, RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import record

from protoseg.callbacks.checkpoint import Stopped, StopRequest
from protoseg.distributed import usable_cores
from protoseg.files import write_file, write_text
from protoseg.types import ProtosegError

CONFIG, RESULT = "config.yaml", "result.json"  # in the workers' folder: what they read, what the first of them leaves

_OF_INPUT = f"{ProtosegError.__name__}: "


def run_workers(cfg: DictConfig, devices: int) -> float:
    """Train in ``devices`` processes on this machine, started again up to ``cfg.max_restarts`` times where one dies.

    Raises ProtosegError as a worker did, or of one that died: which, how, and where its log lies; Stopped by a signal.
    """
    folder = Path(cfg.paths.output).absolute() / "workers"
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    write_file(folder / CONFIG, lambda path: OmegaConf.save(resolved, path))
    for attempt in range(cfg.max_restarts + 1):
        outcome = _attempt(folder, devices, cfg.threads, attempt)
        if not outcome.failures:
            break
        message, of_input = describe(outcome)
        if of_input or attempt == cfg.max_restarts:
            raise ProtosegError(message)
        print(f"{message}. Restart {attempt + 1} of {cfg.max_restarts}, from the last checkpoint", file=sys.stderr)
    return float(json.loads((folder / RESULT).read_text())["score"])


def _attempt(folder: Path, devices: int, threads: int | None, attempt: int) -> RunProcsResult:
    """Run the workers once, to their end: none of them outlives this call, or this process."""
    (folder / RESULT).unlink(missing_ok=True)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says is said here, once
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a port that is free
    common: dict[str, Any] = {"WORLD_SIZE": devices, "LOCAL_WORLD_SIZE": devices, "GROUP_RANK": 0}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    common |= {"TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": attempt}
    common["OMP_NUM_THREADS"] = threads or os.environ.get("OMP_NUM_THREADS") or max(1, usable_cores() // devices)
    common["PYTHONUNBUFFERED"] = 1  # so that the log of a worker that is killed is complete
    ranks = range(devices)
    envs = {rank: {k: str(v) for k, v in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()} for rank in ranks}
    command = ("-m", "protoseg.run.workers", str(folder), str(os.getpid()))
    logs = elastic.DefaultLogsSpecs(str(folder), redirects=dict.fromkeys(ranks[1:], elastic.Std.ALL))
    taken = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    with StopRequest() as request:
        try:
            workers = elastic.start_processes("worker", sys.executable, dict.fromkeys(ranks, command), envs, logs)
            request.listen()  # start_processes has taken the signals; it raises SignalException for them
            try:
                while (outcome := workers.wait(timeout=0.5, period=0.1)) is None and request.received is None:
                    pass
                if outcome is None:
                    # Not SIGTERM: that is for the workers whose fellow has died, which do not save.
                    for process in workers.pids().values():
                        with suppress(ProcessLookupError):  # it has ended
                            os.kill(process, signal.SIGUSR1)
                    outcome = workers.wait(period=0.1)
            finally:
                workers.close()
        except elastic.SignalException as error:
            raise Stopped(error.sigval) from None
        finally:
            for signum, handler in taken.items():
                signal.signal(signum, handler)
    if request.received is not None and not (folder / RESULT).exists():
        raise Stopped(request.received)
    assert outcome is not None
    return outcome


def describe(outcome: RunProcsResult) -> tuple[str, bool]:
    """What went wrong in the worker that failed first, and whether it is the user's input."""
    rank, failure = min(outcome.failures.items(), key=lambda item: _how_late(item[1]))
    message = _recorded(failure)
    if message.startswith(_OF_INPUT):
        return message.removeprefix(_OF_INPUT), True
    code = failure.exitcode
    how = f"was killed by {failure.signal_name()}" if code < 0 else f"ended with exit code {code}"
    hint = f" ({message})" if message else ", often for want of memory" if code == -signal.SIGKILL else ""
    log = f"its log is {outcome.stderrs[rank]}" if outcome.stderrs[rank] else "its output is above"
    return f"rank {rank} of {len(outcome.stderrs)} {how}{hint}, and the others were stopped; {log}", False


def _how_late(failure: ProcessFailure) -> tuple[int, int]:
    """A worker that was killed comes first, then wrong input, then other errors, then those that we stopped."""
    if failure.exitcode < 0:
        return (3 if failure.exitcode == -signal.SIGTERM else 0, failure.timestamp)
    return (1 if _recorded(failure).startswith(_OF_INPUT) else 2, failure.timestamp)


def _recorded(failure: ProcessFailure) -> str:
    message: Any = failure.error_file_data.get("message")
    return str(message["message"]) if isinstance(message, dict) else ""


def main() -> None:
    """A worker: ``python -m protoseg.run.workers FOLDER PARENT``, in the environment that its parent has made."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        _work(folder)
    except Stopped:
        pass  # the parent knows
    except ProtosegError:
        sys.exit(1)  # the parent says it
    except Exception:
        # Where another rank died first, the parent ends this one meanwhile, before it tells of a lost connection.
        time.sleep(3)  # the parent looks twice a second, on a busy machine less often
        raise


@record
def _work(folder: Path) -> None:
    from protoseg.run.config import explained
    from protoseg.run.train import run_training

    cfg = OmegaConf.load(folder / CONFIG)
    assert isinstance(cfg, DictConfig)
    with explained():
        score = run_training(cfg, stop_signals=(signal.SIGUSR1,))
    if os.environ["RANK"] == "0":
        write_text(folder / RESULT, json.dumps({"score": score}))


def _end_with(parent: int) -> None:
    """End this process and its loader's workers once the parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
