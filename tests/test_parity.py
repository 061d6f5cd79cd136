"""Our codes beside those of other implementations, with what is installed here.

The whole comparison, with each peer in an environment of its own, is ``benchmarks/parity``; its
answer is ``results/parity``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitsweep.linear import QuantTensor
from bitsweep.methods.gptq import GPTQ
from bitsweep.spec import QuantSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "parity"))
import reference

SPECS = [
    QuantSpec(bits, group_size, symmetric, scale_dtype=scale_dtype)
    for bits in (2, 3, 4, 8)
    for group_size in (32, 64, -1)
    for symmetric in (True, False)
    for scale_dtype in ("float32", "float16")
]


def weight(rows: int = 64, columns: int = 192) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02


def on_an_int8_grid() -> Tensor:
    """Weights that were rounded before, as stories3M's: ties between codes are common."""
    values = torch.randint(-127, 128, (64, 192), generator=torch.Generator().manual_seed(1))
    return values * 0.00037


def grouped(values: Tensor, spec: QuantSpec) -> Tensor:
    return values.unflatten(1, (-1, values.shape[1] if spec.group_size == -1 else spec.group_size))


@pytest.mark.parametrize("make", [weight, on_an_int8_grid])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec}-{spec.scale_dtype}")
def test_rounding_to_nearest_gives_the_codes_of_compressed_tensors(
    spec: QuantSpec, make: Any
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.quantization import QuantizationArgs, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    values, half = make(), 2 ** (int(spec.bits) - 1)
    args = QuantizationArgs(
        num_bits=int(spec.bits),
        symmetric=spec.symmetric,
        strategy="channel" if spec.group_size == -1 else "group",
        group_size=None if spec.group_size == -1 else spec.group_size,
        scale_dtype=None if spec.scale_dtype == "float32" else spec.scale_dtype,
    )
    groups = grouped(values, spec)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    ours = QuantTensor.quantize(values, spec)
    assert torch.equal(ours.params["scale"].float(), scale.float())
    if not spec.symmetric:
        assert torch.equal(ours.params["zero"].int() - half, zero.int())
    theirs = quantize(values, scale, zero, args, dtype=torch.int8)
    assert torch.equal(ours.codes.int() - half, theirs.int())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec}-{spec.scale_dtype}")
def test_rounding_to_nearest_differs_from_torchao_at_ties_only(spec: QuantSpec) -> None:
    """It multiplies by the reciprocal of the scale: a quotient moves by float32's last bit."""
    pytest.importorskip("torchao", reason="torchao is not installed; see benchmarks/parity")
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        quantize_affine,
    )

    values, half = weight(), 2 ** (int(spec.bits) - 1)
    size = (1, values.shape[1] if spec.group_size == -1 else spec.group_size)
    mapping = MappingType.SYMMETRIC if spec.symmetric else MappingType.ASYMMETRIC
    scale, zero = choose_qparams_affine(
        values,
        mapping,
        size,
        torch.int8,
        -half,
        half - 1,
        scale_dtype=getattr(torch, spec.scale_dtype),
        zero_point_dtype=torch.int8,
        keepdim=True,
    )
    ours = QuantTensor.quantize(values, spec)
    theirs = quantize_affine(values, size, scale.float(), zero, torch.int8, -half, half - 1)
    assert torch.equal(ours.params["scale"].float(), scale.float())
    quotient = (grouped(values, spec).double() / scale.double().unsqueeze(-1)).flatten(1)
    from_tie = (quotient - quotient.floor() - 0.5).abs()
    differ = ours.codes.int() - half != theirs.int()
    assert bool((from_tie[differ] < 2**-22 * quotient[differ].abs().clamp(min=1)).all())


def layer() -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of correlated inputs."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(192, 192, generator=random) * torch.linspace(0.3, 3, 192)
    inputs = torch.randn(1000, 192, generator=random) @ mix
    return weight(), inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_gives_the_codes_of_the_plain_reference_on_the_same_grid(
    bits: int, act_order: bool
) -> None:
    values, hessian = layer()
    codes, dense = reference.gptq(values, hessian, bits, 64, 0.01, act_order, static_groups=True)
    spec = QuantSpec(bits, 64, True, scale_dtype="float32")
    ours = GPTQ(act_order=act_order, static_groups=True).quantize(values, hessian, spec)
    equal = (ours.codes.long() - 2 ** (bits - 1) == codes).double().mean()
    one = reference.objective(values, ours.dequantize(), hessian)
    assert float(equal) >= 0.999
    assert one == pytest.approx(reference.objective(values, dense, hessian), rel=1e-3)


@pytest.mark.parametrize("act_order", [False, True])
def test_static_groups_are_fitted_to_the_original_weights_in_either_order(act_order: bool) -> None:
    """llm-compressor's grid, with and without its actorder."""
    values, hessian = layer()
    spec = QuantSpec(4, 64, True)
    ours = GPTQ(act_order=act_order, static_groups=True).quantize(values, hessian, spec)
    assert torch.equal(ours.params["scale"], QuantTensor.quantize(values, spec).params["scale"])
