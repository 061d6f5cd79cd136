"""Policies turn a model into a Plan, and the audit checks that it was obeyed.

A policy is usually YAML alone (``conf/policy/*.yaml``, rules). One that computes is a class in a
file of its own, named by ``_target_``: :mod:`bitsweep.policies.only`, ``budget``. All of them say
which layers get which format; :func:`make` does for all what follows: tied pairs, groups that do
not fit, inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bitsweep.artifacts import Artifacts
from bitsweep.errors import Refused
from bitsweep.policies.audit import audit
from bitsweep.policies.choice import Asked, Choice, Chooser, fit, fitting_groups, itself
from bitsweep.policies.rules import ALL_LINEAR, ROLES, Policy, Rule, parse_blocks
from bitsweep.spec import FULL_BITS, InputSpec, LayerSpec, Plan, QuantSpec

if TYPE_CHECKING:
    from bitsweep.models import Layer, Model

__all__ = [
    "ALL_LINEAR",
    "ROLES",
    "Asked",
    "Choice",
    "Chooser",
    "Policy",
    "Rule",
    "audit",
    "fitting_groups",
    "make",
    "parse_blocks",
]


def make(
    policy: Chooser,
    model: Model,
    axes: QuantSpec,
    misfit: str = "error",
    inputs: InputSpec | None = None,
    *,
    resolve: Callable[[QuantSpec], QuantSpec] = itself,
    columns: Mapping[str, Any] | None = None,
    command: str = "",
    judged: bool = True,
    artifacts: Artifacts | None = None,
) -> Plan:
    """The Plan that ``policy`` makes for ``model``, where what it leaves open is the sweep's axes.

    ``inputs`` is how the inputs of the planned linear layers are quantized, None for not at all; a
    rule's ``input_bits`` changes the width. An embedding has no such input.

    ``misfit`` says what happens where a group does not divide a row: ``error`` refuses the point,
    ``per_channel`` gives that layer one scale a row, ``ragged`` lets its last group be smaller.

    ``resolve``, ``columns``, ``command`` and ``judged`` are the point's, for policies that look at
    Records: see :class:`Asked`, as for the sweep's ``artifacts``.

    Raises:
        UserError: the policy speaks of layers that this model does not have.
        Refused: a group does not fit, the policy parts a tied embedding from its head, or it
            needs Records that are not there.
    """
    shared = artifacts or Artifacts(None)
    asked = Asked(axes, misfit, resolve, columns or {}, command, judged, shared)
    choice = policy.choose(model, asked)
    _check_tied(policy, model, choice.specs)
    fitted, misfits = fit(choice.specs, model, misfit)
    layers = {
        name: LayerSpec(fitted[name], _input(layer, inputs, choice.input_bits.get(name)))
        for name, layer in model.layers.items()
        if name in fitted
    }
    untie = policy.untie and model.tied
    return Plan(layers=layers, untie=untie, misfits=misfits, notes=choice.notes)


def _input(layer: Layer, inputs: InputSpec | None, bits: float | None) -> InputSpec | None:
    if layer.kind == "embedding" or bits == FULL_BITS:
        return None
    if bits is None:
        return inputs
    if inputs is None:
        raise Refused(
            f"input.bits=16: leaves inputs as they are, and the policy has input_bits={bits:g} for "
            f"{layer.name}; use input.bits={bits:g}, or another policy"
        )
    return inputs.at(bits)


def _check_tied(policy: Chooser, model: Model, chosen: Mapping[str, QuantSpec]) -> None:
    """A tied embedding and head are one tensor: they become the same, or are untied first."""
    if not model.tied or policy.untie:
        return
    ends = {layer.role: layer.name for layer in model.layers.values() if layer.block is None}
    specs = {chosen.get(name) for name in ends.values()}
    if len(specs) > 1:
        raise Refused(
            f"policy={policy.name}: embedding and head of {model.source.name} are one tied tensor "
            "and the rules treat them differently; model.untie=true gives the head its own matrix "
            "(the size then counts both)"
        )
