"""Formats: a contract for every family on disk, then the conventions of ``int`` on the page."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.errors import UserError
from bitsweep.methods.rtn import RTN
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, QuantSpec
from bitsweep.tensor import QuantTensor

WIDTHS = (0.5, 1, 8 / 5, 2, 3, 4, 5, 6, 7, 8)
GROUPINGS = (PER_TENSOR, PER_CHANNEL, 16, 48)


def weights(out_features: int = 24, in_features: int = 96) -> Tensor:
    return 0.1 * torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0))


def possible_specs(groupings: tuple[int, ...] = GROUPINGS) -> list[QuantSpec]:
    """Every format at every width and grouping that it does not refuse, each once."""
    every = [
        formats.resolve(QuantSpec(bits, group_size, symmetric, name))
        for name in formats.names()
        for bits in WIDTHS
        for group_size in groupings
        for symmetric in (False, True)
    ]
    return [spec for spec in dict.fromkeys(every) if formats.get(spec.format).skip(spec) is None]


SPECS = possible_specs()
ONE_EACH = possible_specs((16,))
"""Every format and width, in one grouping."""

every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
every_width = pytest.mark.parametrize("spec", ONE_EACH, ids=str)


def error(quant: QuantTensor, weight: Tensor) -> float:
    return float((quant.dequantize() - weight).square().sum())


def step(quant: QuantTensor) -> Tensor:
    """The scale of each weight, ``(out, in)``."""
    scale = quant.params["scale"].float()
    repeats = -(-quant.shape[1] // scale.shape[1])
    columns = scale.repeat_interleave(repeats, 1)[:, : quant.shape[1]]
    return columns.expand(quant.shape)


@pytest.mark.parametrize("name", formats.names())
def test_every_name_is_a_format_at_some_width(name: str) -> None:
    assert formats.get(name).name == name
    assert name in {spec.format for spec in SPECS}


@every_spec
def test_packing_keeps_what_the_codes_stand_for(spec: QuantSpec) -> None:
    quant = QuantTensor.quantize(weights(), spec)
    again = QuantTensor.unpack(quant.pack(), spec, (24, 96))
    assert torch.equal(again.dequantize(), quant.dequantize())


@every_spec
def test_rounding_twice_changes_nothing(spec: QuantSpec) -> None:
    quant = QuantTensor.quantize(weights(), spec)
    again = QuantTensor.quantize(quant.dequantize(), spec, quant.params)
    assert torch.equal(again.codes, quant.codes)


@every_spec
def test_zero_weights_stay_exactly_zero(spec: QuantSpec) -> None:
    assert not QuantTensor.quantize(torch.zeros(4, 96), spec).dequantize().any()
    if formats.get(spec.format).has_zero:
        pruned = weights()
        pruned[:, ::3] = 0
        assert not QuantTensor.quantize(pruned, spec).dequantize()[:, ::3].any()


@every_width
def test_no_other_code_is_nearer(spec: QuantSpec) -> None:
    family, weight = formats.get(spec.format), weights()
    if family.vector(spec) > 1:
        pytest.skip("a code of several weights is held to this by its own tests")
    quant = QuantTensor.quantize(weight, spec)
    least = (quant.dequantize() - weight).abs()
    for code in range(family.levels(spec)):
        other = replace(quant, codes=torch.full_like(quant.codes, code)).dequantize()
        further = (other - weight).abs().nan_to_num(torch.inf)  # some codes are no number
        assert bool((least <= further + 1e-6 * weight.abs()).all())


@every_width
def test_codes_fill_the_bytes_that_are_counted(spec: QuantSpec) -> None:
    quant = QuantTensor.quantize(weights(), spec)
    family, sizes = formats.get(spec.format), quant.nbytes()
    assert quant.pack()["codes"].numel() == sizes["codes"] == -(-round(24 * 96 * spec.bits) // 8)
    assert sizes.keys() - {"codes"} == family.params_bits(spec).keys()


@every_width
def test_weights_of_any_size_stay_finite(spec: QuantSpec) -> None:
    for size in (1e-9, 1e-4, 1e3):
        weight = size * weights()
        assert bool(QuantTensor.quantize(weight, spec).dequantize().isfinite().all())


@every_width
def test_clipping_by_squared_error_never_adds_any(spec: QuantSpec) -> None:
    if "scale" not in formats.get(spec.format).params_bits(spec):
        pytest.skip("has no range to clip")
    weight = weights(4)
    plain, clipped = QuantTensor.quantize(weight, spec), RTN(clip="mse").rows(weight, spec)
    assert error(clipped, weight) <= error(plain, weight)


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize("group_size", GROUPINGS)
def test_more_bits_less_weight_error(name: str, group_size: int) -> None:
    for symmetric in (False, True):
        asked = [QuantSpec(bits, group_size, symmetric, name) for bits in WIDTHS]
        specs = [spec for spec in map(formats.resolve, asked) if spec in SPECS]
        errors = [error(QuantTensor.quantize(weights(), spec), weights()) for spec in specs]
        assert errors == sorted(errors, reverse=True)


@every_width
def test_a_ragged_end_is_a_group_of_its_own(spec: QuantSpec) -> None:
    size = spec.group_size
    weight = weights(8, 2 * size + 8)
    quant = QuantTensor.quantize(weight, replace(spec, ragged=True))
    family = formats.get(spec.format)
    shared = family.shared(weight, replace(spec, ragged=True))
    tail = weight[:, 2 * size :].unsqueeze(1)
    params = family.fit(tail, spec, shared)
    alone = family.dequantize(family.quantize(tail, params | shared, spec), params | shared, spec)
    assert torch.equal(quant.dequantize()[:, 2 * size :], alone.squeeze(1))


@pytest.mark.parametrize("name", [name for name in formats.names() if name != "int"])
def test_what_has_no_zero_point_refuses_symmetric(name: str) -> None:
    for spec in ONE_EACH:
        if spec.format == name:
            reason = formats.get(name).skip(replace(spec, symmetric=True))
            assert "symmetric=true" in (reason or "")


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UserError, match="format=imt: no such format; try int"):
        formats.get("imt")


# ------------------------------------------------------------------------------ int


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def exact(bits: int, symmetric: bool) -> QuantSpec:
    return QuantSpec(bits, PER_CHANNEL, symmetric, scale_dtype="float32")


def test_symmetric_scale_is_twice_the_largest_weight_over_all_steps() -> None:
    # largest |w| 1.875, 4 bits: scale 2 * 1.875 / 15 = 0.25, so w / scale is
    #              -7.5    -3     1.5    0.5   7.5   half to even: -8, -3, 2, 0, 8; clamped to 7
    weight = row(-1.875, -0.75, 0.375, 0.125, 1.875)
    quant = QuantTensor.quantize(weight, exact(4, symmetric=True))
    assert quant.params["scale"].tolist() == [[0.25]]
    assert (quant.codes.int() - 8).tolist() == [[-8, -3, 2, 0, 7]]
    assert quant.dequantize().tolist() == [[-2.0, -0.75, 0.5, 0.0, 1.75]]


def test_asymmetric_zero_is_the_code_of_zero() -> None:
    # from -0.5 to 3.25 in 15 steps of 0.25: zero = 0.5 / 0.25 = 2
    quant = QuantTensor.quantize(row(-0.5, 0.0, 0.25, 3.25), exact(4, symmetric=False))
    assert quant.params["scale"].tolist() == [[0.25]]
    assert quant.params["zero"].tolist() == [[2]]
    assert quant.codes.tolist() == [[0, 2, 3, 15]]


def test_an_asymmetric_range_includes_zero() -> None:
    quant = QuantTensor.quantize(row(1.0, 2.0, 3.0), exact(2, symmetric=False))  # 0, 1, 2, 3
    assert quant.codes.tolist() == [[1, 2, 3]]


def test_a_real_zero_is_kept_between_codes() -> None:
    # from -0.3 to 1.2 in 3 steps of 0.5: zero 0.6; -0.3 / 0.5 + 0.6 = 0, 1.2 / 0.5 + 0.6 = 3
    spec = replace(exact(2, symmetric=False), zero="real")
    quant = QuantTensor.quantize(row(-0.3, 1.2), spec)
    assert quant.params["zero"].dtype == torch.float16
    assert quant.params["zero"].tolist() == [[pytest.approx(0.6, abs=2**-11)]]
    assert quant.codes.tolist() == [[0, 3]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scale_dtype", ["float32", "float16", "power_of_two"])
def test_rounding_moves_a_weight_at_most_half_a_step(
    bits: int, symmetric: bool, scale_dtype: str
) -> None:
    quant = QuantTensor.quantize(weights(), QuantSpec(bits, 16, symmetric, "int", scale_dtype))
    moved = (quant.dequantize() - weights()).abs() / step(quant)
    # a float16 scale is off by a factor of at most 1 +- 2**-11: the ends of the range clip by that
    assert float(moved.max()) <= 0.5 + 2.0 ** (bits - 11) + 1e-4


def test_codes_belong_to_the_stored_scale() -> None:
    quant = QuantTensor.quantize(weights(), QuantSpec(8, 16, True))
    assert quant.params["scale"].dtype == torch.float16
    nearest = (weights() / step(quant)).round().clamp(-128, 127)
    assert torch.equal(quant.codes.float() - 128, nearest)


def test_a_power_of_two_scale_is_the_next_one_above() -> None:
    fixed = QuantTensor.quantize(weights(), QuantSpec(4, 16, True, "int", "power_of_two"))
    free = QuantTensor.quantize(weights(), QuantSpec(4, 16, True, "int", "float32"))
    ratio = fixed.params["scale"] / free.params["scale"]
    assert torch.equal(fixed.params["scale"].log2(), fixed.params["scale"].log2().round())
    assert float(ratio.min()) >= 1
    assert float(ratio.max()) < 2


def test_an_exact_power_of_two_is_kept() -> None:
    spec = QuantSpec(4, PER_CHANNEL, True, "int", "power_of_two")
    assert QuantTensor.quantize(row(1.875, -0.5), spec).params["scale"].tolist() == [[0.25]]


def test_the_zero_of_a_power_of_two_is_that_of_the_scale_itself() -> None:
    # 3 bits, -5 to 4: the exact scale 9 / 7 becomes 2, so zero = round(5 / 2) = 2 (half to even;
    # of the exact scale 4), and codes are round(w / 2) + 2, from 0 up.
    quant = QuantTensor.quantize(row(-5, -2, 4), QuantSpec(3, scale_dtype="power_of_two"))
    assert quant.codes.tolist() == [[0, 1, 4]]
    assert quant.params["zero"].tolist() == [[2]]


@pytest.mark.parametrize("symmetric", [False, True])
def test_groups_below_float16_lose_less_than_its_smallest_step(symmetric: bool) -> None:
    weight = weights() * 1e-8
    quant = QuantTensor.quantize(weight, QuantSpec(4, 16, symmetric))
    assert float((quant.dequantize() - weight).abs().max()) <= 2.0**-25


def test_weights_too_large_for_a_float16_scale_say_what_to_do() -> None:
    with pytest.raises(UserError, match=r"scale_dtype=float16: .*; try scale_dtype=float32"):
        QuantTensor.quantize(weights() * 1e8, QuantSpec(4, 16))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (QuantSpec(1, 64), "bits=1: format=int has 2 to 8 bits; one bit is format=binary"),
        (QuantSpec(9, 64), "bits=9: format=int has 2, 3, 4, 5, 6, 7 or 8 bits"),
        (QuantSpec(2.5, 64), "bits=2.5: format=int has 2, 3, 4, 5, 6, 7 or 8 bits"),
        (QuantSpec(4, -2), "group_size=-2"),
        (QuantSpec(4, 64, scale_dtype="int4"), "scale_dtype=int4: one of float16"),
        (QuantSpec(4, 64, True, zero="real"), "symmetric=true has no zero-point"),
    ],
)
def test_int_refuses_what_it_is_not(spec: QuantSpec, reason: str) -> None:
    assert reason in (formats.get("int").skip(spec) or "")


@pytest.mark.parametrize("scale_dtype", ["float16", "float32"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_equal_those_of_compressed_tensors(
    bits: int, symmetric: bool, scale_dtype: str
) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = weights(256, 512)
    args = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, group_size=32, scale_dtype=getattr(torch, scale_dtype)
    )
    grouped = weight.view(256, 16, 32)
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    theirs = quantize(weight, scale, zero, args)

    ours = QuantTensor.quantize(weight, QuantSpec(bits, 32, symmetric, "int", scale_dtype))
    assert torch.equal(ours.params["scale"].float(), scale.float())
    assert torch.equal(ours.codes.float() - 2 ** (bits - 1), theirs)


# ------------------------------------------------------------------------------ groups


def test_a_ragged_row_ends_in_a_smaller_group_of_its_own() -> None:
    ragged = replace(exact(4, symmetric=True), group_size=64, ragged=True)
    quant = QuantTensor.quantize(weights(8, 100), ragged)
    tail = QuantTensor.quantize(weights(8, 100)[:, 64:], exact(4, symmetric=True))
    assert quant.params["scale"].shape == (8, 2)
    assert torch.equal(quant.params["scale"][:, 1:], tail.params["scale"])
    assert torch.equal(quant.codes[:, 64:], tail.codes)


def test_a_group_that_does_not_divide_names_the_key() -> None:
    with pytest.raises(UserError, match="group_size=48 does not divide in_features=100"):
        QuantTensor.quantize(weights(8, 100), QuantSpec(4, 48))


@pytest.mark.parametrize("group_size", GROUPINGS)
def test_each_group_is_fitted_by_itself(group_size: int) -> None:
    spec = replace(exact(4, symmetric=True), group_size=group_size)
    rows = {PER_TENSOR: weights().view(1, -1), PER_CHANNEL: weights()}
    groups = rows.get(group_size, weights().view(-1, max(1, group_size)))
    largest = QuantTensor.quantize(weights(), spec).params["scale"].flatten() * 7.5
    torch.testing.assert_close(largest, groups.abs().amax(1))
