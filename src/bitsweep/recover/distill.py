"""Distillation (Hinton, Vinyals & Dean, 2015) of what is not codes, from the full-precision model.

Labels are the teacher's own predictions on the calibration text, so no knowledge of the text itself
is learned: the quantized model is pulled back to where it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitsweep.recover._tuning import Tuning


@dataclass(frozen=True)
class Distill(Tuning):
    """See :class:`Tuning`; the loss is the KL divergence to the teacher."""

    version: ClassVar[int] = 1
    teacher: ClassVar[float] = 1.0
