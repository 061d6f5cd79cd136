"""What a norm computes, asked of the module itself, so that no architecture has to be listed."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class NormKind:
    """``(weight + offset) n(x) + bias``: with ``centres`` a LayerNorm's n, else an RMS norm's."""

    centres: bool
    offset: float
    eps: float


def norm_kind(norm: nn.Module) -> NormKind | None:
    """What ``norm`` computes, found by trying it; None where it is neither of the two kinds.

    Gemma's norms have ``offset`` 1. Works on the meta device too.
    """
    eps = next((v for k, v in vars(norm).items() if "eps" in k and isinstance(v, float)), None)
    parameters = dict(norm.named_parameters())
    if eps is None or not {"weight"} <= parameters.keys() <= {"weight", "bias"}:
        return None
    x, at_zero = _probe(norm), _output(norm, 0.0)
    slope, offset = _output(norm, 1.0) - at_zero, norm_offset(norm)
    for centres in (False, True):
        y = x - x.mean() if centres else x
        expected = y / (y.square().mean() + eps).sqrt()
        if _close(slope, expected) and _close(at_zero, offset * expected):
            return NormKind(centres, offset, eps)
    return None


def norm_offset(norm: nn.Module) -> float:
    """1 for norms that multiply by ``1 + weight`` (Gemma's), else 0."""
    return float(bool(_output(norm, 0.0).any()))


def _probe(norm: nn.Module) -> Tensor:
    """An input ``(1, n)`` so small that eps matters, whose mean is not 0."""
    n = norm.get_parameter("weight").numel()
    return 1e-3 * (torch.arange(n).mul(1.7).sin() + 0.5).unsqueeze(0)


@torch.no_grad()
def _output(norm: nn.Module, weight: float) -> Tensor:
    """What ``norm`` makes of :func:`_probe` where all its weights are ``weight``, biases 0."""
    x = _probe(norm)
    values = {name: torch.zeros(x.shape[1]) for name, _ in norm.named_parameters()}
    values["weight"] += weight
    probe = copy.deepcopy(norm).to_empty(device="cpu").float()
    output: Tensor = functional_call(probe, values, (x,))
    return output


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)
