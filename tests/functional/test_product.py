"""Products with a table: equal to the plain ones, whichever library computes them."""

from __future__ import annotations

import pytest
import torch

from protoseg.functional.precision import times_table


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "m", "d"), [(2000, 30, 20), (50, 30, 20), (1, 1, 1), (1, 7, 2), (7, 1, 3), (0, 3, 4), (3, 0, 4)]
)
def test_values_and_gradients_are_those_of_the_plain_product(dtype: torch.dtype, n: int, m: int, d: int) -> None:
    rows, table = torch.randn(n, d, dtype=dtype, requires_grad=True), torch.randn(m, d, dtype=dtype, requires_grad=True)
    weight = torch.randn(n, m, dtype=dtype)
    ours, theirs = times_table(rows, table), rows @ table.T
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad((value * weight).sum(), (rows, table)) for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_transposed_inputs() -> None:
    rows, table = torch.randn(8, 4000).T, torch.randn(8, 30).T
    torch.testing.assert_close(times_table(rows, table), rows @ table.T, atol=1e-5, rtol=1e-5)


def test_fp32_is_not_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, table = (torch.nn.functional.normalize(torch.randn(200, 720, generator=generator), dim=1) for _ in range(2))
    error = times_table(rows, table).double() - rows.double() @ table.double().T
    assert error.abs().max() < 1e-6


@pytest.mark.parametrize("threads", [1, 2])
def test_on_a_cpu_onednn_computes_fp32(threads: int) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.profiler.profile() as profile:
            times_table(torch.randn(2000, 16), torch.randn(8, 16))
    finally:
        torch.set_num_threads(before)
    assert "aten::mkldnn_convolution" in {event.key for event in profile.key_averages()}
