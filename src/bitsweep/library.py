"""Layers quantized and executed by another library, behind the same face as our own.

A :class:`LibraryLinear` computes with the library's own module, so a point shows what that library
does, its treatment of inputs included. Its ``quant`` holds the library's codes in our format: the
audit, the weight errors and the size see it like any other layer. What the library really keeps in
memory may be more than its codes (torchao keeps 4 bits in bytes); ``held_bytes`` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bitsweep.errors import UserError
from bitsweep.linear import QuantLinear
from bitsweep.methods import finite_weight
from bitsweep.models import Layer, Model
from bitsweep.spec import InputSpec, LayerSpec, Plan
from bitsweep.tensor import QuantTensor

Convert = Callable[[nn.Linear, LayerSpec], tuple[nn.Module, QuantTensor, int]]
"""A float32 Linear to the library's module, its codes, and the bytes that it holds."""


class Inherent(nn.Module):
    """Stands where an input quantizer stands: the library quantizes inputs by itself, like this."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, input: Tensor) -> Tensor:
        return input


class LibraryLinear(QuantLinear):
    """``held`` is the library's module; it takes and gives float32."""

    def __init__(
        self,
        held: nn.Module,
        quant: QuantTensor,
        held_bytes: int,
        inputs: InputSpec | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(quant, None, dtype)
        self.__dict__["held"] = held  # not a submodule: its dtypes are the library's affair
        self.held_bytes = held_bytes
        self.input_quantizer = None if inputs is None else Inherent(inputs)

    def forward(self, input: Tensor) -> Tensor:
        held: nn.Module = self.__dict__["held"]
        output: Tensor = held(input.float())
        return output.to(input.dtype)


def convert_layers(model: Model, plan: Plan, convert: Convert) -> None:
    """Replace every planned layer of ``model`` by what ``convert`` makes of it.

    Raises:
        UserError: weights were pruned before (``transforms``): no library here keeps a mask; or
            they are not finite.
    """
    for name, spec in plan.layers.items():
        if name in model.masks:
            raise UserError(
                f"transforms: {name} was pruned, which a library's own layer would undo; "
                "use one of bitsweep's methods"
            )
        module = model.get(name)
        held, quant, size = convert(plain_linear(model, name), spec)
        dtype = module.weight.dtype
        assert isinstance(dtype, torch.dtype)
        model.replace(name, LibraryLinear(held, quant, size, spec.input, dtype))
    model.plan = plan


def plain_linear(model: Model, name: str) -> nn.Linear:
    """The layer as a float32 ``nn.Linear`` of its own on the CPU or the model's device."""
    weight = finite_weight(model, name)
    bias: Any = getattr(model.get(name), "bias", None)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone().contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().float().clone(), requires_grad=False)
    return linear


def linear_only(library: str, layer: Layer) -> str | None:
    """Why ``library``, which has linear layers only, does not take ``layer``."""
    if layer.kind != "embedding":
        return None
    return (
        f"{library} quantizes linear layers, and {layer.name} is an embedding; try policy=uniform"
    )


def wants_inputs(library: str, wanted: str, found: InputSpec | None) -> str:
    """The reason of a point whose inputs are not what ``library`` does to them."""
    asked = "full precision" if found is None else f"a{found}"
    return f"{library} computes with inputs {wanted}, and this point asks for {asked}"
