"""Files with published names, made of the golden networks."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight called ``name`` of a golden network: a function of its name and shape alone."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) >= 2:
        value = noise * np.sqrt(1.6 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 1 + 0.2 * np.abs(noise)
    else:
        value = 0.1 * noise + name.endswith("weight")
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def golden(kind: str) -> dict[str, Any]:
    """Names, shapes, image and what the released code makes of it."""
    name = f"published_{kind}.npz"
    beside = (
        Path(os.environ.get("PROTOSEG_DATA", "data")).absolute().parent / "golden"
    )  # for what is too large for here
    file = next((folder / name for folder in (GOLDEN, beside) if (folder / name).is_file()), None)
    if file is None:
        pytest.skip(f"{name} is too large for the repository; looked for in {beside}")
    return dict(np.load(file))


def published_state(kind: str) -> dict[str, Tensor]:
    found = golden(kind)
    shapes = [tuple(int(side) for side in str(shape).split(",") if side) for shape in found["shapes"]]
    return {str(name): weight(str(name), shape) for name, shape in zip(found["names"], shapes, strict=True)}
