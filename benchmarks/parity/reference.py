"""GPTQ as plainly as it can be written: the arbiter between implementations.

Float64, one column at a time, no blocks, no Cholesky: each rounded column is eliminated from the
inverse Hessian by one step of Gauss (Frantar & Alistarh, OBC, 2022, equations 2 and 3), which is
what all the triangular factors and lazy updates elsewhere compute in less time.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int,
    damping: float,
    act_order: bool,
    static_groups: bool,
) -> tuple[Tensor, Tensor]:
    """Signed codes int64 ``(out, in)`` and the dequantized weight float64 ``(out, in)``.

    Symmetric, ``scale = 2 * max|w| / (2**bits - 1)`` in float32 from the original weights of a
    group (``static_groups``), or from its weights as they stand when its first column is reached.
    A code is the rounded float32 quotient, as in every implementation: the largest weight of a
    symmetric group lies half-way between two codes, so the quotient's last bit decides.
    """
    half = 2 ** (bits - 1)
    columns = weight.shape[1]
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(columns)
    order = torch.arange(columns)
    if act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    inverse = torch.linalg.inv(damped[order][:, order])
    rest = weight.double()[:, order]
    codes = torch.empty(weight.shape, dtype=torch.int64)
    values = torch.empty(weight.shape, dtype=torch.float64)
    fitted = weight.unflatten(1, (-1, group_size)).abs().amax(-1) / ((2 * half - 1) / 2)
    scale = fitted[:, 0]
    for j in range(columns):
        if static_groups:
            scale = fitted[:, order[j] // group_size]
        elif j % group_size == 0:
            scale = rest[:, j : j + group_size].float().abs().amax(-1) / ((2 * half - 1) / 2)
        code = torch.round(rest[:, j].float() / scale).clamp(-half, half - 1).double()
        codes[:, order[j]], values[:, order[j]] = code.long(), code * scale.double()
        error = (rest[:, j] - code * scale.double()) / inverse[j, j]
        rest[:, j:] -= error[:, None] * inverse[j, j:]
        inverse[j + 1 :, j + 1 :] -= inverse[j + 1 :, j, None] * inverse[j, j + 1 :] / inverse[j, j]
    return codes, values


def objective(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    """``tr((W - Q) H (W - Q)^T)`` in float64: the layer's squared output error."""
    error = weight.double() - quantized.double()
    return float(((error @ hessian.double()) * error).sum())
