"""The graph of a Hugging Face decoder, traced with a hole where each quantized layer is."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bitsweep.engines import runner
from bitsweep.linear import QuantEmbedding, Quantized
from bitsweep.models import Model

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 21
"""The first whose DequantizeLinear has groups (``block_size``) and 4-bit integers."""

DOMAIN = "bitsweep"


class Hole(nn.Module):
    """In place of a quantized layer while its model is traced; a bias is added by the graph.

    ``weight`` answers a model that asks for its dtype, and holds nothing.
    """

    bias: Tensor | None
    embed_scale: Tensor | None

    def __init__(self, name: str, layer: Quantized) -> None:
        super().__init__()
        self.layer = name
        self.embeds = isinstance(layer, QuantEmbedding)
        self.width = layer.quant.shape[1 if self.embeds else 0]
        self.nf = self.width
        self.register_buffer("weight", torch.empty(0), persistent=False)
        bias = getattr(layer, "bias", None)
        scale = getattr(layer, "embed_scale", None)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("embed_scale", None if scale is None else scale.float())

    def forward(self, input: Tensor) -> Tensor:
        shape = (*input.shape, self.width) if self.embeds else (*input.shape[:-1], self.width)
        output: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{'Embedding' if self.embeds else 'Linear'}",
            (input,),
            {"layer": self.layer},
            dtype=torch.float32,
            shape=shape,
            version=1,
        )
        if self.embed_scale is not None:
            output = output * self.embed_scale
        if self.bias is not None:
            output = output + self.bias
        return output


def trace(model: Model, last_only: bool = False) -> ir.Model:
    """The graph of ``model``, float32, with a hole for each quantized layer; no weight is copied.

    ``last_only``: the head sees the last position alone, as in generation.
    """
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    holed = runner.cast(model, torch.float32)
    for name, layer in list(holed.module.named_modules()):
        if isinstance(layer, Quantized):
            holed.replace(name, Hole(name, layer))
    module = holed.module
    inputs, shapes = _example(module)
    if last_only and "logits_to_keep" in inspect.signature(module.forward).parameters:
        inputs["logits_to_keep"], shapes["logits_to_keep"] = 1, None
    module.config.use_cache = True
    with _quiet():
        config = OnnxConfig(dynamic_shapes=shapes, opset_version=OPSET)
        graph: ir.Model = OnnxExporter().export_program(module, inputs, config)[0]
    _rename(graph)
    return graph


def fill(graph: ir.Model, put: Callable[[ir.Node, str], ir.Value]) -> None:
    """Replace each hole of ``graph`` by the value that ``put(hole, layer's name)`` gives.

    ``put`` inserts its nodes before the hole.
    """
    for node in [node for node in graph.graph if node.domain == DOMAIN]:
        old = node.outputs[0]
        new = put(node, node.attributes["layer"].as_string())
        new.shape, new.dtype = old.shape, old.dtype
        name, is_output = old.name, old.is_graph_output()
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if is_output:
            old.name, new.name = None, name
        graph.graph.remove(node, safe=True)
    graph.opset_imports.pop(DOMAIN, None)


def _example(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs to trace with, and which of their dimensions may be any: batch, new and past.

    The cache comes from a forward through the holes, so its shapes are the model's own.
    """
    batch, past, new = 2, 5, 3
    cache = DynamicCache()  # with a configuration, layers of a sliding window forget their past
    with torch.no_grad():
        module(torch.zeros(batch, past, dtype=torch.int64), past_key_values=cache, use_cache=True)
    inputs = {
        "input_ids": torch.zeros(batch, new, dtype=torch.int64),
        "attention_mask": torch.ones(batch, past + new, dtype=torch.int64),
        "past_key_values": cache,
        "use_cache": True,
    }
    auto = torch.export.Dim.AUTO
    shapes = {
        "input_ids": {0: auto, 1: auto},
        "attention_mask": {0: auto, 1: auto},
        "past_key_values": [{0: auto, 2: auto}] * (2 * len(cache.layers)),
    }
    return inputs, shapes


def _rename(graph: ir.Model) -> None:
    """The names that the exporters of the field give (optimum's), and dimensions that say what."""
    inputs, outputs = graph.graph.inputs, graph.graph.outputs
    assert [value.name for value in inputs[:2]] == ["input_ids", "attention_mask"]
    assert outputs[0].name == "logits"
    assert len(inputs) - 2 == len(outputs) - 1
    for values, prefix in ((inputs[2:], "past_key_values"), (outputs[1:], "present")):
        for index, value in enumerate(values):
            value.name = f"{prefix}.{index // 2}.{('key', 'value')[index % 2]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print their progress and warn of what does not concern a decoder."""
    names = ("transformers", "torch.onnx", "torch.onnx._internal.exporter._registration")
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
