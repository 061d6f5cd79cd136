"""HQQ: what moving the zero-point buys, and when it buys nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitsweep.errors import UserError
from bitsweep.methods.hqq import HQQ
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor


def weights() -> Tensor:
    """Heavy tails, as in trained layers: Student's t with 4 degrees of freedom."""
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(64, 256, generator=random)
    chi = torch.randn(4, 64, 256, generator=random).square().mean(0)
    return 0.02 * normal / chi.sqrt()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, -1, 0])
def test_an_integer_zero_gives_the_codes_of_rtn(bits: int, group_size: int) -> None:
    spec = QuantSpec(bits, group_size)
    method = HQQ(zero="integer")
    assert method.resolve(spec) == spec
    ours, nearest = method.quantize(weights(), spec), QuantTensor.quantize(weights(), spec)
    assert torch.equal(ours.params["zero"], nearest.params["zero"])
    assert torch.equal(ours.codes, nearest.codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_real_zero_lowers_the_mean_error(bits: int) -> None:
    spec = HQQ().resolve(QuantSpec(bits, 64))
    assert spec.zero == "real"
    ours, start = HQQ().quantize(weights(), spec), QuantTensor.quantize(weights(), spec)
    assert torch.equal(ours.params["scale"], start.params["scale"])
    errors = [float((quant.dequantize() - weights()).abs().mean()) for quant in (ours, start)]
    assert errors[0] < errors[1]


def test_one_step_is_the_equations_on_the_page() -> None:
    # 2 bits, w = 0, 0.4, 0.4, 0.4, 3: scale 1, z = 0, codes 0, 0, 0, 0, 3, errors 0, 0.4 x 3, 0.
    # p = 1, beta = 10: each error of 0.4 shrinks by 1 / 10 to 0.3, so codes - (w - 0.3) is -0.1,
    # and z = mean(0, -0.1, -0.1, -0.1, 0) = -0.06. With it a code stands for itself + 0.06: errors
    # -0.06, 0.34 x 3, -0.06, whose mean 0.228 is below 0.24, so this z is taken.
    spec = QuantSpec(2, -1, scale_dtype="float32", zero="real")
    weight = torch.tensor([[0.0, 0.4, 0.4, 0.4, 3.0]])
    zero = HQQ(p=1.0, iterations=2).quantize(weight, spec).params["zero"]
    assert zero.tolist() == [[pytest.approx(-0.06, rel=2**-11)]]


def test_each_step_shrinks_less() -> None:
    # As above, with kappa = 2: the second step shrinks by 1 / 20. Errors -0.06, 0.34 x 3, -0.06 are
    # then -0.01, 0.29 x 3, -0.01, and z = mean(-0.01, -0.11 x 3, -0.01) = -0.07: mean error 0.226.
    spec = QuantSpec(2, -1, scale_dtype="float32", zero="real")
    weight = torch.tensor([[0.0, 0.4, 0.4, 0.4, 3.0]])
    zero = HQQ(p=1.0, kappa=2.0, iterations=3).quantize(weight, spec).params["zero"]
    assert zero.tolist() == [[pytest.approx(-0.07, rel=2**-11)]]


def test_what_hqq_cannot_optimise_is_refused() -> None:
    assert "symmetric=true" in (HQQ().skip(QuantSpec(4, 64, True)) or "")
    assert "format=nf" in (HQQ().skip(QuantSpec(4, 64, format="nf")) or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.0}, "method.p=0.0: a norm above 0 and at most 1"),
        ({"zero": "none"}, "method.zero=none: use integer or real"),
        ({"iterations": 0}, "method.beta, kappa, iterations"),
    ],
)
def test_impossible_options_name_their_key(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HQQ(**options)  # type: ignore[arg-type]
