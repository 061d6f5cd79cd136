"""ONNX Runtime on the CPU, in float32: the whole graph, packed operators for quantized layers.

What executes follows from the point (``accuracy_level`` and the like are no options):

=============================  =========================================================
weights of 4 bits, inputs      ``MatMulNBits``, blocks of 16 to 256: codes are decoded inside the
floating                       multiplication
2, 4, 8 bits, inputs           ``MatMulNBits`` at accuracy level 4, exactly ``input.bits=8
``narrow`` in groups           input.format=narrow input.group_size=BLOCK``
8 bits, one scale a row,       ``MatMulInteger`` behind the point's own quantizer, symmetric or not;
inputs per token or tensor     per tensor onnxruntime fuses both (``DynamicQuantizeMatMul``)
=============================  =========================================================

With floating inputs onnxruntime 1.31 dequantizes a matrix of 2 or 8 bits anew at each call (10
times slower than float32): refused. Scales are float32 in its kernels, whatever they are on disk.
An embedding's rows are gathered and decoded as in :mod:`bitsweep.graph.qdq`. Integer layers are as
dense up to float32 rounding: an input halfway between two codes may go either way.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bitsweep.engines.protocols import lacking, misfits
from bitsweep.linear import QuantEmbedding, Quantized
from bitsweep.models import Model
from bitsweep.portable import onnx_weight

if TYPE_CHECKING:
    import onnxruntime

PAST, PRESENT = "past_key_values", "present"


class Onnxruntime:
    """The whole model in ONNX Runtime's CPU provider, float32."""

    name = "onnxruntime"
    COMPUTE = torch.float32

    def missing(self) -> str | None:
        modules = ("onnx", "onnxscript", "onnxruntime", "transformers.exporters")
        return lacking(modules, "onnxruntime")

    def refuses(self, model: Model) -> str | None:
        return self.missing() or misfits(model, self.misfit)

    def misfit(self, layer: Quantized) -> str | None:
        """Why ``layer`` is not executed exactly as it is quantized, or None."""
        from bitsweep.graph import contrib

        if isinstance(layer, QuantEmbedding):
            return onnx_weight(layer.quant.spec)
        return contrib.refuses(layer)

    def build(self, model: Model) -> OrtRunner:
        """A session on a graph whose files are gone once it is loaded."""
        from bitsweep import graph
        from bitsweep.graph import contrib, files

        traced = graph.trace(model, last_only=True)
        contrib.fill(traced, model)
        with tempfile.TemporaryDirectory(prefix="bitsweep-onnx-") as folder:
            return OrtRunner(session(files.write(traced, Path(folder))))


def session(path: Path) -> onnxruntime.InferenceSession:
    """``path`` loaded, on as many threads as torch has, which rest when a run ends."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads would spin on into the turn of whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@dataclass
class OrtCache:
    """Keys and values by output name (``present.0.key``), of ``length`` tokens."""

    values: dict[str, Any]
    length: int


class OrtRunner:
    """Decodes with a session; keys and values stay in its own memory between calls."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.past = {
            value.name.replace(PAST, PRESENT): value
            for value in session.get_inputs()
            if value.name.startswith(PAST)
        }

    def prefill(self, ids: Tensor) -> tuple[Tensor, OrtCache]:
        """Logits ``(batch, vocabulary)`` after the prompt ``(batch, tokens)``, and its cache."""
        import onnxruntime

        cache = OrtCache({}, 0)
        for name, value in self.past.items():
            _, heads, _, width = value.shape
            empty = np.zeros((len(ids), heads, 0, width), np.float32)
            cache.values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(empty)
        return self.decode(ids, cache), cache

    def decode(self, ids: Tensor, cache: OrtCache) -> Tensor:
        """Logits ``(batch, vocabulary)`` after more tokens ``(batch, new)``; ``cache`` grows."""
        binding = self.session.io_binding()
        cache.length += ids.shape[1]
        mask = np.ones((len(ids), cache.length), np.int64)
        binding.bind_cpu_input("input_ids", ids.contiguous().numpy())
        binding.bind_cpu_input("attention_mask", mask)
        for name, value in cache.values.items():
            binding.bind_ortvalue_input(name.replace(PRESENT, PAST), value)
        binding.bind_output("logits")
        for name in self.past:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        logits, *grown = binding.get_outputs()
        cache.values = dict(zip(self.past, grown, strict=True))
        return torch.from_numpy(logits.numpy())[:, -1]
