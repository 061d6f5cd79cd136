"""What probes that decode share: the tokens, and when a model has no room for them."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsweep.intervals import SEED
from bitsweep.models import Model


def tokens(model: Model, batch: int, length: int) -> Tensor:
    """The same tokens ``(batch, length)`` for every point of a vocabulary."""
    generator = torch.Generator().manual_seed(SEED)
    vocabulary = model.module.config.get_text_config(decoder=True).vocab_size
    return torch.randint(vocabulary, (batch, length), generator=generator).to(model.device)


def too_long(model: Model, prompt: int, new: int) -> str | None:
    """Why ``new`` tokens behind ``prompt`` do not fit into the context of ``model``, or None."""
    if prompt + new <= model.max_positions:
        return None
    return (
        f"a prompt of {prompt} and {new} tokens are longer than the context of "
        f"{model.max_positions}"
    )
