"""Round-to-nearest beside compressed-tensors and torchao: scales, zeros and codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor

Row = dict[str, Any]

PEERS = ("compressed_tensors", "torchao")


def _grid(bits: int, group_size: int, symmetric: bool, scale_dtype: str) -> dict[str, Any]:
    groups = "" if group_size == -1 else f"g{group_size}"
    return {
        "name": f"w{bits}{groups}-{'sym' if symmetric else 'asym'}-{scale_dtype}",
        "bits": bits,
        "group_size": group_size,
        "symmetric": symmetric,
        "scale_dtype": scale_dtype,
    }


GRIDS = [
    _grid(bits, group_size, symmetric, scale_dtype)
    for scale_dtype in ("float32", "float16")
    for bits in (4, 8)
    for group_size in (32, 64, -1)
    for symmetric in (True, False)
]


def spec_of(grid: Row) -> QuantSpec:
    return QuantSpec(
        grid["bits"], grid["group_size"], grid["symmetric"], scale_dtype=grid["scale_dtype"]
    )


def compare(work: Path) -> list[Row]:
    """A row for each grid and peer: how many scales, zeros and codes differ, and why."""
    weights = load_file(work / "in" / "weights.safetensors")
    rows: list[Row] = []
    for grid in GRIDS:
        theirs = {
            peer: load_file(work / peer / f"rtn-{grid['name']}.safetensors") for peer in PEERS
        }
        for peer in PEERS:
            rows.append(_against(peer, grid, weights, theirs))
    return rows


def _against(
    peer: str, grid: Row, weights: dict[str, Tensor], theirs: dict[str, dict[str, Tensor]]
) -> Row:
    half, spec = 2 ** (grid["bits"] - 1), spec_of(grid)
    row: Row = {"grid": grid["name"], "against": peer}
    row |= dict.fromkeys(("codes", "scales_differ", "zeros_differ", "codes_differ"), 0)
    row |= {"off_a_tie": 0, "differ_by_its_operations": 0, "peers_differ": 0}
    for name, weight in weights.items():
        quant = QuantTensor.quantize(weight, spec)
        ours = quant.codes.int() - half
        other = theirs[peer]
        codes = other[f"{name}/codes"].int()
        scale = other[f"{name}/scale"].float().view(weight.shape[0], -1)
        row["codes"] += codes.numel()
        row["scales_differ"] += _count(quant.params["scale"].float() != scale)
        if not grid["symmetric"]:
            zero = other[f"{name}/zero"].int().view(weight.shape[0], -1)
            row["zeros_differ"] += _count(quant.params["zero"].int() - half != zero)
        differ = ours != codes
        row["codes_differ"] += _count(differ)
        row["off_a_tie"] += _count(differ & ~_near_tie(weight, quant))
        if peer == "torchao":
            row["differ_by_its_operations"] += _count(_as_torchao(weight, quant) != codes)
        else:
            row["differ_by_its_operations"] += _count(differ)
        each = [theirs[p][f"{name}/codes"].int() for p in PEERS]
        row["peers_differ"] += _count(each[0] != each[1])
    return row


def _count(mask: Tensor) -> int:
    return int(mask.sum())


def _as_torchao(weight: Tensor, quant: QuantTensor) -> Tensor:
    """Signed codes from our scales and zeros by torchao's operations, where ours are others.

    It multiplies by the reciprocal of the scale, and adds the zero after rounding.
    """
    half = 2 ** (int(quant.spec.bits) - 1)
    scale, zero = _grid_of(quant)
    rounded = torch.round(_grouped(weight, scale) * (1.0 / scale.unsqueeze(-1)))
    return (rounded + zero.unsqueeze(-1)).clamp(-half, half - 1).int().flatten(1)


def _near_tie(weight: Tensor, quant: QuantTensor) -> Tensor:
    """Where ``weight / scale``, in float64, is a half-integer as far as float32 can tell.

    That is within two units in the last place of the larger of quotient and zero, which are added.
    """
    scale, zero = _grid_of(quant)
    quotient = _grouped(weight, scale).double() / scale.double().unsqueeze(-1)
    distance = (quotient - torch.floor(quotient) - 0.5).abs()
    size = torch.maximum(quotient.abs(), zero.double().abs().unsqueeze(-1)).clamp(min=1)
    return (distance <= 2 * 2.0**-23 * size).flatten(1)


def _grid_of(quant: QuantTensor) -> tuple[Tensor, Tensor]:
    """Scales and signed zeros, float32 ``(out, groups)``."""
    scale = quant.params["scale"].float()
    if quant.spec.symmetric:
        return scale, torch.zeros_like(scale)
    return scale, quant.params["zero"].float() - 2 ** (int(quant.spec.bits) - 1)


def _grouped(weight: Tensor, scale: Tensor) -> Tensor:
    return weight.unflatten(1, (scale.shape[1], -1))
