"""Fine-tuning of what is not codes, by the next token of the calibration text.

Scales alone are what PEQA trains (Kim et al., 2023), norms alone Norm Tweaking (Li et al., 2023).
The quantized model moves towards the calibration text, whose domain the row names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitsweep.recover._tuning import Tuning


@dataclass(frozen=True)
class Finetune(Tuning):
    """See :class:`Tuning`; the loss is the cross entropy of the next token."""

    version: ClassVar[int] = 1
    teacher: ClassVar[float] = 0.0
