"""Methods choose codes: one algorithm per file, one verb, ``(model, plan, calibration) -> model``.

A method is a frozen dataclass whose fields are its options, and a YAML of the same defaults in
``conf/method``. It replaces the layers that the plan names, leaves all others untouched, and sets
``model.plan``. It gets a copy: layers are replaced, never written. A method that draws random
numbers takes :func:`seeded`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.linear import quantized
from bitsweep.models import Layer, Model
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor


class Method(Protocol):
    """What the story of a run asks of a method.

    ``version`` changes whenever codes do: it is part of a point's identity, and so are the options
    (one that was added later, with a default that changes nothing: see ``run.step_identity``).
    ``ignores`` names the axes that make no difference (``bits``, ``group_size``, ``format``,
    ``symmetric``, ``scale_dtype``, ``policy``, ``misfit``, ``calibration``, ``seed``): points that
    differ only there are one. ``calibrated`` says whether it looks at calibration text.

    A method that trains may have ``QUICK``, a ClassVar of options with which tests see all that it
    does in little time.
    """

    version: ClassVar[int]
    calibrated: ClassVar[bool]

    @property
    def ignores(self) -> frozenset[str]: ...

    def skip(self, spec: QuantSpec) -> str | None:
        """Why this method cannot make ``spec`` (with the key to change), or None."""

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        """What it really stores when asked for ``spec``."""

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        """Quantize the planned layers of ``model``, a copy that is the method's own."""


@runtime_checkable
class Particular(Protocol):
    """A method that does not take every layer, or not with any inputs: one of a library's."""

    library: ClassVar[str]

    def skip_layer(self, layer: Layer, spec: LayerSpec) -> str | None:
        """Why it cannot make ``spec`` of ``layer`` (with the key to change), or None."""


def replace_layers(
    model: Model,
    plan: Plan,
    names: Iterable[str],
    quantize: Callable[[Tensor, QuantSpec], QuantTensor],
) -> None:
    """Replace each of ``names`` by what ``quantize`` makes of its weight ``(out, in)``, float32.

    The head of a tied pair takes the embedding's codes: they are one tensor. A weight without
    values (on the meta device, of a point of which only the size is asked) becomes codes without.

    Raises:
        UserError: a weight is not finite (``model.path``).
    """
    for name in names:
        twin = tied_embedding(model, name)
        if twin is not None and twin in plan.layers:
            codes = cast(QuantTensor, model.get(twin).quant)
        elif model.weight(name).is_meta:
            codes = QuantTensor.unfilled(model.layers[name].shape, plan.layers[name].weight)
        else:
            codes = quantize(finite_weight(model, name), plan.layers[name].weight)
        place(model, name, codes)


def place(model: Model, name: str, quant: QuantTensor) -> None:
    """Put ``quant`` where the layer ``name`` is; what was pruned of it stays pruned."""
    if quant.mask is None:
        quant = quant.masked(model.masks.get(name))
    model.replace(name, quantized(quant, model.get(name)))


def seeded() -> torch.Generator:
    """A generator of the point's ``seed=``; the process-wide one is left as it is."""
    return torch.Generator().manual_seed(torch.initial_seed())


def finite_weight(model: Model, name: str) -> Tensor:
    """The weight ``(out, in)`` of a layer in float32.

    Raises:
        UserError: it holds NaN or infinity (``model.path``).
    """
    weight = model.weight(name).detach().float()
    quick = bool(weight.sum().isfinite())  # it may overflow, then all are asked
    if not quick and not bool(torch.isfinite(weight).all()):
        raise UserError(
            f"model.path={model.source.path}: {name} has weights that are NaN or infinite; "
            "use a sound checkpoint"
        )
    return weight


def tied_embedding(model: Model, name: str) -> str | None:
    """The embedding that is one tensor with the layer ``name``, or None."""
    if not model.tied or model.layers[name].role != "head":
        return None
    return next(layer.name for layer in model.layers.values() if layer.role == "embedding")
