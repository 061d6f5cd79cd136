"""A model as one OpenVINO graph: codes as compressed constants, keys and values inside.

The trace of :mod:`bitsweep.graph` is read by OpenVINO's ONNX frontend, and its holes are filled
with OpenVINO's own operators rather than with ONNX's ``DequantizeLinear``: constants as the CPU
plugin multiplies them, ``(out, groups, group_size)``, which ONNX's ``(in, out)`` would have to be
transposed to, and no weight passes through a protobuf file.

    codes (u4, i4, u8, i8) -> Convert -> [- zero] -> * scale -> Reshape (out, in)
        -> MatMul, of embeddings Gather
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bitsweep.engines.grid import about_zero
from bitsweep.engines.protocols import lacking, quantized_layers
from bitsweep.graph import tracing
from bitsweep.linear import Quantized
from bitsweep.models import Model
from bitsweep.packing import pack
from bitsweep.tensor import QuantTensor

LIBRARIES = ("openvino", "onnx", "onnxscript")

Node = Any
"""A node or an output of an OpenVINO graph: the library is not imported with this file."""


def missing() -> str | None:
    """What has to be installed, or None."""
    with contextlib.suppress(ImportError):  # the next line says it
        library()
    return lacking(LIBRARIES, "openvino")


def library() -> Any:
    """The module ``openvino``, imported with its telemetry off.

    Importing it reports to Google Analytics and writes ``~/intel``, unless the user said no
    before. Where openvino-telemetry can not be imported OpenVINO takes a stub of its own.
    """
    name, modules = "openvino_telemetry", cast(dict[str, Any], sys.modules)
    if "openvino" in modules or name in modules:
        return importlib.import_module("openvino")
    modules[name] = None
    try:
        return importlib.import_module("openvino")
    finally:
        del modules[name]


def convert(model: Model, last_only: bool) -> Any:
    """``model`` as an ``openvino.Model``, float32 but for its codes, that remembers its tokens.

    Inputs ``input_ids`` and ``attention_mask``, output ``logits``, as in :mod:`bitsweep.graph`;
    the cache is the state of whoever infers, empty at first and after ``reset_state``. A layer's
    operator has the layer's name.
    """
    core, layers = library().Core(), Layers(model)
    extension = importlib.import_module("openvino.frontend.onnx").ConversionExtension
    for kind, put in (("Linear", layers.linear), ("Embedding", layers.embedding)):
        core.add_extension(extension(kind, tracing.DOMAIN, put))
    found = core.read_model(traced(model, last_only).path)
    for name, node in layers.operators.items():  # the frontend named them after their holes
        node.set_friendly_name(name)
    remember(found)
    return found


@dataclass(frozen=True)
class Trace:
    """A trace as files, and what it was made of. No codes are in it."""

    path: Path
    holes: tuple[str, ...]
    last_only: bool
    tensors: tuple[tuple[Tensor, int], ...]
    folder: tempfile.TemporaryDirectory[str]

    @classmethod
    def of(cls, model: Model, last_only: bool) -> Trace:
        import onnx_ir as ir

        folder = tempfile.TemporaryDirectory(prefix="bitsweep-")  # goes with this object
        path = Path(folder.name) / "model.onnx"
        ir.save(tracing.trace(model, last_only), path, external_data="weights")
        return cls(path, _holes(model), last_only, _tensors(model), folder)

    def fits(self, model: Model, last_only: bool) -> bool:
        """Whether ``model`` has the same tensors, unchanged, and the same holes."""
        mine, other = self.tensors, _tensors(model)
        return (self.last_only, self.holes, len(mine)) == (
            last_only,
            _holes(model),
            len(other),
        ) and all(a is b and then == now for (a, then), (b, now) in zip(mine, other, strict=True))


def traced(model: Model, last_only: bool) -> Trace:
    """The trace of ``model``, that of the model before it where that had the same layers.

    Tracing costs 2 to 3 s for each decoder block, and the points of a sweep differ in codes.
    """
    if not _latest or not _latest[0].fits(model, last_only):
        _latest[:] = [Trace.of(model, last_only)]
    return _latest[0]


_latest: list[Trace] = []
"""None or one."""


def _holes(model: Model) -> tuple[str, ...]:
    """Names of the quantized layers, and the architecture around them."""
    return (repr(model.module.config), *quantized_layers(model))


def _tensors(model: Model) -> tuple[tuple[Tensor, int], ...]:
    """Parameters and buffers, each with how often it was written to."""
    every = [*model.module.parameters(), *model.module.buffers()]
    return tuple((each, 0 if each.is_inference() else each._version) for each in every)


class Layers:
    """Fills holes, and keeps the ``operators`` that took their places by their layers' names.

    A :class:`QuantTensor` in two layers is one constant.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.operators: dict[str, Node] = {}
        self._made: dict[int, Node] = {}

    def linear(self, hole: Any) -> list[Node]:
        """``x @ w.T``: what takes the place of the hole of a linear layer, without its bias."""
        name, quant = self._of(hole)
        self.operators[name] = multiply(hole.get_input(0), self._weight(quant), quant)
        return [self.operators[name].output(0)]

    def embedding(self, hole: Any) -> list[Node]:
        """Rows of the table at the hole's indices."""
        name, quant = self._of(hole)
        self.operators[name] = lookup(hole.get_input(0), self._weight(quant), quant)
        return [self.operators[name].output(0)]

    def _of(self, hole: Any) -> tuple[str, QuantTensor]:
        name = hole.get_attribute("layer")
        layer = self.model.get(name)
        assert isinstance(layer, Quantized)
        return name, layer.quant

    def _weight(self, quant: QuantTensor) -> Node:
        if id(quant) not in self._made:
            self._made[id(quant)] = dequantized(quant)
        return self._made[id(quant)]


def multiply(x: Node, weight: Node, quant: QuantTensor) -> Node:
    """``x`` ``(..., in)`` times the transposed ``weight``, whose columns are in groups' order."""
    ops = operators()
    if quant.permutation is not None:
        x = ops.gather(x, ops.constant(quant.permutation.numpy()), ops.constant(-1))
    return ops.matmul(x, weight, False, True)


def lookup(ids: Node, weight: Node, quant: QuantTensor) -> Node:
    """Rows ``ids`` of ``weight``, columns in their own order."""
    ops = operators()
    rows = ops.gather(weight, ids, ops.constant(0))
    if quant.permutation is not None:
        back = torch.argsort(quant.permutation).numpy()
        rows = ops.gather(rows, ops.constant(back), ops.constant(-1))
    return rows


def dequantized(quant: QuantTensor) -> Node:
    """``(out, in)`` float32 of compressed constants; computed nowhere until it is multiplied."""
    ops, spec = operators(), quant.spec
    rows, columns = quant.shape
    groups = spec.groups(columns)
    inner = (groups, columns // groups) if groups > 1 else (columns,)
    params = (rows, groups, 1) if groups > 1 else (rows, 1)
    codes = quant.codes if quant.permutation is None else quant.codes[:, quant.permutation]
    kind = "i" if about_zero(spec) else "u"
    if kind == "i":
        codes = codes ^ 2 ** int(spec.bits - 1)  # from 0 up -> two's complement
    weight = ops.convert(integers(codes, f"{kind}{spec.bits:g}", (rows, *inner)), "f32")
    if kind == "u":
        zero = quant.params["zero"].expand(rows, groups).reshape(params).contiguous()
        if spec.zero == "integer":
            shift = integers(zero, f"u{spec.bits:g}", params)
        else:
            shift = ops.constant(zero.numpy())
        weight = ops.subtract(weight, ops.convert(shift, "f32"))
    scale = quant.params["scale"].expand(rows, groups).reshape(params).contiguous()
    weight = ops.multiply(weight, ops.convert(ops.constant(scale.numpy()), "f32"))
    if groups > 1:
        weight = ops.reshape(weight, ops.constant(np.array([rows, columns])), False)
    return weight


def integers(codes: Tensor, kind: str, shape: tuple[int, ...]) -> Node:
    """A constant of ``kind`` (``u4``, ``i8`` ...) of the bits of ``codes`` uint8, in order."""
    ov = library()
    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(shape))
    tensor.data.reshape(-1).view(np.uint8)[:] = pack(codes, int(kind[1:])).numpy()
    return ov.op.Constant(tensor)


def remember(found: Any) -> None:
    """Turn the inputs and outputs of the cache in ``found`` into variables, empty at first."""
    ops = operators()
    transformations = importlib.import_module("openvino._offline_transformations")
    names = [value.get_any_name() for value in found.inputs]
    pasts = {name: name.replace("past_key_values", "present") for name in names if "past" in name}
    transformations.apply_make_stateful_transformation(found, pasts)
    shape = ops.shape_of(found.input("input_ids"), "i64")
    batch = ops.gather(shape, ops.constant(np.array([0])), ops.constant(0))
    for node in found.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            sizes = list(node.get_output_partial_shape(0))[1:]
            fixed = [0 if size.is_dynamic else size.get_length() for size in sizes]
            rest = ops.constant(np.array(fixed, dtype=np.int64))
            empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([batch, rest], 0))
            node.set_arguments([empty.output(0)])
    found.validate_nodes_and_infer_types()


def operators() -> Any:
    """The set of operators in which all here is written; each later OpenVINO reads it."""
    library()
    return importlib.import_module("openvino.opset13")
