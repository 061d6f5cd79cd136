"""A decoder as one ONNX graph with a key-value cache: what whole-graph engines and exports start
from.

:func:`trace` gives the graph of a Hugging Face model in which each quantized layer is a *hole*, a
node of the domain ``bitsweep`` that knows the layer's name; :func:`fill` puts nodes of someone's
choice there. :func:`bitsweep.graph.qdq.fill` fills them with ONNX's own operators
(``DequantizeLinear`` and ``MatMul``), the form that onnxruntime, OpenVINO and TensorRT read; an
engine may fill in operators of its own.

Inputs and outputs, ``L`` the blocks from 0 up, all dimensions that are not a number dynamic:

=============================  ======  ==========================================
``input_ids``                  int64   ``(batch, new)``
``attention_mask``             int64   ``(batch, past + new)``, 1 for each token that counts
``past_key_values.L.key``      float   ``(batch, kv heads, past, head size)``; ``past`` may be 0
``past_key_values.L.value``    float   the same
``logits``                     float   ``(batch, new, vocabulary)``, or ``(batch, 1, vocabulary)``
``present.L.key``, ``.value``  float   ``(batch, kv heads, past + new, head size)``
=============================  ======  ==========================================

Positions follow from the length of the past. Everything that is not quantized is float32, also of a
checkpoint in 16 bits: onnxruntime's and OpenVINO's CPU kernels compute in it.
"""

from bitsweep.graph.tracing import Hole, fill, trace

__all__ = ["Hole", "fill", "trace"]
