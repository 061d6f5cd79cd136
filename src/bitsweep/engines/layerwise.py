"""Packed kernels inside the Hugging Face model, each layer on the one that executes its spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from bitsweep.engines import registry, runner
from bitsweep.engines.packed import COMPUTE, Packed
from bitsweep.engines.protocols import (
    Kernel,
    Runner,
    beyond_codes,
    counted,
    quantized_layers,
)
from bitsweep.linear import QuantEmbedding, Quantized
from bitsweep.models import Model


@dataclass(frozen=True)
class Layerwise:
    """Packed kernels inside the Hugging Face model; what is not quantized runs in bf16.

    ``assigned`` says which kernel executes a layer.
    """

    COMPUTE: ClassVar[torch.dtype] = COMPUTE

    kernels: Sequence[Kernel]
    assigned: dict[str, Kernel]

    @property
    def name(self) -> str:
        return "+".join(sorted({kernel.name for kernel in self.assigned.values()}))

    @classmethod
    def plan(cls, kernels: Sequence[Kernel], model: Model) -> Layerwise:
        """Each quantized layer of ``model`` to the first of ``kernels`` that executes it.

        Embeddings, which all kernels look up alike, go to one that multiplies as well.
        """
        assigned: dict[str, Kernel] = {}
        layers = quantized_layers(model)
        for name in sorted(layers, key=lambda name: isinstance(layers[name], QuantEmbedding)):
            at_work = [k for k in kernels if k in assigned.values()]
            asked = [*at_work, *kernels] if isinstance(layers[name], QuantEmbedding) else kernels
            taker = next((k for k in asked if takes(k, layers[name]) is None), None)
            if taker is not None:
                assigned[name] = taker
        return cls(kernels, assigned)

    def refuses(self, model: Model) -> str | None:
        reason = beyond_codes(model)
        if reason is not None:
            return reason
        layers = quantized_layers(model)
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
        share_inputs(packed.module)
        return runner.TorchRunner(packed.module)


def takes(kernel: Kernel, layer: Quantized) -> str | None:
    """Why ``kernel`` does not execute ``layer`` on this machine, or None."""
    device = layer.quant.codes.device.type
    if device != kernel.device:
        return f"it runs on {kernel.device}, and the layer is on {device}"
    return kernel.refuses(layer) or registry.failure(kernel.name)


def share_inputs(module: nn.Module) -> None:
    """Let packed layers side by side quantize a tensor once that all of them are given.

    ``inputs`` of a packed layer is what makes its codes, and keeps those of the last tensor: query,
    key and value get the same one, gate and up another. Those of other specs stay apart.
    """
    for parent in module.modules():
        made: dict[Any, Any] = {}
        for child in parent.children():
            inputs = getattr(child, "inputs", None)
            if isinstance(child, Packed) and inputs is not None:
                child.inputs = made.setdefault(inputs.spec, inputs)
