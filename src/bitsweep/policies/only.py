"""One part of the model quantized alone: how much each layer, role or block matters.

Points with ``policy=only`` are ordinary ones; ``policy.only=each:layer`` in a sweep stands for one
point a layer of whichever model it meets. Their scores feed ``policy=budget`` and the report's
sensitivity table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bitsweep.compose import choices, nearest
from bitsweep.errors import UserError
from bitsweep.policies.choice import Asked, Choice
from bitsweep.policies.rules import ALL_LINEAR, ROLES, Rule, parse_blocks

if TYPE_CHECKING:
    from bitsweep.models import Model

EACH = "each:"
KINDS = ("layer", "role", "block")


@dataclass(frozen=True)
class Only:
    """``only``: a layer's name, ``role:ffn.up``, ``block:3``, or in a sweep ``each:layer``.

    All else stays in full precision. A tied embedding and head are one tensor: to name either is
    to name both (``model.untie=true`` parts them).
    """

    only: str

    untie: ClassVar[bool] = False
    decides: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        kind, colon, value = self.only.partition(":")
        if self.each is not None and value not in KINDS:
            raise UserError(f"policy.only={self.only}: takes each:{', each:'.join(KINDS)}")
        if kind == "role" and value not in (*ROLES, ALL_LINEAR):
            known = (ALL_LINEAR, *ROLES)
            raise UserError(
                f"policy.only={self.only}: no such role{nearest(value, known)}{choices(known)}"
            )
        if kind == "block":
            parse_blocks(value, 1, "policy.only=block:")
        if colon and kind not in ("each", "role", "block"):
            raise UserError(
                f"policy.only={self.only}: takes a layer's name, role:ROLE, block:INDEX or, "
                "in a sweep, each:layer"
            )

    @property
    def each(self) -> str | None:
        """``layer``, ``role`` or ``block`` where this stands for one point each."""
        kind, _, value = self.only.partition(":")
        return value if kind == "each" else None

    @property
    def name(self) -> str:
        return f"only {short(self.only)}"

    def choose(self, model: Model, asked: Asked) -> Choice:
        """The sweep's axes for the one part.

        Raises:
            UserError: this model has no such part, or it stands for several.
        """
        if self.each is not None:
            raise UserError(
                f"policy.only={self.only}: several points are a sweep; use bitsweep run -m"
            )
        names = self._names(model)
        if model.tied:
            ends = [layer.name for layer in model.layers.values() if layer.block is None]
            names |= set(ends) if names & set(ends) else set()
        ordered = [name for name in model.layers if name in names]
        return Choice(
            specs=dict.fromkeys(ordered, asked.axes),
            notes={"only": short(self.only), "layers": ordered},
        )

    def _names(self, model: Model) -> set[str]:
        kind, _, value = self.only.partition(":")
        if kind == "role":
            rule = Rule(role=value)
        elif kind == "block":
            rule = Rule(blocks=value)
        else:
            rule = Rule(name=self.only)
        count = len(model.blocks)
        found = {layer.name for layer in model.layers.values() if rule.matches(layer, count)}
        if not found:
            known = [target for kind in KINDS for target in targets(model, kind)]
            raise UserError(
                f"policy.only={self.only}: this model has no such part"
                f"{nearest(self.only, known) or f'; it has {known[1]} and others'}"
            )
        return found


def targets(model: Model, by: str) -> Mapping[str, tuple[str, ...]]:
    """What ``only`` can name in ``model``, and the layers of each, which are all layers once.

    ``by`` is layer, role or block; embedding and head, which lie in no block, come by themselves. A
    tied head belongs to its embedding.
    """
    found: dict[str, list[str]] = {}
    embedding = next((x.name for x in model.layers.values() if x.role == "embedding"), None)
    for layer in model.layers.values():
        target = layer.name
        if by == "role":
            target = f"role:{layer.role}"
        elif by == "block" and layer.block is not None:
            target = f"block:{layer.block}"
        if layer.role == "head" and model.tied and embedding is not None:
            target = "role:embedding" if by == "role" else embedding
        found.setdefault(target, []).append(layer.name)
    return {target: tuple(names) for target, names in found.items()}


def short(target: str) -> str:
    """``0.mlp.up_proj`` for ``model.layers.0.mlp.up_proj``; roles and blocks as they are."""
    if ":" in target:
        return target
    inside = re.search(r"(?:^|\.)(\d+\..+)$", target)
    return inside[1] if inside else target.rpartition(".")[2]
