"""What transforms that keep the function share: what a norm computes, new parameters, the proof.

Everything is asked of the modules themselves, so that no architecture has to be listed. Arithmetic
is float64, what is stored has the dtype that it had.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from bitsweep.models import Model

TOLERANCE = {torch.float32: 1e-4}
"""Of the logits' range: how far a transform that keeps the function may move them."""

COARSE = 0.05
"""The same in 16 bits, whose own rounding moves them further; it still shows a wrong factor."""


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
    probe = copy.deepcopy(norm).to_empty(device="cpu").float()
    n = parameters["weight"].numel()
    x = 1e-3 * (torch.arange(n).mul(1.7).sin() + 0.5).unsqueeze(0)  # eps matters, a mean is there

    def run(weight: float) -> Tensor:
        values = {name: torch.zeros(n) for name in parameters}
        values["weight"] += weight
        output: Tensor = functional_call(probe, values, (x,))
        return output

    with torch.no_grad():
        at_zero, at_one = run(0.0), run(1.0)
    slope, offset = at_one - at_zero, float(bool(at_zero.any()))
    for centres in (False, True):
        y = x - x.mean() if centres else x
        expected = y / (y.square().mean() + eps).sqrt()
        if _close(slope, expected) and _close(at_zero, offset * expected):
            return NormKind(centres, offset, eps)
    return None


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer or embedding, float64, ``(out, in)``."""
    weight = module.get_parameter("weight").detach().double()
    return weight.t() if isinstance(module, Conv1D) else weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias in float64, or None."""
    bias = module._parameters.get("bias")
    return None if bias is None else bias.detach().double()


def put_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a layer a new weight, from ``(out, in)``."""
    put(module, "weight", weight.t() if isinstance(module, Conv1D) else weight)


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Give ``module`` a new parameter in the dtype of its weight; the old one stays as it is."""
    dtype = module.get_parameter("weight").dtype
    setattr(module, name, nn.Parameter(value.to(dtype).contiguous(), requires_grad=False))


def random_tokens(model: Model, windows: int, window: int) -> Tensor:
    """The same int64 ``(windows, window)`` whenever it is asked; of the whole vocabulary."""
    vocabulary = model.module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (windows, window), generator=generator)
    return ids.to(model.device)


@torch.no_grad()
def sample_logits(model: Model) -> Tensor:
    """Logits of a few random tokens, to be compared by :func:`check_unchanged`."""
    ids = random_tokens(model, 2, min(32, model.max_positions))
    logits: Tensor = model.module(input_ids=ids, use_cache=False).logits
    return logits.float()


def check_unchanged(model: Model, before: Tensor, name: str) -> None:
    """Compare ``model`` with the logits that :func:`sample_logits` had before the transform.

    Raises:
        RuntimeError: they moved by more than :data:`TOLERANCE` of their range. That is a structure
            which the transform did not understand, and no number of such a point is kept.
    """
    after = sample_logits(model)
    moved = float((after - before).abs().max() / (before.max() - before.min()))
    allowed = TOLERANCE.get(model.module.dtype, COARSE)
    if not moved <= allowed:
        raise RuntimeError(
            f"transforms=[{name}]: moved the full-precision logits of {model.source.name} by "
            f"{moved:.1e} of their range (at most {allowed:g}); leave it out for this model"
        )
