"""Where softmax, exp, log and sums of many terms must not run in half precision."""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32 if it is half precision; fp32 and fp64 pass unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which autocast does not lower the precision of operations on ``x``'s device."""
    return torch.autocast(x.device.type, enabled=False)
