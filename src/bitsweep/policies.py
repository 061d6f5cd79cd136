"""Policies: ordered rules that turn a model into a Plan, and the audit that checks it was obeyed.

A policy is usually YAML alone (``conf/policy/*.yaml``). Rules are read from top to bottom, the last
that matches a layer wins, and a rule that matches nothing is an error: a policy that is silently
not applied is the field's most common way to publish a wrong row.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitsweep.errors import Refused, UserError
from bitsweep.spec import FULL_BITS, PER_CHANNEL, InputSpec, LayerSpec, Plan, QuantSpec

if TYPE_CHECKING:
    from bitsweep.models import Layer, Model

ROLES = (
    "embedding",
    "attention",
    "attention.qkv",
    "attention.out",
    "ffn",
    "ffn.up",
    "ffn.gate",
    "ffn.down",
    "head",
)
ALL_LINEAR = "linear"
"""The role that means every linear layer of the decoder's blocks."""

SPEC_KEYS = ("bits", "group_size", "symmetric", "format", "scale_dtype")


@dataclass(frozen=True)
class Rule:
    """Which layers (by role, glob over names, blocks) become what.

    Spec keys that are None take the sweep's axes, ``input_bits`` that of ``input.bits`` (which must
    then be below 16; 16 here leaves the inputs as they are). ``keep`` leaves the layers in full
    precision.
    ``blocks`` reads ``0-3,28-31``, with ``first``, ``last`` and negative numbers from the end.
    """

    role: str | None = None
    name: str | None = None
    blocks: str | None = None
    keep: bool = False
    bits: float | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    format: str | None = None
    scale_dtype: str | None = None
    input_bits: float | None = None

    def __str__(self) -> str:
        parts = [f"{key}: {getattr(self, key)}" for key in ("role", "name", "blocks")]
        return "{" + ", ".join(part for part in parts if not part.endswith("None")) + "}"

    def matches(self, layer: Layer, block_count: int) -> bool:
        """Whether this rule speaks about ``layer`` of a model with ``block_count`` blocks."""
        if self.role == ALL_LINEAR:
            role = layer.block is not None
        else:
            role = self.role is None or f"{layer.role}.".startswith(f"{self.role}.")
        name = self.name is None or fnmatch.fnmatchcase(layer.name, self.name)
        blocks = self.blocks is None or layer.block in parse_blocks(self.blocks, block_count)
        return role and name and blocks

    def spec(self, axes: QuantSpec) -> QuantSpec:
        """The sweep's ``axes`` with this rule's own values in their place."""
        own = {key: getattr(self, key) for key in SPEC_KEYS if getattr(self, key) is not None}
        return dataclasses.replace(axes, **own)


@dataclass(frozen=True)
class Policy:
    """Ordered rules. ``untie`` gives a tied head its own matrix when rules treat it apart."""

    name: str
    rules: tuple[Rule, ...]
    untie: bool = False

    @classmethod
    def from_config(cls, name: str, value: Mapping[str, Any]) -> Policy:
        """Read the mapping of a policy YAML.

        Raises:
            UserError: an unknown key, role or value; it names the rule and what is known.
        """
        unknown = sorted(set(value) - {"rules", "untie"})
        if unknown:
            raise UserError(f"policy.{unknown[0]}: no such key; a policy has rules and untie")
        rules = value.get("rules")
        if not isinstance(rules, (list, tuple)) or not rules:
            raise UserError(f"policy={name}: needs rules, a list of at least one rule")
        return cls(
            name=name,
            rules=tuple(_rule(f"policy.rules[{index}]", rule) for index, rule in enumerate(rules)),
            untie=bool(value.get("untie", False)),
        )


def _rule(where: str, value: Any) -> Rule:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: a rule is a mapping like {{role: ffn, bits: 4}}, not {value!r}")
    known = [item.name for item in dataclasses.fields(Rule)]
    for key in value:
        if key not in known:
            raise UserError(f"{where}.{key}: no such key; a rule has {', '.join(known)}")
    rule = Rule(**{key: value[key] for key in value})
    if rule.role is not None and rule.role not in (*ROLES, ALL_LINEAR):
        raise UserError(
            f"{where}.role={rule.role}: no such role; choose one of "
            f"{ALL_LINEAR}, {', '.join(ROLES)}"
        )
    if rule.keep and any(getattr(rule, key) is not None for key in SPEC_KEYS):
        raise UserError(f"{where}: keep leaves a layer as it is, so it takes no bits or group_size")
    if rule.blocks is not None:
        rule = dataclasses.replace(rule, blocks=str(rule.blocks))
        parse_blocks(str(rule.blocks), 1, where)
    return rule


def parse_blocks(text: str, count: int, where: str = "blocks") -> frozenset[int]:
    """Block indices of ``0-3,28-31``, ``first,last`` or ``-1`` in a model of ``count`` blocks."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        ends = {"first": "0", "last": "-1"}.get(part, part)
        lo, dash, hi = ends[1:].partition("-")
        try:
            start = int(ends[0] + lo)
            stop = int(hi) if dash else start
        except (ValueError, IndexError):
            raise UserError(
                f"{where}={text}: write blocks as 0-3,28-31 or first,last or -1"
            ) from None
        if stop < start:
            raise UserError(f"{where}={text}: {part} runs backwards; write the smaller index first")
        found |= {index + count if index < 0 else index for index in range(start, stop + 1)}
    return frozenset(found)


def make(
    policy: Policy,
    model: Model,
    axes: QuantSpec,
    misfit: str = "error",
    inputs: InputSpec | None = None,
) -> Plan:
    """The Plan that ``policy`` makes for ``model``, whose rules fall back on the sweep's ``axes``.

    ``inputs`` is how the inputs of the planned linear layers are quantized, None for not at all; a
    rule's ``input_bits`` changes the width. An embedding has no such input.

    ``misfit`` says what happens where a group does not divide a row: ``error`` refuses the point,
    ``per_channel`` gives that layer one scale a row, ``ragged`` lets its last group be smaller.

    Raises:
        UserError: a rule matches no layer of this model.
        Refused: a group does not fit, or the rules part a tied embedding from its head.
    """
    chosen: dict[str, QuantSpec] = {}
    widths: dict[str, float | None] = {}
    count = len(model.blocks)
    for index, rule in enumerate(policy.rules):
        matched = [layer for layer in model.layers.values() if rule.matches(layer, count)]
        if not matched:
            raise UserError(
                f"policy.rules[{index}]={rule}: matches no layer of this model; its roles are "
                f"{', '.join(_roles(model))}, its {count} blocks are numbered from 0, "
                f"its layers have names like {_example(model)}"
            )
        for layer in matched:
            if rule.keep:
                chosen.pop(layer.name, None)
            else:
                chosen[layer.name] = rule.spec(axes)
                widths[layer.name] = rule.input_bits
    _check_tied(policy, model, chosen)
    fitted, misfits = _fit(chosen, model, misfit)
    layers = {
        name: LayerSpec(fitted[name], _input(layer, inputs, widths[name]))
        for name, layer in model.layers.items()
        if name in fitted
    }
    return Plan(layers=layers, untie=policy.untie and model.tied, misfits=misfits)


def _input(layer: Layer, inputs: InputSpec | None, bits: float | None) -> InputSpec | None:
    if layer.kind == "embedding" or bits == FULL_BITS:
        return None
    if inputs is None or bits is None:
        return inputs
    return dataclasses.replace(inputs, quant=dataclasses.replace(inputs.quant, bits=bits))


def _roles(model: Model) -> list[str]:
    return list(dict.fromkeys(layer.role for layer in model.layers.values()))


def _example(model: Model) -> str:
    inner = [name for name, layer in model.layers.items() if layer.block is not None]
    return (inner or list(model.layers))[0]


def _check_tied(policy: Policy, model: Model, chosen: Mapping[str, QuantSpec]) -> None:
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


def _fit(
    chosen: Mapping[str, QuantSpec], model: Model, misfit: str
) -> tuple[dict[str, QuantSpec], dict[str, str]]:
    """Apply ``misfit`` to each layer whose row the group does not divide."""
    fitted, misfits = dict(chosen), {}
    wrong = [name for name in chosen if not chosen[name].fits(model.layers[name].shape[1])]
    if wrong and misfit == "error":
        raise Refused(_misfit_reason(wrong, chosen, model))
    for name in wrong:
        misfits[name] = misfit
        change: dict[str, Any] = (
            {"group_size": PER_CHANNEL} if misfit == "per_channel" else {"ragged": True}
        )
        fitted[name] = dataclasses.replace(chosen[name], **change)
    return fitted, misfits


def _misfit_reason(wrong: list[str], chosen: Mapping[str, QuantSpec], model: Model) -> str:
    first, group = wrong[0], chosen[wrong[0]].group_size
    widths = sorted({model.layers[name].shape[1] for name in wrong})
    others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    fits = fitting_groups(model.layers[name].shape[1] for name in chosen)
    advice = f"try {', '.join(map(str, fits))}, " if fits else "try "
    return (
        f"group_size={group} does not divide in_features={','.join(map(str, widths))} of "
        f"{first}{others}; {advice}-1 (per channel), or misfit=per_channel|ragged"
    )


def fitting_groups(widths: Iterable[int]) -> list[int]:
    """The usual group sizes that divide every one of ``widths``, largest three of them."""
    rows = list(widths)
    usual = (256, 128, 64, 32, 16, 8, 4, 2)
    return [g for g in usual if all(width % g == 0 for width in rows)][:3]


def audit(model: Model, plan: Plan) -> dict[str, str]:
    """What each quantizable module of ``model`` really is now, by name; checked against ``plan``.

    Raises:
        RuntimeError: a planned layer was not quantized as planned, or another one was. That is a
            mistake in a method, never a user's, and no number of such a point is kept.
    """
    from bitsweep.tensor import QuantTensor

    became: dict[str, str] = {}
    for name in model.layers:
        module = model.get(name)
        quant = getattr(module, "quant", None)
        spec = quant.spec if isinstance(quant, QuantTensor) else None
        planned = plan.layers.get(name)
        if (spec is None) != (planned is None):
            was = "left as it was" if spec is None else f"quantized to {spec}"
            raise RuntimeError(f"{name} was {was}, the plan says {planned or 'to keep it'}")
        if spec is None or planned is None:
            became[name] = str(module.weight.dtype)
            continue
        if spec != planned.weight:
            raise RuntimeError(f"{name} became {spec}, the plan says {planned.weight}")
        inputs = getattr(getattr(module, "input_quantizer", None), "spec", None)
        if inputs != planned.input:
            raise RuntimeError(f"{name} has inputs {inputs}, the plan says {planned.input}")
        if name in model.masks and not _gone(quant, model.masks[name]):
            raise RuntimeError(f"{name}: weights that were pruned came back")
        became[name] = str(planned)
    return became


def _gone(quant: Any, mask: Any) -> bool:
    """Whether all that ``mask`` prunes is 0 in ``quant``."""
    return quant.mask is not None and not bool((quant.mask & ~mask.to(quant.mask.device)).any())
