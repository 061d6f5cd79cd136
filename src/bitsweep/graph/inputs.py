"""Inputs of a layer, quantized inside an ONNX graph exactly as ``activations`` does.

Codes of 8 bits as ``uint8``, the only ones that processors multiply quickly as a left operand: a
symmetric code lies 128 higher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import onnx_ir as ir
import torch

from bitsweep.activations import InputQuantizer
from bitsweep.engines.grid import about_zero
from bitsweep.engines.protocols import input_spec
from bitsweep.formats.int import SMALLEST
from bitsweep.graph.weights import constant
from bitsweep.linear import QuantLinear
from bitsweep.portable import onnx_input
from bitsweep.spec import PER_CHANNEL

HALF = 128


@dataclass(frozen=True)
class Codes:
    """``x = (codes - zero - shift) * scale``; ``codes`` uint8, of the shape of ``x``.

    ``scale`` float32 is one number, or with ``rows`` ``(..., 1)``: one for each row. ``zero`` is
    one uint8; ``shift`` float32 ``(..., 1)`` is what a row's own zero differs from it, or None.
    """

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value
    rows: bool = False
    shift: ir.Value | None = None


def refuses(layer: QuantLinear) -> str | None:
    """Why the inputs of ``layer`` can not be quantized in a graph, or None; None has no inputs."""
    if layer.input_quantizer is None:
        return None
    if not isinstance(layer.input_quantizer, InputQuantizer):
        return "its inputs are quantized by another library"
    return onnx_input(layer.input_quantizer.spec, layer.in_features)


def restored(
    tape: ir.tape.Tape, graph: ir.Graph, x: ir.Value, layer: QuantLinear, name: str
) -> ir.Value:
    """What the codes of ``x`` stand for; ``x`` itself where inputs stay as they are."""
    spec = input_spec(layer)
    if spec is None:
        return x
    group = spec.quant.group_size
    if group != PER_CHANNEL:
        split = constant(graph, f"split.{group}", torch.tensor([0, 0, -1, group]))
        x = tape.op("Reshape", [x, split])
    found = quantized(tape, graph, x, layer, name)
    steps = constant(graph, "one", torch.tensor(1.0)) if found.rows else found.scale
    x = tape.op("DequantizeLinear", [found.codes, steps, found.zero])
    if found.shift is not None:
        x = tape.op("Sub", [x, found.shift])
    if found.rows:
        x = tape.op("Mul", [x, found.scale])
    if group != PER_CHANNEL:
        x = tape.op("Reshape", [x, constant(graph, "joined", torch.tensor([0, 0, -1]))])
    return x


def quantized(
    tape: ir.tape.Tape, graph: ir.Graph, x: ir.Value, layer: QuantLinear, name: str
) -> Codes:
    """The codes of ``x``, each row (last axis) or the whole of it on a scale of its own."""
    spec = input_spec(layer)
    assert spec is not None
    half = constant(graph, "half", torch.tensor(HALF, dtype=torch.uint8))
    if spec.range != "dynamic":
        return _static(tape, graph, x, layer, name)
    if not about_zero(spec.quant) and spec.per == "tensor":
        outputs = tape.op_multi_out("DynamicQuantizeLinear", [x], num_outputs=3)
        return Codes(*outputs)
    axes = constant(graph, "last", torch.tensor([-1]))
    over = [axes] if spec.per == "token" else []
    if about_zero(spec.quant):
        largest = tape.op("ReduceMax", [tape.op("Abs", [x]), *over], {"keepdims": int(bool(over))})
        levels = 127.0 if spec.quant.format == "narrow" else 127.5
        scale = _scale(tape, graph, largest, levels)
        codes = _code(tape, graph, tape.op("Div", [x, scale]), half)
        return Codes(codes, scale, half, rows=bool(over))
    nothing = constant(graph, "nothing", torch.tensor(0.0))
    low = tape.op("Min", [tape.op("ReduceMin", [x, axes], {"keepdims": 1}), nothing])
    high = tape.op("Max", [tape.op("ReduceMax", [x, axes], {"keepdims": 1}), nothing])
    scale = _scale(tape, graph, tape.op("Sub", [high, low]), 255.0)
    middle = constant(graph, "half.float", torch.tensor(float(HALF)))
    exact = tape.op("Sub", [tape.op("Neg", [tape.op("Div", [low, scale])]), middle])
    shift = tape.op("Round", [exact])
    codes = _code(tape, graph, tape.op("Add", [tape.op("Div", [x, scale]), shift]), half)
    return Codes(codes, scale, half, rows=True, shift=shift)


def _static(
    tape: ir.tape.Tape, graph: ir.Graph, x: ir.Value, layer: QuantLinear, name: str
) -> Codes:
    quantizer = cast(InputQuantizer, layer.input_quantizer)
    params = quantizer.params
    scale = constant(graph, f"{name}.input_scale", params["scale"].float().reshape(()))
    stored = params.get("zero", torch.tensor(HALF))
    zero = constant(graph, f"{name}.input_zero", stored.to(torch.uint8).reshape(()))
    return Codes(tape.op("QuantizeLinear", [x, scale, zero]), scale, zero)


def _scale(tape: ir.tape.Tape, graph: ir.Graph, reach: ir.Value, levels: float) -> ir.Value:
    steps = constant(graph, f"levels.{levels:g}", torch.tensor(levels))
    least = constant(graph, "smallest", torch.tensor(SMALLEST["float32"]))
    return tape.op("Max", [tape.op("Div", [reach, steps]), least])


def _code(tape: ir.tape.Tape, graph: ir.Graph, steps: ir.Value, half: ir.Value) -> ir.Value:
    """``round(steps) + 128`` within uint8: the one operator that rounds, clamps and casts."""
    return tape.op("QuantizeLinear", [steps, constant(graph, "one", torch.tensor(1.0)), half])
