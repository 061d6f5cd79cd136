"""Quantized layers in onnxruntime's packed operators.

* ``MatMulNBits``: codes of 2, 4 or 8 bits in blocks of 16 to 256 columns, a float32 scale each.
  ``accuracy_level=1`` keeps inputs floating; 4 quantizes them in the weight's own blocks, which is
  ``input.format=narrow`` (``max / 127``, half to even) to the last code.
* ``MatMulInteger``: uint8 inputs by int8 weights, one scale a row. Behind ``DynamicQuantizeLinear``
  onnxruntime fuses both into ``DynamicQuantizeMatMul``.

A group that is larger than a block is several blocks with the same scale.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from bitsweep.engines import grid
from bitsweep.engines.protocols import input_spec
from bitsweep.graph import inputs, qdq, tracing, weights
from bitsweep.linear import QuantLinear
from bitsweep.models import Model
from bitsweep.packing import pack_rows
from bitsweep.spec import InputSpec
from bitsweep.tensor import QuantTensor

BLOCKS = (256, 128, 64, 32, 16)
DOMAIN = "com.microsoft"
FLOATING, INTEGER = 1, 4
"""``accuracy_level``: inputs in float32, or int8 in blocks."""


def fill(graph: ir.Model, model: Model) -> None:
    """Fill the holes of ``graph``; only where :func:`refuses` said None of each linear layer."""
    graph.opset_imports[DOMAIN] = 1
    tracing.fill(graph, Filler(graph.graph, model).put)


class Filler(qdq.Filler):
    """Fills linear layers with packed operators; embeddings are as in :mod:`bitsweep.graph.qdq`."""

    def linear(self, tape: ir.tape.Tape, x: ir.Value, layer: QuantLinear) -> ir.Value:
        spec = input_spec(layer)
        if spec is None:
            return self.blocks(tape, x, layer.quant, largest(layer.quant), FLOATING)
        if spec.quant.group_size > 0:
            return self.blocks(tape, x, layer.quant, spec.quant.group_size, INTEGER)
        return self.integer(tape, x, layer)

    def blocks(
        self, tape: ir.tape.Tape, x: ir.Value, quant: QuantTensor, block: int, accuracy: int
    ) -> ir.Value:
        """MatMulNBits of blocks of ``block`` columns."""
        name, (rows, columns) = f"{self.owner(quant)}.{block}", quant.shape
        bits, count = int(quant.spec.bits), -(-columns // block)
        arguments = [
            x,
            weights.initializer(
                self.graph,
                f"{name}.codes",
                (rows, count, block * bits // 8),
                ir.DataType.UINT8,
                lambda: pack_rows(padded(weights.unsigned(quant), count * block), bits).view(
                    rows, count, -1
                ),
            ),
            weights.initializer(
                self.graph,
                f"{name}.scale",
                (rows * count,),
                ir.DataType.FLOAT,
                lambda: of_blocks(quant, "scale", block).float().reshape(-1),
            ),
        ]
        if not quant.spec.symmetric:
            arguments.append(
                weights.initializer(
                    self.graph,
                    f"{name}.zero",
                    (rows * -(-count * bits // 8),),
                    ir.DataType.UINT8,
                    lambda: pack_rows(of_blocks(quant, "zero", block), bits).reshape(-1),
                )
            )
        attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block}
        attributes["accuracy_level"] = accuracy
        return tape.op("MatMulNBits", arguments, attributes, domain=DOMAIN)

    def integer(self, tape: ir.tape.Tape, x: ir.Value, layer: QuantLinear) -> ir.Value:
        """MatMulInteger, and the scales of inputs and weights on its int32 sums."""
        quant, name = layer.quant, self.owner(layer.quant)
        rows, columns = quant.shape
        found = inputs.quantized(tape, self.graph, x, layer, name)
        codes = weights.initializer(
            self.graph,
            f"{name}.int8",
            (columns, rows),
            ir.DataType.INT8,
            lambda: weights.centred(weights.unsigned(quant), quant).T,
        )
        arguments = [found.codes, codes, found.zero]
        scale, zero = (value[:, 0] for value in grid.affine(quant))
        shift = zero - 2 ** int(quant.spec.bits - 1)
        if bool(shift.any()):
            arguments.append(weights.constant(self.graph, f"{name}.shift", shift.to(torch.int8)))
        y = tape.op("Cast", [tape.op("MatMulInteger", arguments)], {"to": ir.DataType.FLOAT})
        factor = weights.constant(self.graph, f"{name}.factor", scale.contiguous())
        if not found.rows:
            return tape.op("Mul", [y, tape.op("Mul", [found.scale, factor])])
        if found.shift is not None:
            sums = weights.initializer(
                self.graph,
                f"{name}.sums",
                (rows,),
                ir.DataType.FLOAT,
                lambda: (
                    weights.unsigned(quant).sum(1, dtype=torch.float64).sub_(zero * columns).float()
                ),
            )
            y = tape.op("Sub", [y, tape.op("Mul", [found.shift, sums])])
        return tape.op("Mul", [tape.op("Mul", [y, found.scale]), factor])


def refuses(layer: QuantLinear) -> str | None:
    """Why none of these operators executes ``layer`` exactly as quantized, or None."""
    spec, asked = layer.quant.spec, input_spec(layer)
    reason = inputs.refuses(layer)
    if reason is not None:
        return reason
    if spec.format != "int" or spec.bits not in (2, 4, 8):
        return f"it is {spec}: MatMulNBits has integers of 2, 4 and 8 bits"
    if spec.zero != "integer" and not spec.symmetric:
        return f"its zeros are zero={spec.zero}, and the packed operators have codes there"
    if asked is None:
        if spec.bits != 4:
            return (
                f"{spec.bits:g} bits with floating inputs: onnxruntime would dequantize the whole "
                "matrix at each call; it multiplies 4 bits, or quantized inputs (input.bits=8)"
            )
        if not largest(layer.quant):
            return f"group_size={spec.group_size}: its blocks are 16, 32, 64, 128 or 256"
        return None
    group = asked.quant.group_size
    if group > 0:
        return _blockwise(layer.quant, asked)
    if spec.bits != 8 or not weights.whole(layer.quant):
        return (
            f"it is {spec} with inputs a{asked}: MatMulInteger has 8 bits and one scale a row; "
            "weights in groups go with input.format=narrow and the same input.group_size"
        )
    return None


def _blockwise(quant: QuantTensor, asked: InputSpec) -> str | None:
    """Why MatMulNBits does not quantize inputs as ``asked``, in groups, or None."""
    block, blocks = asked.quant.group_size, BLOCKS[1:4] if quant.spec.bits == 2 else BLOCKS
    if asked.quant.format != "narrow" or asked.per != "token":
        return f"inputs a{asked}: MatMulNBits quantizes them in groups as input.format=narrow"
    if block not in blocks:
        return f"input.group_size={block}: takes {', '.join(map(str, sorted(blocks)))}"
    if weights.size(quant) % block and not weights.whole(quant):
        return (
            f"input.group_size={block} does not divide the weight's group_size="
            f"{quant.spec.group_size}"
        )
    if quant.permutation is not None:
        return "it would group inputs in the order of the weight's columns (act_order)"
    return None


def largest(quant: QuantTensor) -> int:
    """Columns of the largest block that lies within the groups of ``quant``."""
    size = weights.size(quant)
    return BLOCKS[0] if weights.whole(quant) else next((b for b in BLOCKS if size % b == 0), 0)


def of_blocks(quant: QuantTensor, name: str, block: int) -> Tensor:
    """``scale`` or ``zero`` ``(out, blocks)``: of the group in which each block lies."""
    start = torch.arange(0, quant.shape[1], block)
    return weights.params(quant, name)[:, start // weights.size(quant)]


def padded(codes: Tensor, columns: int) -> Tensor:
    """``codes`` with as many columns; what is added meets no input."""
    return F.pad(codes, (0, columns - codes.shape[1]))
