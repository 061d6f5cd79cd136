"""Log: the layout of codes, rounding in value, the step of each group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.spec import PER_CHANNEL, QuantSpec
from bitsweep.tensor import QuantTensor


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def pow2(bits: int) -> QuantSpec:
    return formats.resolve(QuantSpec(bits, PER_CHANNEL, format="pow2"))


def exact(bits: int) -> QuantSpec:
    return QuantSpec(bits, PER_CHANNEL, format="log", scale_dtype="float32")


def test_codes_are_a_sign_and_an_exponent() -> None:
    # 3 bits, scale 8: m = 3, 2, 1 are 8, 4, 2; the sign is worth 4; -0 is free and is -1
    quant = QuantTensor.quantize(row(8, 4, 2, 0, -8, -4, -2, -1), pow2(3))
    assert quant.codes.tolist() == [[3, 2, 1, 0, 7, 6, 5, 4]]
    assert quant.dequantize().tolist() == [[8, 4, 2, 0, -8, -4, -2, -1]]


def test_rounding_is_nearest_in_value_not_in_exponent() -> None:
    # the middle of 4 and 8 is 6, that of their exponents 2**2.5 = 5.66; that of 0 and 2 is 1
    quant = QuantTensor.quantize(row(8, 5.9, 6.1, 2.9, 3.1, 1.1, 0.9, -0.6, -0.4), pow2(3))
    assert quant.dequantize().tolist() == [[8, 4, 8, 2, 4, 2, 0, -1, 0]]


@pytest.mark.parametrize(("largest", "scale"), [(1.49, 1.0), (1.51, 2.0), (2.0, 2.0), (0.8, 1.0)])
def test_powers_of_two_begin_at_the_one_nearest_to_the_largest(
    largest: float, scale: float
) -> None:
    quant = QuantTensor.quantize(row(largest, -0.1), pow2(4))
    assert quant.params["scale"].tolist() == [[scale]]
    assert quant.params.keys() == {"scale"}


def test_powers_of_two_store_their_exponent_alone() -> None:
    quant = QuantTensor.quantize(torch.randn(4, 64, generator=torch.Generator()), pow2(4))
    assert quant.nbytes() == {"codes": 4 * 64 // 2, "scale": 4}
    assert formats.resolve(QuantSpec(4, 64, format="pow2")).scale_dtype == "power_of_two"


def test_a_group_in_even_steps_of_the_exponent_is_exact() -> None:
    # 4 bits: 7 exponents above 0; from 3 down in steps of 1/2, which float16 holds exactly
    weight = 3 * torch.exp2(-torch.arange(7) / 2).unsqueeze(0)
    quant = QuantTensor.quantize(weight, exact(4))
    assert quant.params["step"].tolist() == [[0.5]]
    assert quant.codes.tolist() == [[7, 6, 5, 4, 3, 2, 1]]
    torch.testing.assert_close(quant.dequantize(), weight, rtol=1e-6, atol=0)


def test_a_tiny_weight_does_not_spread_the_exponents() -> None:
    # one weight of 1e-6 is 20 octaves below; as 0 it costs 1e-12
    weight = torch.cat([torch.linspace(0.2, 1, 31), torch.tensor([1e-6])]).unsqueeze(0)
    quant = QuantTensor.quantize(weight, exact(4))
    assert float(quant.params["step"]) < 1
    assert quant.dequantize()[0, -1] == 0


def test_importance_chooses_the_step() -> None:
    weight = torch.cat([torch.linspace(0.2, 1, 31), torch.tensor([1e-6])]).unsqueeze(0)
    small = torch.where(weight < 0.1, 1e14, 1.0)
    quant = QuantTensor.quantize(weight, exact(4), importance=small)
    assert quant.dequantize()[0, -1] == pytest.approx(1e-6, rel=0.01)


def test_a_group_of_one_size_has_the_smallest_step() -> None:
    quant = QuantTensor.quantize(row(0.5, -0.5, 0.5), exact(4))
    assert quant.params["step"].tolist() == [[2.0**-8]]
    assert quant.dequantize().tolist() == [[0.5, -0.5, 0.5]]


def test_log_refuses_what_it_is_not() -> None:
    for name in ("log", "pow2"):
        reason = formats.get(name).skip(formats.resolve(QuantSpec(1, 64, format=name)))
        assert reason == f"bits=1: format={name} has 2, 3, 4, 5, 6, 7 or 8 bits"
    assert formats.get("pow2").skip(QuantSpec(4, 64, format="pow2")) == (
        "scale_dtype=float16: format=pow2 takes power_of_two"
    )


def test_the_middle_between_0_and_a_value_goes_to_0() -> None:
    # 3 bits, scale 1, powers of two: the least positive value is 1/4, the least negative one -1/8
    weight = row(1.0, 0.125, 0.126, -0.0625, -0.063)
    quant = QuantTensor.quantize(weight, pow2(3))
    assert quant.dequantize().tolist() == [[1.0, 0.0, 0.25, 0.0, -0.125]]
