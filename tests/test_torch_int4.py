"""What torch's packed 4-bit kernel multiplies by, computed on the page."""

from __future__ import annotations

import torch

from bitsweep.engines.torch_int4 import Int4Linear, blocks
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor


def identity(columns: int) -> torch.Tensor:
    return torch.eye(columns, dtype=torch.bfloat16)


def test_a_grid_that_bf16_holds_runs_exactly() -> None:
    """scale 1/4 and zero 5: (code - 8) / 4 + (8 - 5) / 4 is (code - 5) / 4 in every bit."""
    codes = (torch.arange(32 * 16) % 16).view(16, 32).to(torch.uint8)
    params = {"scale": torch.full((16, 1), 0.25), "zero": torch.full((16, 1), 5.0)}
    layer = Int4Linear(QuantTensor(codes, params, QuantSpec(4, 32)), None)
    assert torch.equal(layer(identity(32)).float(), ((codes.float() - 5) / 4).T)


def test_columns_in_another_order_meet_their_own_group() -> None:
    """act_order: the first 32 places of the permutation have scale 1, the rest scale 2."""
    codes = torch.full((16, 64), 9, dtype=torch.uint8)
    order = torch.arange(64).flip(0)
    params = {"scale": torch.tensor([[1.0, 2.0]]).expand(16, 2)}
    spec = QuantSpec(4, 32, symmetric=True)
    layer = Int4Linear(QuantTensor(codes, params, spec, order), None)
    row = layer(identity(64))[:, 0]
    assert row.tolist() == [2.0] * 32 + [1.0] * 32


def test_the_kernels_groups_are_the_largest_that_divide_ours() -> None:
    assert blocks(QuantSpec(4, 32), 96) == (32, 1)
    assert blocks(QuantSpec(4, 96), 192) == (32, 3)
    assert blocks(QuantSpec(4, 512), 512) == (256, 2)
    assert blocks(QuantSpec(4), 384) == (128, 3)
    assert blocks(QuantSpec(4), 172) == (32, 6)  # filled up to 192 columns


def test_four_bits_a_weight_are_held() -> None:
    quant = QuantTensor.quantize(torch.randn(64, 128), QuantSpec(4, 64))
    layer = Int4Linear(quant, None)
    assert layer.codes.nbytes == 64 * 128 // 2
    assert layer.grid.nbytes == 64 * 2 * 4  # two groups a row, scale and shift in bf16
