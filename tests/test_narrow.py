"""The narrow range on the page: its ends are exact, and one code stays unused."""

from __future__ import annotations

import torch

from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor

W8 = QuantSpec(8, format="narrow", scale_dtype="float32")


def test_the_scale_is_the_largest_number_over_127() -> None:
    """Of 2.54 it is 0.02, so 1 is 50 steps, and code 128 + 50; 0.01 is half a step: to even, 0."""
    quant = QuantTensor.quantize(torch.tensor([[2.54, 1.0, -2.54, 0.01, 0.0]]), W8)
    torch.testing.assert_close(quant.params["scale"], torch.tensor([[0.02]]))
    assert quant.codes.tolist() == [[255, 178, 1, 128, 128]]
    values = torch.tensor([[2.54, 1.0, -2.54, 0, 0]])
    torch.testing.assert_close(quant.dequantize(), values)


def test_two_bits_are_ternary() -> None:
    """``m`` is 1: only -1, 0 and 1 are left of four codes."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    quant = QuantTensor.quantize(weight, QuantSpec(2, format="narrow", group_size=16))
    assert quant.codes.unique().tolist() == [1, 2, 3]


def test_it_stores_a_scale_and_no_zero() -> None:
    quant = QuantTensor.quantize(torch.randn(8, 64), W8)
    assert quant.nbytes() == {"codes": 8 * 64, "scale": 8 * 4}
