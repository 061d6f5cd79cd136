"""What the engines' rooms share: what a runner, an engine and a kernel are, and what no one runs.

A file of this folder holds one way to execute packed codes, ``torch_int4.py`` the class
``TorchInt4`` with ``name = "torch_int4"``, of one of two kinds:

* a :class:`Kernel` has ``pack``: it takes the place of single layers in the Hugging Face model;
* a :class:`GraphEngine` has ``build``: it runs the whole model in a runtime of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bitsweep import kv
from bitsweep.library import LibraryLinear
from bitsweep.linear import Quantized
from bitsweep.models import Model
from bitsweep.spec import InputSpec

CACHE = "the key-value cache is quantized, and no engine here executes that"


class Runner(Protocol):
    """A model ready to decode; ``cache`` belongs to the runner that made it."""

    def prefill(self, ids: Tensor) -> tuple[Tensor, Any]:
        """Logits ``(batch, vocabulary)`` after the prompt ``(batch, tokens)``, and its cache."""
        ...

    def decode(self, ids: Tensor, cache: Any) -> Tensor:
        """Logits ``(batch, vocabulary)`` after one more token ``(batch, 1)``; ``cache`` grows."""
        ...


class Engine(Protocol):
    """A way to execute models, named in the Record.

    One that computes in a dtype of its own, whatever the model's is, has it as ``COMPUTE``.
    """

    @property
    def name(self) -> str: ...

    def refuses(self, model: Model) -> str | None:
        """Why this engine does not execute all that is quantized in ``model``, or None."""
        ...

    def build(self, model: Model) -> Runner:
        """A runner of ``model``, which stays as it is. Only after :meth:`refuses` said None."""
        ...


@runtime_checkable
class GraphEngine(Engine, Protocol):
    """An engine that runs the whole model, made without arguments from its file.

    ``COMPUTE`` is the dtype of all that is not integers: ``dense`` in that dtype is what it must
    equal. Its library is imported inside its methods, never with the file.
    """

    COMPUTE: torch.dtype

    def missing(self) -> str | None:
        """What this machine lacks to run it, with the command that installs it, or None."""
        ...


class Kernel(Protocol):
    """One family of packed kernels: the layers it executes, and how it holds their codes.

    ``TOLERANCE`` bounds the relative error of a layer's outputs (Frobenius norm) to ``dense`` in
    float32, with the input quantizer that the layer has.
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


def quantized_layers(model: Model) -> dict[str, Quantized]:
    """The modules of ``model`` that hold codes, by name, in order."""
    modules = model.module.named_modules()
    return {name: module for name, module in modules if isinstance(module, Quantized)}


def input_spec(layer: Quantized) -> InputSpec | None:
    """How the inputs of ``layer`` are quantized; None where they float (or are indices)."""
    quantizer = getattr(layer, "input_quantizer", None)
    return None if quantizer is None else quantizer.spec


def beyond_codes(model: Model) -> str | None:
    """What of ``model`` is more than codes and quantized inputs: no engine here executes it."""
    if kv.installed(model) or (model.plan is not None and model.plan.kv is not None):
        return CACHE
    for what, names in _more_than_codes(quantized_layers(model)).items():
        if names:
            return f"no engine here knows {what}: {counted(names, 'layer')}"
    return None


def _more_than_codes(layers: Mapping[str, Quantized]) -> dict[str, list[str]]:
    """Layers that are more than their codes: who took these alone would be wrong."""
    return {
        "masks of pruned weights": [n for n, x in layers.items() if x.quant.mask is not None],
        "another library's layers": [n for n, x in layers.items() if isinstance(x, LibraryLinear)],
        "corrections of low rank": [n for n, x in layers.items() if getattr(x, "correction", None)],
    }


def misfits(model: Model, misfit: Callable[[Quantized], str | None]) -> str | None:
    """The layers of ``model`` that ``misfit`` has a reason against, with the first one's; or None.

    Reasons that hold whatever the layers are (:func:`beyond_codes`, a device) come before.
    """
    reason = beyond_codes(model)
    if reason is not None:
        return reason
    if model.device.type != "cpu":
        return f"it runs on cpu, and the model is on {model.device.type}"
    layers = quantized_layers(model)
    refused = {name: why for name, layer in layers.items() if (why := misfit(layer)) is not None}
    if not refused:
        return None
    return f"{counted(list(refused), 'layer')}: {next(iter(refused.values()))}"


def lacking(modules: Sequence[str], extra: str) -> str | None:
    """Why ``modules`` can not be imported, with what to install, or None: for ``missing``."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"pip install 'bitsweep[{extra}]' ({str(error).splitlines()[0]})"
    return None


def counted(names: Sequence[str], noun: str) -> str:
    """``model.layers.0.mlp.up_proj and 12 more layers``."""
    more = len(names) - 1
    return names[0] if more == 0 else f"{names[0]} and {more} more {noun}{'s' * (more > 1)}"
