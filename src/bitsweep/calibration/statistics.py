"""What a layer's inputs are reduced to while the calibration text streams by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Statistic(Protocol):
    """What a layer's input is reduced to while it streams by."""

    def __init__(self, features: int, device: torch.device) -> None: ...

    def add(self, inputs: Tensor) -> None:
        """Take in ``inputs`` ``(tokens, features)``."""

    def value(self) -> Tensor:
        """The result, float32."""


class Hessian:
    """``X^T X / tokens`` ``(in, in)`` of a layer's inputs: half the Hessian of its squared error.

    Each batch's product is float32, their sum float64: a long calibration loses nothing. GPTQ's
    code has a factor 2, which neither the codes nor damping relative to the diagonal feel.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self._sum = torch.zeros(features, features, dtype=torch.float64, device=device)
        self._tokens = 0

    def add(self, inputs: Tensor) -> None:
        inputs = inputs.float()
        self._sum += inputs.T @ inputs
        self._tokens += inputs.shape[0]

    def value(self) -> Tensor:
        return (self._sum / max(1, self._tokens)).float()


class Energy:
    """The mean square ``(in,)`` of each column of a layer's inputs: the Hessian's diagonal."""

    def __init__(self, features: int, device: torch.device) -> None:
        self._sum = torch.zeros(features, dtype=torch.float64, device=device)
        self._tokens = 0

    def add(self, inputs: Tensor) -> None:
        self._sum += inputs.float().square().sum(0)
        self._tokens += inputs.shape[0]

    def value(self) -> Tensor:
        return (self._sum / max(1, self._tokens)).float()


class Spaced:
    """At most ``limit`` evenly spaced rows of what streams by: every ``2**k``-th, k growing."""

    def __init__(self, limit: int, features: int, device: torch.device) -> None:
        self._limit = limit
        self._kept = [torch.empty(0, features, device=device)]
        self._step, self._seen = 1, 0

    def add(self, inputs: Tensor) -> None:
        self._kept.append(inputs[-self._seen % self._step :: self._step].float().clone())
        self._seen += len(inputs)
        while sum(map(len, self._kept)) > self._limit:
            self._kept, self._step = [self.value()[::2]], 2 * self._step

    def value(self) -> Tensor:
        """The rows kept, float32 ``(rows, features)``."""
        return torch.cat(self._kept)


def values(found: Mapping[str, Statistic]) -> dict[tuple[str, ...], Tensor]:
    """What each statistic of ``found``, by layer, comes to; by the layers that share it."""
    readers: dict[int, list[str]] = {}
    for name, shared in found.items():
        readers.setdefault(id(shared), []).append(name)
    return {tuple(names): found[names[0]].value() for names in readers.values()}
