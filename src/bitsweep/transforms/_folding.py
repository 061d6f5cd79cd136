"""What transforms that keep the function share: new parameters, and the proof.

Arithmetic is float64, what is stored has the dtype that it had.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitsweep.models import Model

TOLERANCE = {torch.float32: 1e-4}
"""Of the logits' range: how far a transform that keeps the function may move them."""

COARSE = 0.05
"""The same in 16 bits, whose own rounding moves them further; it still shows a wrong factor."""


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
