"""Random rotations as products of small factors, so that applying one costs little.

``R = diag(signs) (F1 x F2 x ...)`` with Kronecker factors ``F``, normalised Hadamard matrices: a
row of ``n`` numbers is multiplied in ``n (n1 + n2 + ...)`` steps instead of ``n^2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 64
"""Rows of a power-of-two factor: above it, two factors are faster than one."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal ``R`` ``(n, n)``: ``signs`` ``(n,)``, ``factors`` square, all float64."""

    signs: Tensor
    factors: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """``x R`` for ``x`` float64 ``(..., n)``."""
        y = x * self.signs.to(x.device)
        after = y.shape[-1]
        for factor in self.factors:
            after //= len(factor)
            parts = y.reshape(-1, len(factor), after)  # the factor's axis, and those still to come
            y = torch.einsum("bia,ij->bja", parts, factor.to(x.device))
        return y.reshape(x.shape)


def random_rotation(n: int, matrix: str, generator: torch.Generator) -> Rotation:
    """A rotation of ``n`` channels: ``hadamard`` with random signs, or ``orthogonal``.

    ``orthogonal`` is uniform over all rotations (the Q of a Gaussian matrix, signs of R's diagonal
    moved into it). It also stands in where no Hadamard matrix of that order can be built here.
    """
    orders = hadamard_orders(n) if matrix == "hadamard" else None
    if orders is None:
        gaussian = torch.randn(n, n, dtype=torch.float64, generator=generator)
        q, r = torch.linalg.qr(gaussian)
        return Rotation(torch.ones(n, dtype=torch.float64), (q * r.diagonal().sign(),))
    signs = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    return Rotation(signs, tuple(hadamard(order) / math.sqrt(order) for order in orders))


def hadamard_orders(n: int) -> list[int] | None:
    """Orders of Hadamard matrices whose Kronecker product has order ``n``; None: none known here.

    ``n = m 2^k`` with the smallest ``m`` that Paley's constructions have: 1536 is 12 x 64 x 2.
    """
    twos = (n & -n).bit_length() - 1
    for k in range(twos, -1, -1):
        m = n >> k
        if m == 1 or _paley(m) is not None:
            step = LARGEST.bit_length() - 1
            sizes = [2 ** min(step, k - done) for done in range(0, k, step)]
            return [m, *sizes] if m > 1 else sizes or [1]
    return None


def hadamard(n: int) -> Tensor:
    """A Hadamard matrix of order ``n``, entries 1 and -1: Sylvester's or one of Paley's.

    Raises:
        ValueError: neither has that order.
    """
    if n & (n - 1) == 0:
        h = torch.ones(1, 1, dtype=torch.float64)
        while len(h) < n:
            h = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), h)
        return h
    kind = _paley(n)
    if kind is None:
        raise ValueError(f"no Hadamard matrix of order {n} is known here")
    q = n - 1 if kind == 1 else n // 2 - 1
    core = _jacobsthal(q)
    border = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    border[0, 1:] = 1
    border[1:, 0] = -1 if kind == 1 else 1
    border[1:, 1:] = core
    one = torch.eye(q + 1, dtype=torch.float64)
    if kind == 1:
        return one + border
    plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(border, plus) + torch.kron(one, minus)


def _paley(n: int) -> int | None:
    """1 where ``n - 1`` is a prime of the form 4k + 3, 2 where ``n / 2 - 1`` is one of 4k + 1."""
    if n % 4:
        return None
    if _is_prime(n - 1):
        return 1  # n - 1 = 3 modulo 4
    half = n // 2 - 1
    return 2 if half % 4 == 1 and _is_prime(half) else None


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % p for p in range(2, math.isqrt(q) + 1))


def _jacobsthal(q: int) -> Tensor:
    """``chi(i - j)`` ``(q, q)``: 1 where the difference is a square modulo q, -1 where not."""
    chi = torch.full((q,), -1.0, dtype=torch.float64)
    chi[[i * i % q for i in range(1, q)]] = 1
    chi[0] = 0
    index = torch.arange(q)
    return chi[(index.unsqueeze(1) - index) % q]
