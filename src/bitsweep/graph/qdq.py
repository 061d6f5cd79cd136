"""Quantized layers in ONNX's own operators: ``DequantizeLinear``, then ``MatMul`` or ``Gather``.

Weights lie as ``(in, out)``, groups along axis 0: the form in which onnxruntime finds its 4-bit
kernel and which TensorRT reads. Scales keep the dtype in which they are stored; a ``Cast`` makes
them float32, which runtimes fold when they load the graph. An embedding keeps ``(rows, width)``:
rows of codes are gathered and then dequantized, so that no runtime makes the whole table dense.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from bitsweep.graph import tracing, weights
from bitsweep.linear import QuantEmbedding, QuantLinear
from bitsweep.models import Model
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, QuantSpec
from bitsweep.tensor import QuantTensor

WIDTHS = (4, 8)


def fill(graph: ir.Model, model: Model) -> None:
    """Fill the holes of ``graph``; only where :func:`refuses` said None of each layer."""
    filler = Filler(graph.graph, model)
    tracing.fill(graph, filler.put)


class Filler:
    """Puts layers into one graph; a :class:`QuantTensor` in two layers becomes one initializer."""

    def __init__(self, graph: ir.Graph, model: Model) -> None:
        self.graph, self.model = graph, model
        self.names: dict[int, str] = {}

    def put(self, hole: ir.Node, name: str) -> ir.Value:
        layer = self.model.get(name)
        assert isinstance(layer, QuantLinear | QuantEmbedding)
        tape = ir.tape.Tape()
        x = hole.inputs[0]
        assert x is not None
        own = self.names.setdefault(id(layer.quant), name)
        tied = (
            sum(getattr(m, "quant", None) is layer.quant for m in self.model.module.modules()) > 1
        )
        if isinstance(layer, QuantEmbedding):
            y = self._lookup(tape, x, layer.quant, own)
        else:
            y = self._linear(tape, x, layer.quant, own, rows_first=tied)
        self.graph.insert_before(hole, tape.nodes)
        return y

    def _linear(
        self, tape: ir.tape.Tape, x: ir.Value, quant: QuantTensor, name: str, rows_first: bool
    ) -> ir.Value:
        if quant.permutation is not None:
            x = tape.op("Gather", [x, self._order(quant, name)], {"axis": -1})
        scale, zero = self._params(tape, quant, name, rows_first)
        codes = self._codes(quant, name, rows_first)
        w = tape.op("DequantizeLinear", [codes, scale, zero], along(quant, 1 if rows_first else 0))
        if rows_first:
            w = tape.op("Transpose", [w], {"perm": [1, 0]})
        return tape.op("MatMul", [x, w])

    def _lookup(self, tape: ir.tape.Tape, ids: ir.Value, quant: QuantTensor, name: str) -> ir.Value:
        scale, zero = self._params(tape, quant, name, True)
        codes = self._codes(quant, name, True)
        w = tape.op("DequantizeLinear", [codes, scale, zero], along(quant, 1))
        y = tape.op("Gather", [w, ids], {"axis": 0})
        if quant.permutation is not None:
            back = torch.argsort(quant.permutation)
            order = weights.initializer(
                self.graph, f"{name}.order", tuple(back.shape), ir.DataType.INT64, lambda: back
            )
            y = tape.op("Gather", [y, order], {"axis": -1})
        return y

    def _codes(self, quant: QuantTensor, name: str, rows_first: bool) -> ir.Value:
        kinds = weights.SIGNED if quant.spec.symmetric else weights.UNSIGNED
        rows, columns = quant.shape
        shape = (rows, columns) if rows_first else (columns, rows)

        def make() -> torch.Tensor:
            codes = weights.codes(quant)
            return codes if rows_first else codes.T

        return weights.initializer(
            self.graph, f"{name}.codes", shape, kinds[int(quant.spec.bits)], make
        )

    def _params(
        self, tape: ir.tape.Tape, quant: QuantTensor, name: str, rows_first: bool
    ) -> tuple[ir.Value, ir.Value | None]:
        """Scale as float32 and zero, None of a symmetric grid; one row where there is one group."""
        spec, (rows, columns) = quant.spec, quant.shape
        groups = spec.groups(columns)
        whole = spec.group_size in (PER_CHANNEL, PER_TENSOR)
        shape = (rows,) if whole else (rows, groups) if rows_first else (groups, rows)

        def made(which: str) -> torch.Tensor:
            values = weights.params(quant, which)
            return values.reshape(-1) if whole else values if rows_first else values.T

        stored = quant.params["scale"].dtype
        half = stored == torch.float16
        kind = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
        scale = weights.initializer(
            self.graph, f"{name}.scale", shape, kind, lambda: made("scale").to(stored)
        )
        if half:
            scale = tape.op("Cast", [scale], {"to": ir.DataType.FLOAT})
        if spec.symmetric:
            return scale, None
        zero = weights.initializer(
            self.graph,
            f"{name}.zero",
            shape,
            weights.UNSIGNED[int(spec.bits)],
            lambda: made("zero"),
        )
        return scale, zero

    def _order(self, quant: QuantTensor, name: str) -> ir.Value:
        order = quant.permutation
        assert order is not None
        return weights.initializer(
            self.graph, f"{name}.order", tuple(order.shape), ir.DataType.INT64, lambda: order
        )


def along(quant: QuantTensor, axis: int) -> dict[str, int]:
    """Attributes of a DequantizeLinear whose groups run along ``axis``.

    One scale a row runs along the other axis, of the rows.
    """
    if quant.spec.group_size in (PER_CHANNEL, PER_TENSOR):
        return {"axis": 1 - axis}
    return {"axis": axis, "block_size": quant.spec.group_size}


def refuses(spec: QuantSpec) -> str | None:
    """Why ONNX's DequantizeLinear can not say ``spec``, naming what, or None."""
    if spec.format != "int":
        return f"format={spec.format}: ONNX's DequantizeLinear knows integers on a uniform grid"
    if spec.bits not in WIDTHS:
        return f"bits={spec.bits:g}: ONNX stores integers of 4 and 8 bits"
    if spec.zero != "integer" and not spec.symmetric:
        return f"zero={spec.zero}: ONNX's zero points are integers of the codes' own width"
    return None
