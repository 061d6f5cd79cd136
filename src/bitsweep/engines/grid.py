"""What every packed kernel asks of a quantized weight: the affine grid of each group, in full."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor


def refuses(spec: QuantSpec, bits: int) -> str | None:
    """Why ``spec`` is not the uniform grid of exactly ``bits`` bits that a kernel reads, or None.

    Fewer bits would fit into the same container, but then more bytes run than the point stores,
    and the time would be that of another point.
    """
    if spec.format != "int":
        return f"its codes are format={spec.format}, not integers"
    if spec.bits != bits:
        return f"it has {spec.bits:g} bits, not {bits}"
    return None


def about_zero(spec: QuantSpec) -> bool:
    """Whether codes lie about 0, with no zero-point."""
    return spec.symmetric or spec.format == "narrow"


def grouped(spec: QuantSpec, columns: int) -> str | None:
    """Why rows of ``columns`` weights do not have one scale each (or all the same), or None."""
    if spec.groups(columns) > 1:
        return f"it has groups of {spec.group_size}, not one scale for each output channel"
    return None


def affine(weight: QuantTensor) -> tuple[Tensor, Tensor]:
    """Scale and zero of ``w = (code - zero) * scale``, float32, both ``(out, groups)``.

    Codes are stored from 0 up, so a symmetric grid has its zero at ``2^(bits - 1)``. A scale that
    all rows share (per tensor) is repeated for each of them.
    """
    rows, columns = weight.shape
    shape = (rows, weight.spec.groups(columns))
    scale = weight.params["scale"].float().expand(shape)
    if weight.spec.symmetric:
        return scale, torch.full_like(scale, 2 ** (weight.spec.bits - 1))
    return scale, weight.params["zero"].float().expand(shape)
