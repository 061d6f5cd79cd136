"""What executes a model when it is timed: packed codes, never dequantized weights.

An :class:`Engine` turns a model into a :class:`Runner`, or says why it can not. A packed kernel
family is one file, ``engines/torch_int4.py`` with the class ``TorchInt4``, found on disk;
:class:`Layerwise` puts such kernels into a Hugging Face model, each layer to the one that executes
exactly its spec, so that a mix by role runs as well. It is named after the kernels that run:
``torch_int4+torch_int8``. ``dense`` runs what has no quantized layer, in its own dtype.

    engine, reason = choose("auto", model)

How far a packed model is from ``dense``: computing in bf16 at all moves the perplexity of models of
3 M and 260 k parameters by 0.02 to 0.2 % (25,600 tokens of TinyStories, standard error 0.03 %); the
packed kernels are within 0.14 % of ``dense`` in bf16, 0.05 % at the median of eight settings.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitsweep import kv
from bitsweep.engines import runner
from bitsweep.engines.packed import COMPUTE
from bitsweep.errors import UserError
from bitsweep.library import LibraryLinear
from bitsweep.linear import QuantEmbedding, QuantLinear
from bitsweep.models import Model
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor

CACHE = "the key-value cache is quantized, and no kernel here executes that"

Quantized = QuantLinear | QuantEmbedding


class Runner(Protocol):
    """A model ready to decode; ``cache`` belongs to the runner that made it."""

    def prefill(self, ids: Tensor) -> tuple[Tensor, Any]:
        """Logits ``(batch, vocabulary)`` after the prompt ``(batch, tokens)``, and its cache."""
        ...

    def decode(self, ids: Tensor, cache: Any) -> Tensor:
        """Logits ``(batch, vocabulary)`` after one more token ``(batch, 1)``; ``cache`` grows."""
        ...


class Engine(Protocol):
    """A way to execute models, named in the Record."""

    @property
    def name(self) -> str: ...

    def refuses(self, model: Model) -> str | None:
        """Why this engine does not execute all that is quantized in ``model``, or None."""
        ...

    def build(self, model: Model) -> Runner:
        """A runner of ``model``, which stays as it is. Only after :meth:`refuses` said None."""
        ...


class Kernel(Protocol):
    """One family of packed kernels: the layers it executes, and how it holds their codes.

    ``TOLERANCE`` bounds the relative error of a layer's outputs (Frobenius norm) to float32.
    """

    name: str
    device: str
    TOLERANCE: float

    def refuses(self, layer: Quantized) -> str | None:
        """Why this kernel does not execute ``layer`` exactly as quantized, or None."""
        ...

    def pack(self, layer: Quantized) -> nn.Module:
        """The module that takes the place of ``layer``, with bf16 inputs and outputs."""
        ...


class Dense:
    """The model as it is: only for one in which nothing is quantized."""

    name = "dense"

    def refuses(self, model: Model) -> str | None:
        if kv.installed(model):
            return CACHE
        layers = quantized_layers(model)
        if not layers:
            return None
        return f"dense would time dequantized weights: {counted(list(layers), 'quantized layer')}"

    def build(self, model: Model) -> Runner:
        return runner.TorchRunner(model.module)


@dataclass(frozen=True)
class Layerwise:
    """Packed kernels inside the Hugging Face model; what is not quantized runs in bf16.

    ``assigned`` says which kernel executes a layer.
    """

    kernels: Sequence[Kernel]
    assigned: dict[str, Kernel]

    @property
    def name(self) -> str:
        return "+".join(sorted({kernel.name for kernel in self.assigned.values()}))

    @classmethod
    def plan(cls, kernels: Sequence[Kernel], model: Model) -> Layerwise:
        """Each quantized layer of ``model`` to the first of ``kernels`` that executes it."""
        assigned = {}
        for name, layer in quantized_layers(model).items():
            taker = next((k for k in kernels if takes(k, layer) is None), None)
            if taker is not None:
                assigned[name] = taker
        return cls(kernels, assigned)

    def refuses(self, model: Model) -> str | None:
        if model.plan is not None:
            if model.plan.kv is not None:
                return CACHE
            inputs = [name for name, spec in model.plan.layers.items() if spec.input is not None]
            if inputs:
                return f"kernels for weights only: {counted(inputs, 'layer')} with quantized inputs"
        layers = quantized_layers(model)
        for what, names in beyond_codes(layers).items():
            if names:
                return f"no kernel here knows {what}: {counted(names, 'layer')}"
        left = [name for name in layers if name not in self.assigned]
        if not left:
            return None
        reasons = [f"{k.name}: {takes(k, layers[left[0]])}" for k in self.kernels]
        return f"no packed kernel for {counted(left, 'layer')} ({'; '.join(reasons)})"

    def build(self, model: Model) -> Runner:
        layers = quantized_layers(model)
        packed = runner.cast(model, COMPUTE)
        for name, kernel in self.assigned.items():
            packed.replace(name, kernel.pack(layers[name]))
        return runner.TorchRunner(packed.module)


def choose(name: str, model: Model) -> tuple[Engine | None, str | None]:
    """The engine ``name`` (``auto``, ``dense``, or a kernel's), or None and why it refuses.

    ``auto`` is ``dense`` where nothing is quantized, else all kernels together.

    Raises:
        UserError: there is no such engine (``engine=``).
    """
    found = kernels()
    if name not in {"auto", "dense", *found}:
        known = ", ".join(["auto", "dense", *found])
        raise UserError(f"engine={name}: no such engine; there are {known}")
    engine: Engine
    if name == "dense" or not quantized_layers(model):
        engine = Dense()
    else:
        engine = Layerwise.plan([k for k in found.values() if name in ("auto", k.name)], model)
    reason = engine.refuses(model)
    return (engine, None) if reason is None else (None, reason)


def available() -> dict[str, str]:
    """Each engine by name: ``ok`` where it works on this machine, else exactly why not."""
    return {"dense": "ok"} | {name: failure(name) or "ok" for name in kernels()}


@functools.cache
def kernels() -> dict[str, Kernel]:
    """The kernel families on disk, by name: a file ``torch_int4.py`` that has ``TorchInt4``."""
    found: dict[str, Kernel] = {}
    for item in pkgutil.iter_modules(__path__):
        title = "".join(part.title() for part in item.name.split("_"))
        module = importlib.import_module(f"{__name__}.{item.name}")
        if hasattr(module, title) and hasattr(getattr(module, title), "pack"):
            found[item.name] = getattr(module, title)()
    return found


@functools.cache
def failure(name: str) -> str | None:
    """Let a kernel multiply a small matrix: None when that is right, else why not, in one line."""
    kernel = kernels()[name]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator)
    try:
        layer = next(
            layer
            for bits, group in ((4, 32), (8, 32), (8, -1))
            for quant in [QuantTensor.quantize(weight, QuantSpec(bits=bits, group_size=group))]
            for layer in [QuantLinear(quant, None, torch.float32).to(kernel.device)]
            if kernel.refuses(layer) is None
        )
        x = torch.randn(3, 64, generator=generator).to(kernel.device, COMPUTE)
        y, expected = kernel.pack(layer)(x).float(), layer(x.float())
    except Exception as error:  # a missing operator, an instruction this processor lacks
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    wrong = float((y - expected).norm() / expected.norm())
    return None if wrong <= kernel.TOLERANCE else f"wrong by {wrong:.1g} on a small matrix"


def takes(kernel: Kernel, layer: Quantized) -> str | None:
    """Why ``kernel`` does not execute ``layer`` on this machine, or None."""
    device = layer.quant.codes.device.type
    if device != kernel.device:
        return f"it runs on {kernel.device}, and the layer is on {device}"
    return kernel.refuses(layer) or failure(kernel.name)


def quantized_layers(model: Model) -> dict[str, Quantized]:
    """The modules of ``model`` that hold codes, by name, in order."""
    modules = model.module.named_modules()
    return {name: module for name, module in modules if isinstance(module, Quantized)}


def beyond_codes(layers: Mapping[str, Quantized]) -> dict[str, list[str]]:
    """Layers that are more than their codes: a kernel that took these alone would be wrong."""
    return {
        "masks of pruned weights": [n for n, x in layers.items() if x.quant.mask is not None],
        "another library's layers": [n for n, x in layers.items() if isinstance(x, LibraryLinear)],
        "corrections of low rank": [n for n, x in layers.items() if getattr(x, "correction", None)],
    }


def counted(names: Sequence[str], noun: str) -> str:
    """``model.layers.0.mlp.up_proj and 12 more layers``."""
    more = len(names) - 1
    return names[0] if more == 0 else f"{names[0]} and {more} more {noun}{'s' * (more > 1)}"
