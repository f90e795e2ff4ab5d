"""Two processes of one group that stay: for all tests that compare two ranks with one process, started once."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 120  # seconds for a call, and in which a rank waits for the other


class TwoRanks:
    """``two_ranks(function, *args)`` is [``function(0, *args)``, ``function(1, *args)``], of a group of two by gloo."""

    def __init__(self, folder: Path) -> None:
        context = torch.multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(2)]
        self.ends = [here for here, _ in pipes]
        there = [(rank, str(folder / "rendezvous"), end) for rank, (_, end) in enumerate(pipes)]
        self.processes = [context.Process(target=serve, args=args, daemon=True) for args in there]
        for process in self.processes:
            process.start()

    def __call__(self, function: Callable[..., Any], *args: object) -> list[Any]:
        for end in self.ends:
            end.send((function, args))
        results = []
        for end in self.ends:
            if not end.poll(PATIENCE):
                self.close()
                raise TimeoutError(f"{function.__module__}: no answer of a rank in {PATIENCE} s")
            fine, result = end.recv()
            if not fine:
                self.close()  # the other may wait for it
                raise AssertionError(result)
            results.append(result)
        return results

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def serve(rank: int, rendezvous: str, end: Any) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=patience)
    while True:
        function, args = end.recv()
        try:
            end.send((True, function(rank, *args)))
        except Exception:
            end.send((False, traceback.format_exc()))
