"""Heads, ffn channels and blocks: which rows and columns of which layers go together.

A unit is felt through columns: a head through its own of ``attention.out``, a channel through its
own of ``ffn.down``. Which rows of the layers before serve it depends on the architecture: heads
that share keys and values, query, key and value or gate and up fused in one matrix, in one piece
after another or woven. So it is not looked up: the rows of which a unit's columns have a gradient
serve it. A row goes when all the units that it serves are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitsweep.models import Model

TOKENS = 8
"""Of the pass whose gradients say which rows serve which columns."""


class Lines(NamedTuple):
    """Rows ``(out,)`` and columns ``(in,)`` of a layer that stay, bool."""

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Units:
    """``count`` units. ``columns``: by layer, the unit ``(in,)`` that is felt through each column.

    ``rows``: by layer, pairs ``(pairs,)`` of a unit and a row that serves it. A row may serve
    several; one in no pair always stays.
    """

    count: int
    columns: dict[str, Tensor]
    rows: dict[str, tuple[Tensor, Tensor]]

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys([*self.rows, *self.columns]))

    def energy(self, weights: dict[str, Tensor]) -> Tensor:
        """The sum of squares ``(count,)`` of all that would go with each unit, shared rows too."""
        total = self.felt(weights, {})
        for name, (unit, row) in self.rows.items():
            total.index_add_(0, unit, weights[name].double().square().sum(1).cpu()[row])
        return total

    def felt(self, weights: dict[str, Tensor], seen: dict[str, Tensor]) -> Tensor:
        """The sum of ``(W_ij ||X_j||)^2`` ``(count,)`` over the columns of each unit.

        ``seen``: mean squares ``(in,)`` of the inputs, taken as 1 where they are missing.
        """
        total = torch.zeros(self.count, dtype=torch.float64)
        for name, unit in self.columns.items():
            energy = weights[name].double().square().sum(0)
            energy = energy * seen[name] if name in seen else energy
            total.index_add_(0, unit, energy.cpu())
        return total

    def lines(self, kept: Tensor, weights: dict[str, Tensor]) -> dict[str, Lines]:
        """What stays of each layer when the units outside ``kept`` ``(count,)`` go."""
        found = {}
        for name in self.layers:
            out_features, in_features = weights[name].shape
            rows = torch.ones(out_features, dtype=torch.bool)
            columns = torch.ones(in_features, dtype=torch.bool)
            if name in self.rows:
                unit, row = self.rows[name]
                rows[row] = False
                rows[row[kept[unit]]] = True
            if name in self.columns:
                columns = kept[self.columns[name]]
            found[name] = Lines(rows, columns)
        return found


def misfit(model: Model, pattern: str, sparsity: float, key: str) -> str | None:
    """Why ``model`` has no such units, or too few (with the ``key`` to change), or None."""
    if "low_rank" in model.transformed:
        return f"{pattern} of factors are none; use {key}.pattern=unstructured after low_rank"
    count = len(model.blocks)
    if pattern != "blocks":
        role = "attention.out" if pattern == "heads" else "ffn.down"
        for index in range(len(model.blocks)):
            found = _with_role(model, index, role)
            if len(found) != 1 or (pattern == "heads" and _width(model, found[0]) % _heads(model)):
                return f"block {index} has no {role} whose columns are {pattern}"
            count = _heads(model) if pattern == "heads" else _width(model, found[0])
    if int(sparsity * count + 1e-9) < 1:
        return f"{key}.sparsity={sparsity}: none of {count} {pattern}; try {1 / count:.2g}"
    return None


def heads_of(model: Model, index: int) -> Units:
    """The attention heads of a block; ``model`` in full precision."""
    (out,) = _with_role(model, index, "attention.out")
    readers = _with_role(model, index, "attention.qkv")
    count = _heads(model)
    columns = torch.arange(count).repeat_interleave(_width(model, out) // count)
    probe = torch.cos(torch.arange(len(columns)))  # no two columns may cancel
    serves: list[list[Tensor]] = []
    with _gradients(model, out, readers) as ask:
        for head in range(count):
            found = ask(probe * (columns == head))
            serves.append([(gradient != 0).any(0) for gradient in found])
    pairs = {
        name: torch.stack([serves[head][i] for head in range(count)]).nonzero(as_tuple=True)
        for i, name in enumerate(readers)
    }
    return Units(count, {out: columns}, {name: (unit, row) for name, (unit, row) in pairs.items()})


def channels_of(model: Model, index: int) -> Units:
    """The feed-forward channels of a block; ``model`` in full precision."""
    (down,) = _with_role(model, index, "ffn.down")
    readers = _with_role(model, index, "ffn.up") + _with_role(model, index, "ffn.gate")
    count = _width(model, down)
    each = torch.arange(count)
    rows = {n: (each, each) for n in readers if model.layers[n].shape[0] == count}
    fused = [name for name in readers if name not in rows]
    if fused:
        with _gradients(model, down, fused) as ask:
            plain, numbered = ask(torch.ones(count)), ask(each + 1.0)
        for i, name in enumerate(fused):
            one, many = plain[i][-1], numbered[i][-1]
            row = one.nonzero().view(-1)  # serves one channel: the two differ by its number
            rows[name] = ((many[row] / one[row]).round().long() - 1, row)
    return Units(count, {down: each}, rows)


def blocks_of(model: Model, index: int) -> Units:
    """All of block ``index`` as one unit."""
    rows = {}
    for layer in model.layers.values():
        if layer.block == index:
            each = torch.arange(layer.shape[0])
            rows[layer.name] = (torch.zeros_like(each), each)
    return Units(1, {}, rows)


Ask = Callable[[Tensor], Sequence[Tensor]]


@contextmanager
def _gradients(model: Model, felt: str, serving: Sequence[str]) -> Iterator[Ask]:
    """``ask(v)``: of ``v`` ``(in,)`` times the input of ``felt`` at a short text's last token, the

    gradient ``(tokens, out)`` by the outputs of each of ``serving``.
    """
    shifts: dict[str, Tensor] = {}
    caught: list[Tensor] = []

    def shift(name: str) -> Callable[..., Tensor]:
        def act(module: Any, args: Any, output: Tensor) -> Tensor:
            shifts[name] = torch.zeros_like(output, requires_grad=True)
            return output + shifts[name]

        return act

    def catch(module: Any, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0])

    hooks = [model.get(name).register_forward_hook(shift(name)) for name in serving]
    hooks.append(model.get(felt).register_forward_pre_hook(catch))
    try:
        with torch.enable_grad():
            ids = torch.arange(1, TOKENS + 1, device=model.device).view(1, -1)
            model.module(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()

    def ask(weighting: Tensor) -> Sequence[Tensor]:
        last = caught[0].reshape(-1, caught[0].shape[-1])[-1]
        value = (last * weighting.to(last)).sum()
        leaves = [shifts[name] for name in serving]
        found = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
        return [gradient.float().cpu().view(TOKENS, -1) for gradient in found]

    yield ask


def _with_role(model: Model, index: int, role: str) -> list[str]:
    return [x.name for x in model.layers.values() if x.block == index and x.role == role]


def _width(model: Model, name: str) -> int:
    return model.layers[name].shape[1]


def _heads(model: Model) -> int:
    count: int = model.module.config.get_text_config(decoder=True).num_attention_heads
    return count
