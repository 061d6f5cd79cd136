"""Random weights in a model's shape: quick to make, the same on every machine, in place.

Matrices are normal with the configuration's ``initializer_range``, norms' weights are 1 and biases
0, as a training begins. One pool of :data:`POOL` numbers is drawn, and each matrix is a stretch of
it, begun at a place of its own and repeated until the matrix is full. The pool's size is prime, so
that no two rows of a matrix are alike; a billion fresh numbers would take half a minute and change
neither a time nor a size. Codes of such weights use the whole range, as those of trained ones do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

POOL = 4_194_301
"""The largest prime below 2**22."""

SEED = 0


def draw(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model of ``config`` on the CPU, each tensor made once, in ``dtype``."""
    with no_init_weights():  # memory is claimed, and touched only below
        module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    module.tie_weights()
    std = float(config.get_text_config(decoder=True).initializer_range)
    generator = np.random.Generator(np.random.PCG64(SEED))
    pool = torch.from_numpy(generator.standard_normal(POOL, dtype=np.float32)).mul_(std).to(dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():  # a tied one comes once
            if parameter.ndim > 1:
                fill(parameter, pool, int(generator.integers(POOL)))
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
    return module.eval().requires_grad_(False)


def fill(tensor: Tensor, pool: Tensor, begin: int) -> None:
    """Write to contiguous ``tensor`` the numbers of ``pool`` ``(n,)`` from ``begin`` on, cyclic."""
    rest = tensor.view(-1)
    while rest.numel():
        part = pool[begin : begin + rest.numel()]
        rest[: part.numel()] = part
        rest, begin = rest[part.numel() :], 0
