"""What the contract of engines is made of: quantized models, dense runners, perplexity by decoding.

A new engine needs no line here: :data:`PLANS` are tried on whatever is on disk, and each engine is
held to those that it does not refuse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitsweep import engines
from bitsweep.activations import InputQuantizer
from bitsweep.engines import Runner, runner
from bitsweep.engines.packed import Packed
from bitsweep.linear import QuantEmbedding, Quantized, quantized
from bitsweep.models import Model
from bitsweep.spec import InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor


class Uniform(NamedTuple):
    """All layers of a model alike; inputs of those that multiply."""

    weight: QuantSpec
    inputs: InputSpec | None = None


def int8(symmetric: bool, per: str = "token", group_size: int = -1) -> InputSpec:
    quant = QuantSpec(8, group_size, symmetric=symmetric, scale_dtype="float32")
    return InputSpec(quant, per=per)


W8 = QuantSpec(8)
W8_SYM = QuantSpec(8, symmetric=True)
NARROW = QuantSpec(8, 32, format="narrow", scale_dtype="float32")
PLANS = {
    "w4g32": Uniform(QuantSpec(4, 32)),
    "w4g32-sym": Uniform(QuantSpec(4, 32, symmetric=True)),
    "w4": Uniform(QuantSpec(4)),
    "w8": Uniform(W8),
    "w8-sym": Uniform(W8_SYM),
    "w8g32": Uniform(QuantSpec(8, 32)),
    "w8 a8": Uniform(W8, int8(False)),
    "w8-sym a8": Uniform(W8_SYM, int8(False)),
    "w8-sym a8-sym": Uniform(W8_SYM, int8(True)),
    "w8-sym a8t": Uniform(W8_SYM, int8(False, "tensor")),
    "w8 a8t-sym": Uniform(W8, int8(True, "tensor")),
    "w4g32 a-narrow8g32": Uniform(QuantSpec(4, 32), InputSpec(NARROW)),
    "w8-sym a-narrow8g32": Uniform(W8_SYM, InputSpec(NARROW)),
    "w4g32 a8": Uniform(QuantSpec(4, 32), int8(False)),
    "w4g32 a8g32-sym": Uniform(QuantSpec(4, 32), int8(True, group_size=32)),
}
"""Points that an engine may take: integers of both widths, floating inputs and quantized ones."""


def with_layers(
    model: Model, specs: dict[str, QuantSpec], inputs: InputSpec | None = None
) -> Model:
    """A copy in which each named layer is rounded to nearest, and the plan says so."""
    copied, layers, done = model.copy(), {}, dict[int, QuantTensor]()
    for name, spec in specs.items():
        weight = model.weight(name)
        quant = done.setdefault(weight.data_ptr(), QuantTensor.quantize(weight, spec))
        layer = quantized(quant, model.get(name))
        own = None if isinstance(layer, QuantEmbedding) else inputs
        if own is not None:
            layer.input_quantizer = InputQuantizer(own)
        copied.replace(name, layer)
        layers[name] = LayerSpec(spec, own)
    copied.plan = Plan(layers)
    return copied


def uniform(model: Model, plan: str) -> Model:
    """``model`` with all layers as ``PLANS[plan]`` says."""
    weight, inputs = PLANS[plan]
    return with_layers(model, dict.fromkeys(model.layers, weight), inputs)


def compute_dtype(engine: str) -> torch.dtype:
    """Of all that is not integers in the engine of that name."""
    graphs = engines.graphs()
    return graphs[engine].COMPUTE if engine in graphs else torch.bfloat16


class Exact(Packed):
    """A layer in float32 with its fake quantizer, bf16 in and out like a packed one."""

    def __init__(self, layer: Quantized) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        given = input.float() if input.is_floating_point() else input
        return self.layer(given).to(torch.bfloat16)


def dense(model: Model, dtype: torch.dtype) -> Runner:
    """Weights dequantized, inputs quantized by the fake quantizer, the rest in ``dtype``.

    The quantized layers themselves compute in float32. In bf16 ``dense`` would round its weights
    once more, which moves the perplexity of stories3M by 0.1 %, and no packed engine does that.
    """
    if dtype == torch.float32:
        return runner.TorchRunner(model.module)
    copied = runner.cast(model, dtype)
    for name, layer in engines.quantized_layers(model).items():
        copied.replace(name, Exact(layer))
    return runner.TorchRunner(copied.module)


def perplexity(run: Runner, ids: Tensor) -> float:
    """Of ``ids`` ``(windows, tokens)`` after their first eight.

    Windows are read as a whole where the runner holds a torch module, else token by token.
    """
    with torch.inference_mode():
        logits = _logits(run, ids)
        losses = nn.functional.cross_entropy(logits.double().flatten(0, 1), ids[:, 8:].flatten())
    return float(losses.exp())


def _logits(run: Runner, ids: Tensor) -> Tensor:
    """What comes after each token from the eighth to the last but one."""
    if isinstance(run, runner.TorchRunner):
        return torch.cat([run.module(part).logits[:, 7:-1] for part in ids.split(16)])
    logits, cache = run.prefill(ids[:, :8])
    found = [logits]
    for position in range(8, ids.shape[1] - 1):
        found.append(run.decode(ids[:, position : position + 1], cache))
    return torch.stack(found, dim=1)


def tokens(shape: tuple[int, int], vocabulary: int = 256) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(1))
