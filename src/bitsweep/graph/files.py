"""A graph on disk: ``model.onnx``, and its numbers beside it in ``model.onnx.data``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

NAME = "model.onnx"

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
    onnx.save(ir.to_proto(graph), path)
    return path


def _same(found: Mapping[str, ir.Value], name: str) -> bool:
    """Whether the integers ``name`` and their rows as bytes are the same bytes in memory."""
    integers, rows = found[name].const_value, found[name + BYTES].const_value
    assert integers is not None
    assert rows is not None
    return integers.shape[0] == rows.shape[0] and integers.nbytes == rows.nbytes
