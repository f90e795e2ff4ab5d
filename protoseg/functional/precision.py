"""Where softmax, exp, log and sums of many terms must not run in half precision; products of matrices in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32 if it is half precision; fp32 and fp64 pass unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which autocast does not lower the precision of operations on ``x``'s device."""
    return torch.autocast(x.device.type, enabled=False)


SMALL = 20480  # elements up to which torch convolves a single image by other means


def times_table(rows: Tensor, table: Tensor) -> Tensor:
    """``rows @ table.T``: ``n d`` and ``m d`` to ``n m``.

    torch gives products of fp32 matrices on a CPU to MKL, which leaves half of an AMD processor idle, and convolutions
    to oneDNN, which does not: as a convolution by kernels of one pixel the same product took 0.4 of the time (EPYC with
    AVX-512). The sums run in another order, exact to fp32 like the other.
    """
    (n, d), m = rows.shape, len(table)
    with_onednn = rows.device.type == "cpu" and rows.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if not with_onednn or rows.numel() <= SMALL or m == 0:
        return rows @ table.T
    image = rows.view(1, n, 1, d).permute(0, 3, 1, 2)  # one column of pixels, channels last in memory
    # Dilation means nothing to a kernel of one pixel, but without it a single thread would not be given oneDNN.
    return F.conv2d(image, table.view(m, d, 1, 1), dilation=2).permute(0, 2, 3, 1).reshape(n, m)
