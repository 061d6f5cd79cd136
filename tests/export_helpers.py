"""A quantized tiny model, and its way to a folder: what tests of export share."""

from __future__ import annotations

from pathlib import Path

from bitsweep import activations
from bitsweep.calibration import Calibration
from bitsweep.export.folder import Origin, Written
from bitsweep.export.folder import write as write_folder
from bitsweep.methods.rtn import RTN
from bitsweep.models import Model
from bitsweep.spec import InputSpec, LayerSpec, Plan, QuantSpec

NO_TEXT: Calibration = None  # type: ignore[assignment]  # rtn and dynamic inputs look at none


def quantize(
    model: Model, spec: QuantSpec, inputs: InputSpec | None = None, ends: bool = False
) -> Model:
    """A copy of ``model``, the linear layers of its blocks rounded; ``ends``: all layers."""
    layers = {
        name: LayerSpec(spec, None if layer.block is None else inputs)
        for name, layer in model.layers.items()
        if ends or layer.block is not None
    }
    plan = Plan(layers)
    quantized = RTN()(model.copy(), plan, NO_TEXT)
    activations.install(quantized, plan, NO_TEXT)
    return quantized


def write(model: Model, name: str, folder: Path, limit: int = 5 * 10**9) -> Written:
    return write_folder(model, name, folder, Origin("bitsweep run", "0" * 64, "rtn"), limit)
