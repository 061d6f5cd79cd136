"""Ordered rules, the usual policy: YAML alone.

Rules are read from top to bottom, the last that matches a layer wins, and a rule that matches
nothing is an error: a policy that is silently not applied is the field's most common way to
publish a wrong row.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from bitsweep.errors import UserError
from bitsweep.policies.choice import Asked, Choice
from bitsweep.spec import FULL_BITS, QuantSpec
from bitsweep.typed import fit

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

BLOCKS = "write blocks as 0-3,28-31 or first,last or -1"

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
        """The sweep's ``axes`` with this rule's own values, and its format's, in their place."""
        from bitsweep import formats

        own = {key: getattr(self, key) for key in SPEC_KEYS if getattr(self, key) is not None}
        return formats.resolve(dataclasses.replace(axes, **own))


@dataclass(frozen=True)
class Policy:
    """Ordered rules. ``untie`` gives a tied head its own matrix when rules treat it apart."""

    name: str
    rules: tuple[Rule, ...]
    untie: bool = False

    decides: ClassVar[frozenset[str]] = frozenset()

    def choose(self, model: Model, asked: Asked) -> Choice:
        """The last rule that matches a layer decides it.

        Raises:
            UserError: a rule matches no layer of this model.
        """
        chosen: dict[str, QuantSpec] = {}
        widths: dict[str, float | None] = {}
        count = len(model.blocks)
        for index, rule in enumerate(self.rules):
            matched = [layer for layer in model.layers.values() if rule.matches(layer, count)]
            if not matched:
                raise UserError(
                    f"policy.rules[{index}]={rule}: matches no layer of this model; its roles are "
                    f"{', '.join(roles(model))}, its {count} blocks are numbered from 0, "
                    f"its layers have names like {_example(model)}"
                )
            for layer in matched:
                if rule.keep:
                    chosen.pop(layer.name, None)
                else:
                    chosen[layer.name] = rule.spec(asked.axes)
                    widths[layer.name] = rule.input_bits
        return Choice(chosen, widths)

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
            rules=tuple(_rule(f"policy.rules[{i}]", rule, name) for i, rule in enumerate(rules)),
            untie=fit("policy.untie", value.get("untie", False), bool),
        )


def _rule(where: str, value: Any, policy: str) -> Rule:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: a rule is a mapping like {{role: ffn, bits: 4}}, not {value!r}")
    known = [item.name for item in dataclasses.fields(Rule)]
    for key in value:
        if key not in known:
            raise UserError(f"{where}.{key}: no such key; a rule has {', '.join(known)}")
        if key == "blocks" and isinstance(value[key], list):
            raise UserError(f"{where}.blocks={value[key]}: {BLOCKS}, without brackets")
        if key != "blocks" or not isinstance(value[key], int):  # one number is not text
            fit(f"{where}.{key}", value[key], get_type_hints(Rule)[key])
    rule = Rule(**value)
    if rule.role is not None and rule.role not in (*ROLES, ALL_LINEAR):
        raise UserError(
            f"{where}.role={rule.role}: no such role; choose one of "
            f"{ALL_LINEAR}, {', '.join(ROLES)}"
        )
    if rule.bits is not None and rule.bits >= FULL_BITS:
        raise UserError(
            f"{where}.bits={rule.bits:g}: policy={policy} would leave these layers as they are; "
            "write keep: true"
        )
    width = rule.input_bits
    if width is not None and not 0 < width <= FULL_BITS:
        raise UserError(f"{where}.input_bits={width}: takes a number over 0 and up to {FULL_BITS}")
    if rule.keep and any(getattr(rule, key) is not None for key in (*SPEC_KEYS, "input_bits")):
        raise UserError(f"{where}: keep leaves a layer as it is, so it takes no bits or group_size")
    if rule.blocks is not None:
        rule = dataclasses.replace(rule, blocks=str(rule.blocks))
        parse_blocks(str(rule.blocks), 1, f"{where}.blocks")
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
            raise UserError(f"{where}={text}: {BLOCKS}") from None
        if stop < start:
            raise UserError(f"{where}={text}: {part} runs backwards; write the smaller index first")
        found |= {index + count if index < 0 else index for index in range(start, stop + 1)}
    return frozenset(found)


def roles(model: Model) -> list[str]:
    """The roles that the layers of ``model`` play, in order of execution."""
    return list(dict.fromkeys(layer.role for layer in model.layers.values()))


def _example(model: Model) -> str:
    inner = [name for name, layer in model.layers.items() if layer.block is not None]
    return (inner or list(model.layers))[0]
