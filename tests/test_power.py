"""Power: the table of an exponent, and its search."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, QuantSpec
from bitsweep.tensor import QuantTensor


def spec(bits: int, group_size: int = PER_CHANNEL) -> QuantSpec:
    return QuantSpec(bits, group_size, format="power", scale_dtype="float32")


def table(bits: int, exponent: float) -> Tensor:
    return formats.get("power").table({"exponent": torch.tensor([[exponent]])}, spec(bits))  # type: ignore[attr-defined]


def test_exponent_one_is_uniform_on_either_side_of_0() -> None:
    # 3 bits: -1 to 0 in 3 steps, 0 to 1 in 4
    expected = torch.tensor([-1, -2 / 3, -1 / 3, 0, 0.25, 0.5, 0.75, 1])
    torch.testing.assert_close(table(3, 1.0), expected)


def test_exponent_one_half_has_squares() -> None:
    expected = torch.tensor([-1, -4 / 9, -1 / 9, 0, 1 / 16, 1 / 4, 9 / 16, 1])
    torch.testing.assert_close(table(3, 0.5), expected)


@pytest.mark.parametrize("exponent", [0.25, 0.5, 0.73, 1.0])
def test_the_search_finds_the_exponent_of_weights_on_its_grid(exponent: float) -> None:
    places = torch.randint(0, 16, (32, 64), generator=torch.Generator().manual_seed(0))
    places[:, :2] = torch.tensor([0, 15])  # every row has both ends
    weight = 0.3 * table(4, exponent)[places]
    quant = QuantTensor.quantize(weight, spec(4))
    assert quant.params["exponent"].tolist() == [[pytest.approx(exponent)]]
    torch.testing.assert_close(quant.dequantize(), weight)


def test_no_exponent_of_hundredths_has_less_error() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    best = QuantTensor.quantize(weight, spec(4, 32))

    def error(quant: QuantTensor) -> float:
        return float((quant.dequantize() - weight).square().sum())

    for percent in range(20, 101):
        other = {**best.params, "exponent": torch.tensor([[percent / 100]])}
        assert error(best) <= error(QuantTensor.quantize(weight, spec(4, 32), other)) * 1.002


def test_heavy_tails_want_a_smaller_exponent() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(16, 256, generator=generator) * 2 - 1
    found = [float(formats.fit(weight, spec(4))["exponent"]) for weight in (flat**5, flat**3, flat)]
    assert found == sorted(found)
    assert found[-1] > 0.9


def test_one_exponent_for_the_tensor_is_counted() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    for group_size, groups in ((32, 32), (PER_CHANNEL, 16), (PER_TENSOR, 1)):
        sizes = QuantTensor.quantize(weight, spec(4, group_size)).nbytes()
        assert sizes == {"codes": 16 * 64 // 2, "scale": 4 * groups, "exponent": 4}
