"""Which kernels and engines are on disk, and which of them work on this machine."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

import torch

from bitsweep.activations import InputQuantizer
from bitsweep.engines.packed import COMPUTE
from bitsweep.engines.protocols import GraphEngine, Kernel
from bitsweep.linear import QuantLinear
from bitsweep.spec import InputSpec, QuantSpec
from bitsweep.tensor import QuantTensor

PROBES = [
    (QuantSpec(bits, group, symmetric=True), inputs)
    for inputs in (None, InputSpec(QuantSpec(8, scale_dtype="float32")))
    for bits, group in ((4, 32), (8, 32), (8, -1))
]
"""Layers that some kernel takes: the first that one takes is what it is tried on."""


@functools.cache
def _found() -> dict[str, Any]:
    """``engines/torch_int4.py`` has the class ``TorchInt4`` with ``name = "torch_int4"``."""
    package = importlib.import_module("bitsweep.engines")
    found = {}
    for item in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{item.name}")
        made: Any = getattr(module, item.name.title().replace("_", ""), None)
        if getattr(made, "name", None) == item.name:
            found[item.name] = made()
    return found


@functools.cache
def kernels() -> dict[str, Kernel]:
    """The kernels that replace single layers, by name, in the order in which they are asked."""
    return {name: each for name, each in _found().items() if hasattr(each, "pack")}


@functools.cache
def graphs() -> dict[str, GraphEngine]:
    """The engines that run the whole model, by name, in the order in which they are asked."""
    return {name: each for name, each in _found().items() if hasattr(each, "build")}


def available() -> dict[str, str]:
    """Each engine by name: ``ok`` where it works on this machine, else exactly why not."""
    names = ("dense", *kernels(), *graphs())
    return {name: failure(name) or "ok" for name in names}


@functools.cache
def failure(name: str) -> str | None:
    """Why the engine ``name`` does not work on this machine, in one line, or None.

    A kernel multiplies a small matrix, which must come out right; an engine of whole graphs needs
    its library.
    """
    if name in graphs():
        return graphs()[name].missing()
    return _failure(kernels()[name]) if name in kernels() else None


def _failure(kernel: Kernel) -> str | None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(32, 64, generator=generator), torch.randn(3, 64, generator=generator)
    weight[0], x[0] = 4, 4  # the largest codes, all products of one sign: what may overflow
    try:
        layers = (_layer(weight, spec, inputs).to(kernel.device) for spec, inputs in PROBES)
        layer = next(layer for layer in layers if kernel.refuses(layer) is None)
        x = x.to(kernel.device, COMPUTE)
        y, expected = kernel.pack(layer)(x).float(), layer(x.float())
    except Exception as error:  # a missing operator, an instruction this processor lacks
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    wrong = float((y - expected).norm() / expected.norm())
    return None if wrong <= kernel.TOLERANCE else f"wrong by {wrong:.1g} on a small matrix"


def _layer(weight: torch.Tensor, spec: QuantSpec, inputs: InputSpec | None) -> QuantLinear:
    layer = QuantLinear(QuantTensor.quantize(weight, spec), None, torch.float32)
    layer.input_quantizer = None if inputs is None else InputQuantizer(inputs)
    return layer
