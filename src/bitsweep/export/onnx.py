"""ONNX, opset 21: ``model.onnx`` and ``model.onnx.data``, quantized layers as QDQ, a cache outside.

Only ONNX's own operators: ``DequantizeLinear`` before ``MatMul``, the form that onnxruntime reads
and TensorRT asks for (names of inputs and outputs in :mod:`bitsweep.graph`). Codes lie in the file
as they are, of 4 bits two a byte; numbers of a 16-bit checkpoint lie in 16 bits and are computed
with in float32. A tied pair lies there once, and pruned weights as codes that stand for 0.

onnxruntime fuses both operators into its packed ``MatMulNBits`` and then *quantizes inputs that the
point leaves floating* (accuracy level 4: int8 in blocks), unless the session says otherwise:

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession("model.onnx", options)

It fuses neither groups that are no power of two, nor the head of a tied pair in groups, and
dequantizes those at each call: slower, and the same numbers.
"""

from __future__ import annotations

from pathlib import Path

from bitsweep.engines.protocols import lacking
from bitsweep.models import Model


def refuses(model: Model) -> str | None:
    """Why ONNX's own operators can not say ``model``, naming layer and what, or None."""
    reason = lacking(("onnx", "onnxscript", "transformers.exporters"), "onnxruntime")
    if reason is not None:
        return reason
    from bitsweep.graph import qdq

    return qdq.refuses(model)


def write(model: Model, folder: Path) -> None:
    """Write both files into ``folder``, checked by ONNX's own checker."""
    import onnx

    from bitsweep import graph
    from bitsweep.graph import files, qdq

    traced = graph.trace(model)
    qdq.fill(traced, model)
    files.narrow(traced)
    onnx.checker.check_model(files.write(traced, folder))
