"""Floats: numbers and ties on the page, torch's casts, the blocks of MX and NVFP4."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitsweep import config, formats
from bitsweep.compose import compose
from bitsweep.formats.float import LAYOUTS, limits, magnitudes, numbers
from bitsweep.policies import Rule
from bitsweep.spec import PER_CHANNEL, QuantSpec
from bitsweep.tensor import QuantTensor

CASTS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def weights(rows: int = 32, columns: int = 128) -> Tensor:
    return 0.1 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def exact(name: str, bits: int, group_size: int = PER_CHANNEL) -> QuantSpec:
    return QuantSpec(bits, group_size, format=name, scale_dtype="float32")


def block(name: str, bits: int = 4) -> QuantSpec:
    return formats.resolve(QuantSpec(bits, 64, format=name))


def test_the_numbers_of_e2m1() -> None:
    assert magnitudes(LAYOUTS["e2m1"]).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("name", "largest", "smallest"),
    [  # (2 - 2**-mantissa) 2**emax, of E4M3 a step less for NaN; 2**(1 - bias - mantissa)
        ("e3m2", 1.75 * 2**4, 2.0**-4),
        ("e2m3", 1.875 * 2**2, 2.0**-3),
        ("e4m3", 1.75 * 2**8, 2.0**-9),
        ("e5m2", 1.75 * 2**15, 2.0**-16),
    ],
)
def test_largest_and_smallest_numbers(name: str, largest: float, smallest: float) -> None:
    values = magnitudes(LAYOUTS[name])
    assert (values[-1], values[1]) == (largest, smallest)


@pytest.mark.parametrize("name", CASTS)
def test_every_code_of_8_bits_is_the_number_of_torchs_dtype(name: str) -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(CASTS[name]).float()
    ours = numbers(LAYOUTS[name])
    is_number = theirs.isfinite()
    assert torch.equal(ours.isfinite(), is_number)
    assert torch.equal(ours[is_number], theirs[is_number])


@pytest.mark.parametrize("name", CASTS)
def test_rounding_is_torchs_cast_at_every_middle_and_beside_it(name: str) -> None:
    values = magnitudes(LAYOUTS[name])
    middles = (values[:-1] + values[1:]) / 2
    for value in (middles, middles.nextafter(values[1:]), middles.nextafter(values[:-1])):
        ours = torch.bucketize(value, limits(LAYOUTS[name]))
        assert torch.equal(ours, value.to(CASTS[name]).view(torch.uint8).long())


@pytest.mark.parametrize("name", CASTS)
def test_codes_and_values_equal_torchs_cast_of_the_scaled_weights(name: str) -> None:
    largest = torch.finfo(CASTS[name]).max
    scale = weights().abs().amax(1, keepdim=True) / largest
    cast = (weights() / scale).clamp(-largest, largest).to(CASTS[name])
    quant = QuantTensor.quantize(weights(), exact(name, 8))
    assert torch.equal(quant.codes, cast.view(torch.uint8))
    assert torch.equal(quant.dequantize(), cast.float() * scale)


def test_ties_go_to_the_even_mantissa_and_minus_zero_keeps_its_sign() -> None:
    #                       even:  0     1     1    2     2    4    4   largest
    weight = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -1.75]])
    quant = QuantTensor.quantize(weight, exact("e2m1", 4))
    assert quant.dequantize().tolist() == [[0, 1, 1, 2, 2, 4, 4, 6, 0, -2]]
    assert quant.codes.tolist() == [[0, 2, 2, 4, 4, 6, 6, 7, 8, 12]]


@pytest.mark.parametrize(("bits", "name"), [(4, "e2m1"), (6, "e3m2"), (8, "e4m3")])
def test_float_is_the_usual_one_of_its_width(bits: int, name: str) -> None:
    usual = QuantTensor.quantize(weights(), QuantSpec(bits, 32, format="float"))
    named = QuantTensor.quantize(weights(), QuantSpec(bits, 32, format=name))
    assert torch.equal(usual.codes, named.codes)
    assert torch.equal(usual.dequantize(), named.dequantize())


def test_a_plain_scale_is_normal_in_float16() -> None:
    # E5M2 of weights up to 0.01: 0.01 / 57344 = 1.7e-7 would be three of float16's smallest steps
    half = formats.fit(weights() / 50, QuantSpec(8, 32, format="e5m2"))["scale"]
    single = formats.fit(weights() / 50, exact("e5m2", 8, 32))["scale"]
    torch.testing.assert_close(half.float(), single, rtol=2.0**-11, atol=0)


# ------------------------------------------------------------------------------ blocks


def row(largest: float) -> Tensor:
    return torch.tensor([[largest, *[1.0] * 31]])


@pytest.mark.parametrize(
    ("name", "bits", "largest", "scale", "becomes"),
    [
        ("mxfp4", 4, 7.9, 1.0, 6.0),  # floor(log2 7.9) - 2 = 0; beyond 6 saturates
        ("mxfp4", 4, 8.0, 2.0, 8.0),  # 3 - 2 = 1; 8 / 2 = 4
        ("mxfp4", 4, 1.0, 0.25, 1.0),  # 0 - 2; 1 / 0.25 = 4
        ("mxfp8", 8, 500.0, 1.0, 448.0),  # 8 - 8 = 0
        ("mxfp8", 8, 1.0, 2.0**-8, 1.0),
    ],
)
def test_an_mx_scale_is_the_largest_weights_exponent_less_emax(
    name: str, bits: int, largest: float, scale: float, becomes: float
) -> None:
    quant = QuantTensor.quantize(row(largest), block(name, bits))
    assert quant.params["scale"].tolist() == [[scale]]
    assert quant.dequantize()[0, 0] == becomes


def test_nvfp4_has_scales_in_e4m3_of_one_scale_of_the_tensor() -> None:
    # largest 6 * 448: tensor scale 1. Group 2, largest 6 * 1.05: 1.05 lies between E4M3's 1 and
    # 1.125, and nearer to 1; 3 is a number of E2M1
    weight = torch.tensor([[6.0 * 448, *[0.0] * 15, 6 * 1.05, 3.0, *[0.0] * 14]])
    quant = QuantTensor.quantize(weight, block("nvfp4"))
    assert quant.params["tensor_scale"].tolist() == [[1.0]]
    assert quant.params["scale"].tolist() == [[448.0, 1.0]]
    assert quant.dequantize()[0, [0, 16, 17]].tolist() == [2688.0, 6.0, 3.0]


@pytest.mark.parametrize(("name", "bits"), [("mxfp4", 4.25), ("nvfp4", 4.5)])
def test_scales_of_blocks_are_counted_in_8_bits(name: str, bits: float) -> None:
    quant = QuantTensor.quantize(weights(), block(name))
    tensor_scale = 4 if name == "nvfp4" else 0
    assert sum(quant.nbytes().values()) == weights().numel() * bits / 8 + tensor_scale


def test_the_row_of_a_block_format_says_its_own_groups_and_scales() -> None:
    columns = config.job(compose(["format=mxfp4", "group_size=128"])).point.columns()
    assert (columns["group_size"], columns["scale_dtype"]) == (32, "power_of_two")
    columns = config.job(compose(["format=nvfp4"])).point.columns()
    assert (columns["group_size"], columns["scale_dtype"]) == (16, "e4m3")


def test_a_rule_of_a_block_format_has_its_groups_and_scales() -> None:
    assert Rule(format="mxfp4", bits=4).spec(QuantSpec(3, 128)) == block("mxfp4")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (QuantSpec(5, 64, format="float"), "bits=5: format=float has 4, 6 or 8 bits"),
        (QuantSpec(4, 64, format="e4m3"), "bits=4: format=e4m3 has 8 bits"),
        (block("mxfp8", 4), "bits=4: format=mxfp8 has 8 bits"),
        (QuantSpec(4, 64, format="mxfp4"), "group_size=64: format=mxfp4 has groups of 32"),
        (replace(block("mxfp4"), scale_dtype="float16"), "scale_dtype=float16: format=mxfp4 takes"),
        (QuantSpec(4, 64, True, "e2m1"), "symmetric=true: format=e2m1"),
    ],
)
def test_floats_refuse_what_they_are_not(spec: QuantSpec, reason: str) -> None:
    assert reason in (formats.get(spec.format).skip(spec) or "")


def test_values_equal_those_of_compressed_tensors() -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams
    from compressed_tensors.quantization.utils.helpers import generate_gparam

    weight = weights()
    args = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True)
    scale, zero = calculate_qparams(weight.amin(1, True), weight.amax(1, True), args)
    ours = QuantTensor.quantize(weight, exact("e4m3", 8)).dequantize()
    assert torch.equal(ours, fake_quantize(weight, scale, zero, args))

    args = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
        scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    whole = generate_gparam(weight.amin(), weight.amax())  # they store its reciprocal
    groups = weight.view(32, -1, 16)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args, global_scale=whole)
    theirs = fake_quantize(weight, scale, zero, args, global_scale=whole)
    ours = QuantTensor.quantize(weight, block("nvfp4")).dequantize()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_blocks_equal_those_of_torchao() -> None:
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    for name, bits, dtype in (
        ("mxfp4", 4, torch.float4_e2m1fn_x2),
        ("mxfp8", 8, torch.float8_e4m3fn),
    ):
        scale, data = mx.to_mx(weights(), dtype, 32)
        theirs = mx.to_dtype(data, scale, dtype, 32, torch.float32)
        ours = QuantTensor.quantize(weights(), block(name, bits)).dequantize()
        assert torch.equal(ours, theirs.view(ours.shape))
