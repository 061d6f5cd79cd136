"""OpenVINO on the CPU, in float32: the whole graph, weights compressed, inputs floating or int8.

The plugin does nothing here that the point does not say. Its own defaults would: it computes in
bf16 where the processor has it, keeps the cache in uint8, and in float32 quantizes the inputs of
every compressed layer (``DYNAMIC_QUANTIZATION_GROUP_SIZE``, 32 by default). All three are set.

* **Floating inputs**: codes are dequantized inside the multiplication (oneDNN's brgemm), exact to
  the order of float32 sums.
* **Inputs of 8 bits**: the plugin's dynamic quantization, ``input.format=narrow`` (``max / 127``)
  in groups of ``input.group_size`` numbers of a token, multiplied as integers. One group size holds
  for the whole model, and a layer in whose weight groups it does not divide would be left floating:
  both are refused.

What can not be executed exactly is refused layer by layer: a declared spec, and then a matrix of
that spec and width, multiplied on this machine. The plugin (2026.4) is silently wrong in groups
such as 48, 50, 96 and 172 and in rows of odd length, and decompresses some widths in bf16.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsweep.activations import InputQuantizer
from bitsweep.engines import _openvino
from bitsweep.engines.protocols import (
    counted,
    input_spec,
    misfits,
    quantized_layers,
)
from bitsweep.linear import QuantEmbedding, Quantized, QuantLinear
from bitsweep.models import Model
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, InputSpec, QuantSpec
from bitsweep.tensor import QuantTensor

WIDTHS = (4, 8)
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
SMALLEST_GROUP = 16
"""Numbers: the plugin quantizes inputs in multiples of it, and of powers of two from here up all
groups of weights were right."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative error (Frobenius norm) to ``dense`` of a small matrix whose inputs float."""

FLIPS = 1e-3
"""The same with inputs of 8 bits: an input halfway between two codes may go either way, which costs
1e-4. Another grid, or another group, costs 5e-3 and more."""


class Openvino:
    """The whole model in OpenVINO's CPU plugin, float32."""

    name = "openvino"
    COMPUTE = torch.float32

    def missing(self) -> str | None:
        return _openvino.missing()

    def refuses(self, model: Model) -> str | None:
        reason = self.missing() or misfits(model, self.misfit)
        if reason is not None:
            return reason
        layers = quantized_layers(model)
        return self._mixed({n: x for n, x in layers.items() if isinstance(x, QuantLinear)})

    def misfit(self, layer: Quantized) -> str | None:
        """Why the plugin does not execute ``layer`` exactly as it is quantized, or None."""
        spec, inputs = layer.quant.spec, input_spec(layer)
        reason = _undeclared(spec)
        if reason is None and inputs is not None:
            reason = self.beyond(inputs, layer.quant)
        if reason is None:
            embeds = isinstance(layer, QuantEmbedding)
            reason = _tried(embeds, spec, layer.quant.shape[1], inputs, self.COMPUTE)
        return reason

    def beyond(self, inputs: InputSpec, weight: QuantTensor) -> str | None:
        """Why the plugin's dynamic quantization is not ``inputs``, or None."""
        quant, groups = inputs.quant, weight.spec.group_size
        exact = QuantSpec(8, quant.group_size, format="narrow", scale_dtype="float32")
        if inputs != InputSpec(exact):
            return (
                f"inputs of {inputs}: its dynamic quantization is input.bits=8 "
                "input.format=narrow input.per=token input.range=dynamic, in groups"
            )
        if quant.group_size < SMALLEST_GROUP or quant.group_size % SMALLEST_GROUP:
            return (
                f"input.group_size={quant.group_size}: it quantizes inputs in groups, one size "
                "for the whole model, of a multiple of 16 numbers; try 32"
            )
        if groups > 0 and groups % quant.group_size:
            return (
                f"input.group_size={quant.group_size} does not divide the weight's groups of "
                f"{groups}, where it would leave inputs floating"
            )
        if weight.permutation is not None:
            return "it would group inputs in the order of the weight's columns (act_order)"
        return None

    def _mixed(self, layers: Mapping[str, QuantLinear]) -> str | None:
        """Why the inputs of several layers can not be executed in one model, or None."""
        found = {str(input_spec(layer) or "floating"): name for name, layer in layers.items()}
        if len(found) < 2:
            return None
        each = ", ".join(f"{inputs} ({name})" for inputs, name in found.items())
        return f"it quantizes the inputs of all compressed layers alike or of none: {each}"

    def build(self, model: Model) -> OpenvinoRunner:
        compiled = compiled_for(_openvino.convert(model, last_only=True), model, self.COMPUTE)
        return OpenvinoRunner(compiled)


def compiled_for(graph: Any, model: Model, compute: torch.dtype) -> Any:
    """``graph`` compiled to do what ``model`` says, and seen to.

    Raises:
        RuntimeError: a quantized layer runs with dequantized weights after all.
    """
    compiled = _compiled(graph, compute, input_group(model))
    dense = set(quantized_layers(model)) - executed(compiled)
    if dense:
        raise RuntimeError(f"OpenVINO dequantized {counted(sorted(dense), 'layer')}")
    return compiled


def input_group(model: Model) -> int:
    """Numbers of a token that share a scale; 0 where inputs float."""
    inputs = [input_spec(layer) for layer in quantized_layers(model).values()]
    return next((spec.quant.group_size for spec in inputs if spec is not None), 0)


def _compiled(graph: Any, compute: torch.dtype, group: int) -> Any:
    precision = PRECISIONS[compute]
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group),
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "NUM_STREAMS": "1",
        "ENABLE_HYPER_THREADING": "YES",  # or two threads of one core would become one
        "ENABLE_CPU_PINNING": "NO",  # as torch
    }
    return _openvino.library().Core().compile_model(graph, "CPU", settings)


def executed(compiled: Any) -> set[str]:
    """Names of what runs with weights of 4 or 8 bits: each operator that became part of a node."""
    found: set[str] = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: node.get_rt_info()[key].astype(str) for key in _RUNTIME_INFO}
        multiplies = info["layerType"] in ("FullyConnected", "Gather")
        if multiplies and info["runtimePrecision"] in ("u4", "i4", "u8", "i8"):
            found.update(info["originalLayersNames"].split(","))
    return found


_RUNTIME_INFO = ("layerType", "runtimePrecision", "originalLayersNames")


class OpenvinoRunner:
    """A compiled model; each prompt's cache is the state of an inference request of its own."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def prefill(self, ids: Tensor) -> tuple[Tensor, State]:
        """Logits ``(batch, vocabulary)`` after the prompt ``(batch, tokens)``, and its cache."""
        cache = State(self.compiled.create_infer_request())
        return cache.step(ids), cache

    def decode(self, ids: Tensor, cache: State) -> Tensor:
        """Logits ``(batch, vocabulary)`` after one more token ``(batch, 1)``; ``cache`` grows."""
        return cache.step(ids)


class State:
    """Keys and values of ``tokens`` tokens, inside an inference request."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.tokens = 0

    def step(self, ids: Tensor) -> Tensor:
        """Logits ``(batch, vocabulary)`` after ``ids`` ``(batch, new)``."""
        self.tokens += ids.shape[1]
        mask = np.ones((len(ids), self.tokens), dtype=np.int64)
        found = self.request.infer({"input_ids": ids.numpy(), "attention_mask": mask})
        return torch.from_numpy(np.array(found["logits"][:, -1]))


def _undeclared(spec: QuantSpec) -> str | None:
    """Why the engine does not take weights of ``spec``, whatever the machine, or None."""
    if spec.format not in ("int", "narrow"):
        return f"its codes are format={spec.format}, not integers"
    if spec.bits not in WIDTHS:
        return f"it has {spec.bits:g} bits, not 4 or 8"
    size = spec.group_size
    if size not in (PER_CHANNEL, PER_TENSOR) and (size < SMALLEST_GROUP or size & (size - 1)):
        return f"its group_size={size} is not a power of two from {SMALLEST_GROUP} up"
    return None


@functools.lru_cache(512)
def _tried(
    embeds: bool, spec: QuantSpec, columns: int, inputs: InputSpec | None, compute: torch.dtype
) -> str | None:
    """Multiply a small matrix of that spec and width: None when it is right, else why not."""
    if not spec.fits(columns):
        return f"its group_size={spec.group_size} does not divide rows of {columns}"
    generator = torch.Generator().manual_seed(0)
    quant = QuantTensor.quantize(torch.randn(48, columns, generator=generator), spec)
    ops = _openvino.operators()
    weight = _openvino.dequantized(quant)
    if embeds:
        x = ops.parameter([-1, -1], np.int64)
        y = _openvino.lookup(x, weight, quant)
    else:
        x = ops.parameter([-1, -1, columns], np.float32)
        y = _openvino.multiply(x, weight, quant)
    y.set_friendly_name("tried")
    graph = _openvino.library().Model([ops.result(y)], [x], "tried")
    compiled = _compiled(graph, compute, 0 if inputs is None else inputs.quant.group_size)
    if "tried" not in executed(compiled):
        return f"it dequantizes rows of {columns} codes when it loads them ({PRECISIONS[compute]})"
    for tokens in (1, 2, 7, 40):
        if embeds:
            ids = torch.arange(tokens).view(1, tokens)
            given, expected = ids.numpy(), quant.dequantize()[ids]
        else:
            rows = torch.randn(1, tokens, columns, generator=generator)
            given = rows.numpy()
            if inputs is not None:
                rows = InputQuantizer(inputs)(rows)
            expected = rows @ quant.dequantize().T
        wrong = (torch.from_numpy(compiled([given])[0]) - expected).norm() / expected.norm()
        if not wrong <= (TOLERANCE[compute] if inputs is None else FLIPS):
            return f"on {tokens} rows of {columns} numbers its result is wrong by {wrong:.1g}"
    return None
