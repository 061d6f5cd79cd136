"""What torch's packed 8-bit kernel multiplies by, computed on the page."""

from __future__ import annotations

import pytest
import torch

from bitsweep.engines.torch_int8 import Int8Linear
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor


def layer(zero: float, columns: int = 32) -> tuple[Int8Linear, torch.Tensor]:
    """Codes 0 to 255 on the grid ``(code - zero) / 4``, and their values."""
    codes = (torch.arange(8 * columns) % 256).view(8, columns).to(torch.uint8)
    params = {"scale": torch.full((8, 1), 0.25), "zero": torch.full((8, 1), zero)}
    quant = QuantTensor(codes, params, QuantSpec(8))
    return Int8Linear(quant, None), (codes.float() - zero) / 4


@pytest.mark.parametrize("zero", [128.0, 0.0, 255.0, 131.5])
def test_any_zero_point_runs_as_a_matrix_of_rank_one(zero: float) -> None:
    packed, weight = layer(zero)
    x = torch.eye(32, dtype=torch.bfloat16)
    assert torch.equal(packed(x), weight.T.to(torch.bfloat16))


def test_a_grid_around_128_needs_no_correction() -> None:
    assert layer(128.0)[0].offset is None


@pytest.mark.parametrize("columns", [1, 15, 33, 172])
def test_rows_of_a_length_that_the_kernel_overreads_are_filled_up(columns: int) -> None:
    packed, weight = layer(128.0, columns)
    assert packed.codes.shape[1] % 16 == 0
    x = torch.eye(columns, dtype=torch.bfloat16)
    assert torch.equal(packed(x), weight.T.to(torch.bfloat16))


def test_inputs_that_lie_at_an_odd_address_are_moved() -> None:
    packed, weight = layer(128.0)
    x = torch.zeros(40, dtype=torch.bfloat16)[3:35].view(1, 32)
    x[0, 4] = 1
    assert x.data_ptr() % 32
    assert torch.equal(packed(x)[0].float(), weight[:, 4])
