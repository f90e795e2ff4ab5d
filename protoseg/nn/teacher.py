"""The teacher: an exponential moving average of the student that no gradient reaches."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from protoseg.nn.prototype_memory import PrototypeMemory
from protoseg.types import ProtosegError


class EMATeacher(AveragedModel):
    """Average of a module's weights over the optimizer steps, always in eval mode.

    After optimizer step t = 1, 2, …, with a = min(1 - 1 / (t + 1), alpha) (Tarvainen and Valpola, arXiv 1703.01780;
    DACS, arXiv 2007.08702): parameters, BatchNorm statistics and prototypes become a * own + (1 - a) * student's.
    Prototypes are then made unit length again, and are copied until the student's have been placed. Counters are
    copied. The released codes of DACS and DAFormer average parameters alone, the teacher's BatchNorm in training mode;
    averaged statistics belong to averaged weights, and a teacher in eval mode labels an image alike in any batch.

    ``model``, the student, is copied; ``alpha`` is the largest momentum. Raises ProtosegError: one outside [0, 1).
    """

    n_averaged: Tensor  # states averaged so far, the initial one included: t + 1 after optimizer step t

    def __init__(self, model: nn.Module, alpha: float = 0.999) -> None:
        if not 0 <= alpha < 1:
            raise ProtosegError(f"teacher: expected alpha in [0, 1), got {alpha}")
        super().__init__(model, use_buffers=True)
        self.alpha = alpha
        self.n_averaged.fill_(1)  # the initial student is the first member of the average
        self._averaged: int | None = None  # n_averaged as the host knows it: reading it makes a GPU's host wait
        self.requires_grad_(False)
        self.eval()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._averaged = None

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follow the student after an optimizer step."""
        count = int(self.n_averaged) if self._averaged is None else self._averaged
        memories = list(zip(_memories(self.module), _memories(model), strict=True))
        unplaced = [own.updates == 0 for own, _ in memories]
        weight = 1 - min(1 - 1 / (count + 1), self.alpha)
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        moved = [(own, new) for own, new in pairs if own.is_floating_point()]
        torch._foreach_lerp_([own for own, _ in moved], [new for _, new in moved], weight)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)
        self.n_averaged += 1
        self._averaged = count + 1
        for (memory, student), new in zip(memories, unplaced, strict=True):
            # A prototype's first position is not averaged with the random vector that it had before.
            units = nn.functional.normalize(memory.prototypes, dim=2)
            memory.prototypes.copy_(student.prototypes.where(new.unsqueeze(2), units))

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stays in eval mode: no dropout, no drop-path, BatchNorm by its averaged statistics."""
        return super().train(False)


def _memories(module: nn.Module) -> list[PrototypeMemory]:
    return [m for m in module.modules() if isinstance(m, PrototypeMemory)]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*(p.detach() for p in module.parameters()), *module.buffers()]
