"""What a step costs, counted on tensors without numbers: arithmetic, bytes moved, alive and handed to the wire."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from protoseg.models.segmentor import Segmentor

# One H100 (SXM). Measured, docs/speed.md: products in bf16 and fp32, and a copy. Convolutions of fp32 run in TF32, of
# which the data sheet promises half of bf16's rate; that rate was not measured.
BF16, FP32, TF32, COPY = 762e12, 52e12, 381e12, 2.98e12


class CountOperations(TorchDispatchMode):
    """While entered, counts operations by what they cost and the bytes of tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = self.seconds = 0.0
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.hold(made)
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if views or not made or func.overloadpacket in _FREE:
            return out
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
        moved = sum(map(_size, [*given, *made]))
        half = any(x.dtype in (torch.bfloat16, torch.float16) for x in given)
        by_convolution = "convolution" in func.overloadpacket.__name__
        rate = BF16 if half else TF32 if by_convolution else FP32
        self.flops += flops
        self.bytes += moved
        self.seconds += max(flops / rate, moved / COPY)
        return out

    def hold(self, tensors: list[Tensor]) -> None:
        """Count the memory of tensors until it is let go."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


_FREE = (torch.ops.aten.empty, torch.ops.aten.new_empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided)


def _size(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def without_numbers(model: Segmentor, fake: FakeTensorMode) -> Segmentor:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake.from_tensor(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake.from_tensor(buffer)
    return model


@contextmanager
def processes(number: int, sent: list[float]) -> Iterator[None]:
    """``torch.distributed`` as if there were so many; ``sent`` gets the bytes that one sends in each collective."""

    def all_reduce(tensor: Tensor, *rest: Any) -> None:
        sent.append(ring_times(number) * tensor.numel() * tensor.element_size())

    def all_gather(parts: list[Tensor], tensor: Tensor) -> None:
        sent.append((number - 1) * tensor.numel() * tensor.element_size())

    known: dict[str, Callable[..., Any]] = {"all_reduce": all_reduce, "all_gather": all_gather}
    for name, value in {"is_initialized": True, "get_world_size": number, "get_rank": 0}.items():
        known[name] = partial(int, value)
    with ExitStack() as stack:
        for name, function in known.items():
            stack.enter_context(patch(f"protoseg.distributed.dist.{name}", function))
        yield


def ring_times(gpus: int) -> float:
    """How often each GPU sends a tensor that is summed over all of them (ring all-reduce)."""
    return 2 * (gpus - 1) / gpus
