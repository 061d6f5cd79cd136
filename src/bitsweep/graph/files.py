"""A graph on disk: ``model.onnx``, and its numbers beside it in ``model.onnx.data``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnx_ir.tensor_adapters import TorchTensor

NAME = "model.onnx"

LARGE = 4096
"""Numbers of a constant that is worth halving; all that is smaller is less than a percent."""

BYTES = ".bytes"
"""Ends the name of 4-bit codes that lie there as bytes; without it the name is the integers'."""


def write(graph: ir.Model, folder: Path) -> Path:
    """Write ``graph`` into ``folder``, tensor by tensor; returns the path of ``model.onnx``.

    Rows of 4-bit integers that are there as bytes as well (a tied embedding, see ``graph.qdq``) are
    stored once: two entries of the graph point at the same place of the file. ``graph`` then reads
    its numbers from there.
    """
    path, found = folder / NAME, graph.graph.initializers
    twins = {n: found[n + BYTES] for n in found if n + BYTES in found and _same(found, n)}
    kinds = {}
    for name in twins:
        kinds[name], found[name].const_value = found[name].const_value, None
    ir.external_data.unload_from_model(graph, folder, f"{NAME}.data", size_threshold_bytes=256)
    for name, twin in twins.items():
        stored = twin.const_value
        if isinstance(stored, ir.ExternalTensor):
            found[name].const_value = ir.ExternalTensor(
                stored.location,
                stored.offset,
                stored.length,
                kinds[name].dtype,
                shape=kinds[name].shape,
                name=name,
                base_dir=stored.base_dir,
            )
        else:
            found[name].const_value = kinds[name]
    ClearMetadataAndDocStringPass()(graph)  # where in torch each node came from: half a megabyte
    onnx.save(ir.to_proto(graph), path)
    return path


def narrow(graph: ir.Model) -> None:
    """Store float32 numbers that are exact in 16 bits, of a 16-bit checkpoint, in 16 bits.

    A ``Cast`` makes them float32 again, which runtimes fold when they load the graph.
    """
    for value in list(graph.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < LARGE:
            continue
        numbers = torch.from_numpy(tensor.numpy())
        for dtype in (torch.float16, torch.bfloat16):
            half = numbers.to(dtype)
            if torch.equal(half.float(), numbers):
                _cast(graph.graph, value, half)
                break


def _cast(graph: ir.Graph, value: ir.Value, half: torch.Tensor) -> None:
    stored = TorchTensor(half, name=f"{value.name}.half")
    narrow = ir.Value(
        name=stored.name,
        shape=ir.Shape(half.shape),
        type=ir.TensorType(stored.dtype),
        const_value=stored,
    )
    graph.register_initializer(narrow)
    node = ir.node("Cast", [narrow], {"to": ir.DataType.FLOAT})
    wide = node.outputs[0]
    wide.shape, wide.dtype = value.shape, ir.DataType.FLOAT
    value.replace_all_uses_with(wide)
    graph.insert_before(graph[0], node)
    assert value.name is not None
    del graph.initializers[value.name]


def _same(found: Mapping[str, ir.Value], name: str) -> bool:
    """Whether the integers ``name`` and their rows as bytes are the same bytes in memory."""
    integers, rows = found[name].const_value, found[name + BYTES].const_value
    assert integers is not None
    assert rows is not None
    return integers.shape[0] == rows.shape[0] and integers.nbytes == rows.nbytes
