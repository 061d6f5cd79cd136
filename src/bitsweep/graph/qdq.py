"""Quantized layers in ONNX's own operators: ``DequantizeLinear``, then ``MatMul``.

A weight lies as ``(in, out)``, groups along axis 0: the form in which onnxruntime finds its packed
kernel and which TensorRT reads. Symmetric codes are signed, without a zero point. Scales keep the
dtype in which they are stored; a ``Cast``, which runtimes fold when they load the graph, makes them
float32.

An embedding lies as ``(rows, width)``, and the rows asked for are dequantized after they were
gathered, for no runtime here does better with a dequantized table than to make all of it. No
runtime gathers 4-bit integers: there a row is bytes, whose halves become numbers in the graph. A
matrix that is embedding and head at once lies as an embedding; of 4 bits it has a second name at
the same place of the file (:func:`bitsweep.graph.files.write`).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch

from bitsweep import kv
from bitsweep.engines.protocols import input_spec, quantized_layers
from bitsweep.graph import inputs, tracing, weights
from bitsweep.library import LibraryLinear
from bitsweep.linear import QuantEmbedding, Quantized, QuantLinear
from bitsweep.models import Model
from bitsweep.portable import onnx_fused, onnx_weight
from bitsweep.spec import LayerSpec
from bitsweep.tensor import QuantTensor

Made = Callable[[], torch.Tensor]


def fill(graph: ir.Model, model: Model) -> None:
    """Fill the holes of ``graph``; only after :func:`refuses` said None of ``model``."""
    tracing.fill(graph, Filler(graph.graph, model).put)


def refuses(model: Model) -> str | None:
    """What of ``model`` ONNX's own operators can not say, naming the first layer, or None."""
    if kv.installed(model) or (model.plan is not None and model.plan.kv is not None):
        return "the graph has a cache of floating numbers, and the point's is quantized (kv)"
    layers = quantized_layers(model)
    for name, layer in layers.items():
        if isinstance(layer, LibraryLinear):
            return f"{name}: another library's layer, of which a graph has no operator"
        if getattr(layer, "correction", None) is not None:
            return f"{name}: a correction of low rank beside its codes (recover=low_rank)"
    for name, layer in layers.items():
        reason = onnx_weight(layer.quant.spec)
        if reason is None and isinstance(layer, QuantLinear):
            spec = LayerSpec(layer.quant.spec, input_spec(layer))
            reason = inputs.refuses(layer) or onnx_fused(spec, layer.in_features)
        if reason is not None:
            return f"{name}: {reason}"
    return None


class Filler:
    """Puts layers into one graph; a :class:`QuantTensor` of two layers becomes one initializer."""

    def __init__(self, graph: ir.Graph, model: Model) -> None:
        self.graph, self.model = graph, model
        self.owners: dict[int, list[str]] = {}
        for name, module in model.module.named_modules():
            if isinstance(module, Quantized):
                self.owners.setdefault(id(module.quant), []).append(name)

    def put(self, hole: ir.Node, name: str) -> ir.Value:
        """The output of layer ``name`` instead of the hole's."""
        layer, x = self.model.get(name), hole.inputs[0]
        assert x is not None
        tape = ir.tape.Tape()
        if isinstance(layer, QuantEmbedding):
            y = self.lookup(tape, x, layer.quant)
        else:
            assert isinstance(layer, QuantLinear)
            if layer.quant.permutation is not None:
                x = tape.op("Gather", [x, self.order(layer.quant, back=False)], {"axis": -1})
            y = self.linear(tape, x, layer)
        self.graph.insert_before(hole, tape.nodes)
        return y

    def owner(self, quant: QuantTensor) -> str:
        """The layer that names the initializers of ``quant``."""
        return self.owners[id(quant)][0]

    def linear(self, tape: ir.tape.Tape, x: ir.Value, layer: QuantLinear) -> ir.Value:
        """``x @ w.T``, the columns of ``x`` in the order of the groups."""
        quant = layer.quant
        x = inputs.restored(tape, self.graph, x, layer, self.owner(quant))
        tied = len(self.owners[id(quant)]) > 1
        arguments = [self.codes(quant, rows_first=tied), *self.grid(tape, quant, rows_first=tied)]
        along = 1 if tied else 0
        attributes = {"axis": along, "block_size": quant.spec.group_size}
        if weights.single(quant):
            attributes = {"axis": 1 - along}
        w = tape.op("DequantizeLinear", arguments, attributes)
        if tied:
            w = tape.op("Transpose", [w], {"perm": [1, 0]})
        return tape.op("MatMul", [x, w])

    def lookup(self, tape: ir.tape.Tape, ids: ir.Value, quant: QuantTensor) -> ir.Value:
        """Rows ``ids`` ``(batch, new)`` of an embedding, ``(batch, new, width)`` float32."""
        scale = self.scale(tape, quant, rows_first=True)
        scale = self.of_columns(tape, self.gathered(tape, scale, ids), quant)
        codes = self.rows(tape, ids, quant, "codes", quant.shape[1])
        if quant.spec.symmetric:
            zero = weights.constant(self.graph, "eight", torch.tensor(8.0))
            y = codes if quant.spec.bits == 8 else tape.op("Sub", [codes, zero])
        else:
            zero = self.rows(tape, ids, quant, "zero", quant.spec.groups(quant.shape[1]))
            y = tape.op("Sub", [codes, self.of_columns(tape, zero, quant)])
        y = tape.op("Mul", [y, scale])
        if quant.permutation is not None:
            y = tape.op("Gather", [y, self.order(quant, back=True)], {"axis": -1})
        return y

    def rows(
        self, tape: ir.tape.Tape, ids: ir.Value, quant: QuantTensor, what: str, columns: int
    ) -> ir.Value:
        """The rows ``ids`` of the codes or zeros as float32; of 4 bits from 0 up."""
        made = (lambda: weights.codes(quant)) if what == "codes" else self.params(quant, "zero")
        if quant.spec.bits == 8:
            found = self.gathered(tape, self.integers(quant, what, made, columns), ids)
            return tape.op("Cast", [found], {"to": ir.DataType.FLOAT})
        name = f"{self.owner(quant)}.{what}.bytes"
        shape = (quant.shape[0], (columns + 1) // 2)
        stored = weights.initializer(
            self.graph, name, shape, ir.DataType.UINT8, lambda: weights.halves(made())
        )
        both = self.gathered(tape, stored, ids)
        fifteen = weights.constant(self.graph, "15", torch.tensor(15, dtype=torch.uint8))
        four = weights.constant(self.graph, "4", torch.tensor(4, dtype=torch.uint8))
        last = self.constant("last", [-1])
        low = tape.op("BitwiseAnd", [both, fifteen])
        high = tape.op("BitShift", [both, four], {"direction": "RIGHT"})
        halves = [tape.op("Unsqueeze", [half, last]) for half in (low, high)]
        joined = self.constant("joined", [0, 0, -1])
        found = tape.op("Reshape", [tape.op("Concat", halves, {"axis": -1}), joined])
        if columns % 2:
            start, end = (self.constant(f"at.{n}", [n]) for n in (0, columns))
            found = tape.op("Slice", [found, start, end, last])
        if what == "codes" and quant.spec.symmetric:  # signed halves: -8 is 1000, 7 is 0111
            eight = weights.constant(self.graph, "8", torch.tensor(8, dtype=torch.uint8))
            found = tape.op("BitwiseXor", [found, eight])
        return tape.op("Cast", [found], {"to": ir.DataType.FLOAT})

    def gathered(self, tape: ir.tape.Tape, table: ir.Value, ids: ir.Value) -> ir.Value:
        """The rows ``ids`` of a table, ``(batch, new, columns)``; of a vector one column."""
        found = tape.op("Gather", [table, ids], {"axis": 0})
        if table.shape is not None and len(table.shape) > 1:
            return found
        return tape.op("Unsqueeze", [found, self.constant("last", [-1])])

    def constant(self, name: str, values: list[int]) -> ir.Value:
        return weights.constant(self.graph, name, torch.tensor(values))

    def of_columns(self, tape: ir.tape.Tape, groups: ir.Value, quant: QuantTensor) -> ir.Value:
        """``(..., groups)`` repeated for each column, unless there is one for all."""
        if weights.single(quant):
            return groups
        size, columns = weights.size(quant), quant.shape[1]
        index = weights.constant(self.graph, f"{columns}.by.{size}", torch.arange(columns) // size)
        return tape.op("Gather", [groups, index], {"axis": -1})

    def grid(self, tape: ir.tape.Tape, quant: QuantTensor, rows_first: bool) -> list[ir.Value]:
        """Scale and, unless symmetric, zero, as DequantizeLinear takes them."""
        scale, groups = self.scale(tape, quant, rows_first), quant.spec.groups(quant.shape[1])
        values = [scale]
        if not quant.spec.symmetric:
            zero = self.params(quant, "zero")
            values.append(self.integers(quant, "zero", zero, groups, rows_first))
        return values

    def scale(self, tape: ir.tape.Tape, quant: QuantTensor, rows_first: bool) -> ir.Value:
        """``(rows, groups)`` or its transpose as float32."""
        groups, stored = quant.spec.groups(quant.shape[1]), quant.params["scale"].dtype
        shape, made = self.laid(quant, self.params(quant, "scale"), groups, rows_first)
        name, kind = f"{self.owner(quant)}.scale", weights.KINDS[stored]
        value = weights.initializer(self.graph, name, shape, kind, made)
        if stored == torch.float32:
            return value
        cast = tape.op("Cast", [value], {"to": ir.DataType.FLOAT})
        cast.shape, cast.dtype = value.shape, ir.DataType.FLOAT
        return cast

    def params(self, quant: QuantTensor, name: str) -> Made:
        return lambda: weights.params(quant, name)

    def codes(self, quant: QuantTensor, rows_first: bool) -> ir.Value:
        columns = quant.shape[1]
        return self.integers(quant, "codes", lambda: weights.codes(quant), columns, rows_first)

    def integers(
        self,
        quant: QuantTensor,
        what: str,
        made: Made,
        columns: int,
        rows_first: bool = True,
    ) -> ir.Value:
        """``made()`` ``(rows, columns)``, or its transpose, of the codes' own type."""
        kinds = weights.SIGNED if quant.spec.symmetric else weights.UNSIGNED
        shape, made = self.laid(quant, made, columns, rows_first)
        name, kind = f"{self.owner(quant)}.{what}", kinds[int(quant.spec.bits)]
        return weights.initializer(self.graph, name, shape, kind, made)

    def laid(
        self, quant: QuantTensor, made: Made, columns: int, rows_first: bool
    ) -> tuple[tuple[int, ...], Made]:
        """``made`` ``(rows, columns)`` as it is, transposed, or one column as a vector."""
        rows = quant.shape[0]
        if columns == 1:
            return (rows,), lambda: made().reshape(-1)
        return ((rows, columns), made) if rows_first else ((columns, rows), lambda: made().T)

    def order(self, quant: QuantTensor, back: bool) -> ir.Value:
        """The columns as their groups have them, or where each of those went."""
        order = quant.permutation
        assert order is not None
        name = f"{self.owner(quant)}.order"
        if back:
            return weights.constant(self.graph, f"{name}.back", torch.argsort(order))
        return weights.constant(self.graph, name, order)
