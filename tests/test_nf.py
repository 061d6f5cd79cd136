"""Normal float: the table on the page, and bitsandbytes where it is installed."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch

from bitsweep import formats
from bitsweep.formats.nf import quantiles
from bitsweep.spec import PER_CHANNEL, QuantSpec
from bitsweep.tensor import QuantTensor

NF4 = [  # appendix E of the QLoRA paper, and bitsandbytes' source
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def exact(bits: int, group_size: int = PER_CHANNEL) -> QuantSpec:
    return QuantSpec(bits, group_size, format="nf", scale_dtype="float32")


def test_four_bits_are_nf4_to_the_last_bit() -> None:
    assert torch.equal(quantiles(4), torch.tensor(NF4))


def test_two_bits_are_quantiles_of_the_normal_distribution() -> None:
    # p = 1 - (1/6 + 1/8) / 2 = 41/48; above 0 the quantiles of p and (p + 1/2) / 2, below 0 of p
    p = 41 / 48
    inverse = NormalDist().inv_cdf
    middle = inverse((p + 0.5) / 2) / inverse(p)
    assert quantiles(2).tolist() == [-1, 0, pytest.approx(middle, abs=1e-6), 1]


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_has_0_and_one_value_more_above_it_than_below(bits: int) -> None:
    table = quantiles(bits)
    assert bool((table.diff() > 0).all())
    assert (table[0], table[-1]) == (-1, 1)
    assert int((table > 0).sum()) == 2 ** (bits - 1)
    assert int((table < 0).sum()) == 2 ** (bits - 1) - 1


def test_the_scale_is_the_largest_weight_and_the_middle_goes_down() -> None:
    #  scaled by 2: -1, half of -1 (the middle between -1 and 0), just above it, 1
    quant = QuantTensor.quantize(torch.tensor([[-2.0, -1.0, -0.99, 2.0]]), exact(2))
    assert quant.params["scale"].tolist() == [[2.0]]
    assert quant.codes.tolist() == [[0, 0, 1, 3]]


@pytest.mark.parametrize("group_size", [64, 128])
def test_codes_and_values_equal_those_of_bitsandbytes(group_size: int) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(
        weight, blocksize=group_size, quant_type="nf4", compress_statistics=False
    )
    theirs = torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], 1).view(64, 256)
    ours = QuantTensor.quantize(weight, exact(4, group_size))
    assert torch.equal(ours.codes, theirs)
    assert torch.equal(ours.dequantize(), functional.dequantize_4bit(packed, state))


def test_nf_refuses_what_it_is_not() -> None:
    skip = formats.get("nf").skip
    assert skip(QuantSpec(1, 64, format="nf")) == (
        "bits=1: format=nf has 2, 3, 4, 5, 6, 7 or 8 bits"
    )
    assert skip(QuantSpec(4, 64, True, "nf")) == (
        "symmetric=true: format=nf has no zero-point to go without; use symmetric=false"
    )
    assert skip(QuantSpec(4, 64, format="nf", scale_dtype="e4m3")) == (
        "scale_dtype=e4m3: format=nf takes float16 or float32 or power_of_two"
    )
