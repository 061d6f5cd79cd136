"""The base of modules that hold packed codes in place of a layer of a Hugging Face model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COMPUTE = torch.bfloat16
"""What torch's packed CPU kernels are fast with; with float32 they are 10 to 80 times slower."""


class Packed(nn.Module):
    """A layer whose weight exists as packed codes only.

    transformers asks some layers for ``weight.dtype`` and ``weight.device``. It gets an empty
    tensor: who multiplies by it fails, instead of silently computing with a dense weight.
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0, dtype=COMPUTE), persistent=False)
