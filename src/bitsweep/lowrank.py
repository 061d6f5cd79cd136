"""Low-rank approximation of a matrix, and the modules that hold one.

For inputs X with ``H = X X^T / tokens`` the matrix of rank r with the least squared error of the
outputs, ``tr((W - A) H (W - A)^T)``, is ``A = U_r U_r^T W`` with the r leading eigenvectors U_r of
``W H W^T``: the outputs' principal components. It is what SVD-LLM (Wang, Zheng, Wan & Zhang, 2024)
gets from the SVD of ``W S``, ``H = S S^T``, cut off and multiplied by ``S^-1``, and QERA (Zhang,
Cheng, Constantinides & Zhao, 2024) for a quantization error; written like this nothing is inverted.
With ``H = I`` it is the truncated SVD.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DAMPING = 1e-6
"""Share of H's mean diagonal that every direction has at least: where the text says nothing of the
inputs, ranks that are left go to the larger weights."""


@torch.no_grad()
def factorize(matrix: Tensor, rank: int, hessian: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``up`` ``(out, r)`` and ``down`` ``(r, in)``, float32, with ``up @ down`` near ``matrix``.

    ``hessian``: ``H`` ``(in, in)``, or its diagonal ``(in,)``, or None for the identity. ``r`` is
    ``rank``, or less where the matrix has no more. Column k of ``up`` and row k of ``down`` are of
    one length, which 16 bits and shared scales hold best on any input (SVD-LLM's code gives each
    the square root of the singular value of ``W S``; for ``H = I`` that is the same). In float64.
    """
    matrix = matrix.double()
    weighted = matrix
    if hessian is not None:
        weighted = _weighted(matrix, hessian.double())
    left = torch.linalg.svd(weighted, full_matrices=False)[0][:, :rank]
    right = left.T @ matrix
    size = right.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    return (left * size).float(), (right / size.unsqueeze(1)).float()


def _weighted(matrix: Tensor, hessian: Tensor) -> Tensor:
    """``matrix @ S`` with ``S S^T = H``."""
    if hessian.ndim == 1:
        return matrix * hessian.clamp(min=DAMPING * float(hessian.mean())).sqrt()
    values, vectors = torch.linalg.eigh(hessian)
    return matrix @ (vectors * values.clamp(min=DAMPING * float(values.mean())).sqrt())


class Factors(nn.Module):
    """Two linear layers in place of one: ``y = up(down(x))``; ``up`` has the bias."""

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.down = down
        self.up = up

    @property
    def weight(self) -> Tensor:
        """Their product ``(out, in)``: architectures read its dtype and device in places."""
        up, down = self.up.weight, self.down.weight
        assert isinstance(up, Tensor)
        assert isinstance(down, Tensor)
        return up @ down

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.up(self.down(input))
        return output


class Correction(nn.Module):
    """``x -> x @ down.T @ up.T``, stored in float16; a :class:`QuantLinear` adds it."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.up = nn.Parameter(up.to(torch.float16), requires_grad=False)
        self.down = nn.Parameter(down.to(torch.float16), requires_grad=False)

    def weight(self) -> Tensor:
        """What is added to the layer's weight ``(out, in)``, float32."""
        return self.up.float() @ self.down.float()

    def forward(self, input: Tensor) -> Tensor:
        inner = F.linear(input, self.down.to(input.dtype))
        return F.linear(inner, self.up.to(input.dtype))
