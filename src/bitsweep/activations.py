"""Inputs of layers, quantized before they are multiplied."""

from __future__ import annotations

from bitsweep.calibration import Calibration
from bitsweep.models import Model
from bitsweep.spec import Plan


def skip(plan: Plan, model: Model) -> str | None:
    """Why the inputs that ``plan`` asks for cannot be made (with the key to change), or None."""
    if any(layer.input is not None for layer in plan.layers.values()):
        return "input.bits: inputs stay at 16 bits for now"
    return None


def install(model: Model, plan: Plan, calibration: Calibration) -> None:
    """Give each layer of ``model``, quantized, the input quantizer that ``plan`` names."""
