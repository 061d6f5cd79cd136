"""Binary: the sign and the scale of the least squared error."""

from __future__ import annotations

import pytest
import torch

from bitsweep import formats
from bitsweep.spec import PER_CHANNEL, QuantSpec
from bitsweep.tensor import QuantTensor


def spec(scale_dtype: str = "float32") -> QuantSpec:
    return QuantSpec(1, PER_CHANNEL, format="binary", scale_dtype=scale_dtype)


def test_a_weight_becomes_its_sign_times_the_mean_size() -> None:
    # (1 + 2 + 3 + 0 + 4) / 5 = 2; 0 counts as positive
    quant = QuantTensor.quantize(torch.tensor([[1.0, -2.0, 3.0, 0.0, -4.0]]), spec())
    assert quant.codes.tolist() == [[1, 0, 1, 1, 0]]
    assert quant.dequantize().tolist() == [[2, -2, 2, 2, -2]]


def test_no_other_scale_has_less_error_under_the_importance() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 64, generator=generator)
    importance = torch.rand(1, 64, generator=generator)
    quant = QuantTensor.quantize(weight, spec(), importance=importance)

    def error(factor: float) -> torch.Tensor:
        return ((quant.dequantize() * factor - weight).square() * importance).sum(1)

    assert bool((error(1.0) < error(1.01)).all())
    assert bool((error(1.0) < error(0.99)).all())


def test_where_nothing_counts_the_scale_is_the_plain_mean() -> None:
    nothing = torch.zeros(1, 2)  # all inputs were 0, or all weights are pruned
    quant = QuantTensor.quantize(torch.tensor([[1.0, -2.0]]), spec(), importance=nothing)
    assert quant.dequantize().tolist() == [[1.5, -1.5]]


@pytest.mark.parametrize(("size", "scale"), [(0.7, 0.5), (0.8, 1.0)])
def test_a_power_of_two_is_the_nearest_one(size: float, scale: float) -> None:
    quant = QuantTensor.quantize(torch.tensor([[size, -size]]), spec("power_of_two"))
    assert quant.dequantize().tolist() == [[scale, -scale]]


def test_a_code_is_one_bit() -> None:
    assert QuantTensor.quantize(torch.randn(4, 64), spec()).nbytes() == {"codes": 32, "scale": 16}


def test_binary_refuses_what_it_is_not() -> None:
    family = formats.get("binary")
    assert family.skip(QuantSpec(4, 64, format="binary")) == "bits=4: format=binary has 1 bit"
    reason = family.skip(QuantSpec(1, 64, True, "binary"))
    assert reason == (
        "symmetric=true: format=binary has no zero-point to go without; use symmetric=false"
    )
