"""AWQ, activation-aware weight quantization (Lin, Tang, Tang, Yang, Dang, Gan & Han, 2023).

Weights that meet large inputs matter most. Before rounding, their input channels are scaled up by
``s`` and what feeds them is scaled down (equation 4; :mod:`bitsweep.models.fold`), which changes
nothing but the grid they are rounded on. ``s`` is searched, for the layers that read one tensor
together:

    s = argmin_ratio  || Q(W diag(s)) diag(s)^-1 X - W X ||^2,    s = mean|X|^ratio        (5)

and with ``duo_scaling`` ``s = mean|X|^ratio / mean(|W| / max|W|)^(1 - ratio)``, weights counted
relative to their group's largest. ``s`` is normalised by ``sqrt(max(s) min(s))``. Then each group's
range is clipped to what gives its share of the output the least squared error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bitsweep import formats
from bitsweep.calibration import Block, Calibration
from bitsweep.calibration.statistics import Hessian
from bitsweep.errors import UserError
from bitsweep.methods import finite_weight, place, replace_layers
from bitsweep.models import Model
from bitsweep.models.fold import edges, fold
from bitsweep.spec import PER_TENSOR, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

log = logging.getLogger(__name__)

CLIPS = tuple(1 - step / 20 for step in range(10))
"""Factors on a group's largest weight: 1.00, 0.95 ... 0.55 (the authors')."""

LEAST = 1e-4
"""Smallest factor before they are normalised."""


class Inputs(Hessian):
    """The Hessian of a layer's inputs, and ``mean |x|`` of each of its channels."""

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self._magnitude = torch.zeros(features, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor) -> None:
        super().add(inputs)
        self._magnitude += inputs.abs().sum(0, dtype=torch.float64)

    def magnitude(self) -> Tensor:
        return (self._magnitude / max(1, self._tokens)).float()


@dataclass(frozen=True)
class AWQ:
    """``grid`` ratios are tried; ``windows`` of the calibration's are run for each (null: all).

    What is compared is the output of the smallest module that holds all the layers scaled
    together: attention for query, key and value; the feed-forward for gate and up; for a single
    layer itself, where the error is ``tr((W - Q) H (W - Q)^T)`` and every token counts. Inputs
    come from the full-precision model, in the authors' code and llm-compressor's as well. Channels
    move across every edge that can take a factor (:func:`bitsweep.models.fold.edges`), so not from
    a value to ``attention.out`` with grouped heads, nor behind a GELU; such layers are clipped
    only. Layers of the group that are not planned are folded, too: for them nothing changes.

    Where implementations differ:

    * **Ratios**: ``duo_scaling`` tries the identity and ``0 ... 1`` in ``grid - 1`` even steps,
      without it ``0 ... 1`` in ``grid`` (llm-compressor; the authors: ``0 ... 0.95``, never duo).
    * **Clipping**: symmetric, to ``max|w|`` times one of :data:`CLIPS`, on all tokens (the authors
      take 512; llm-compressor does not clip: ``clip=false``). Not for query and key, whose errors
      multiply, nor for a matrix fused of them, as in the authors' code.
    * **Embedding and head** are rounded to nearest, as in all implementations that round them.
    """

    grid: int = 20
    duo_scaling: bool = True
    clip: bool = True
    windows: int | None = 16

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset({"seed"})
    calibrated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.grid < 3:
            raise UserError(f"method.grid={self.grid}: at least 3 ratios; AWQ's authors try 20")
        if self.windows is not None and self.windows < 1:
            raise UserError(f"method.windows={self.windows}: at least 1, or null for all")

    def skip(self, spec: QuantSpec) -> str | None:
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec

    @torch.no_grad()
    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        blocks = model.by_block(plan.layers)
        outside = blocks.pop(len(model.blocks), [])
        replace_layers(model, plan, outside, QuantTensor.quantize)
        full = calibration.model.copy()
        for block in calibration.blocks(full) if blocks else ():
            with full.block_on_device(block.index):
                self._quantize(model, plan, full, block, blocks.get(block.index, []))
            if block.index == max(blocks):
                break
        model.plan = plan
        return model

    def _quantize(
        self, model: Model, plan: Plan, full: Model, block: Block, names: list[str]
    ) -> None:
        """Scale, clip and round the layers ``names`` of one block."""
        for name in names:
            finite_weight(model, name)
        groups = {
            source: readers
            for source, readers in edges(model).items()
            if source.startswith(f"{block.name}.") and not set(readers).isdisjoint(names)
        }
        readers = [name for group in groups.values() for name in group]
        seen = block.observe(dict.fromkeys([*names, *readers]), Inputs)
        hessians = {name: inputs.value() for name, inputs in seen.items()}
        search = _Search(full, plan, block, self.windows)
        for source, group in groups.items():
            if group[0] not in seen:
                continue
            ratios = self._candidates(seen[group[0]].magnitude(), search.weights(group), plan)
            factor = search.best(group, hessians[group[0]], ratios)
            fold(model, source, factor)
            for name in group:
                hessians[name] = hessians[name] / torch.outer(factor, factor)
        for name in names:
            weight, spec = finite_weight(model, name), plan.layers[name].weight
            if name not in seen:
                log.warning("%s: the calibration text never reaches it; rounded to nearest", name)
            elif self.clip and not _is_query_or_key(model, name):
                weight = clipped(weight, hessians[name].to(weight.device), spec)
            place(model, name, QuantTensor.quantize(weight, spec))

    def _candidates(
        self, magnitude: Tensor, weights: dict[str, Tensor], plan: Plan
    ) -> Iterable[Tensor]:
        """The factors ``(in,)`` to try, the identity first."""
        if not self.duo_scaling:
            for step in range(self.grid):
                yield _normalised(magnitude ** (step / (self.grid - 1)))
            return
        yield torch.ones_like(magnitude)
        ours = torch.cat(
            [relative(weight, plan.layers[name].weight) for name, weight in weights.items()]
        ).mean(0)
        for step in range(self.grid - 1):
            ratio = step / (self.grid - 2)
            yield _normalised(magnitude**ratio / (ours ** (1 - ratio) + LEAST))


class _Search:
    """Tries factors on the layers of one block of the full-precision model ``full``."""

    def __init__(self, full: Model, plan: Plan, block: Block, windows: int | None) -> None:
        self.full = full
        self.plan = plan
        self.block = block
        self.windows = windows

    def weights(self, group: list[str]) -> dict[str, Tensor]:
        """The planned ones of ``group`` and their weights ``(out, in)``, float32."""
        return {
            name: finite_weight(self.full, name).to(self.full.device)
            for name in group
            if name in self.plan.layers
        }

    def best(self, group: list[str], hessian: Tensor, factors: Iterable[Tensor]) -> Tensor:
        """The first of ``factors`` with the least error of what the layers of ``group`` do."""
        weights = self.weights(group)
        if len(group) == 1:
            weight = weights[group[0]]

            def error(rounded: dict[str, Tensor]) -> float:
                moved = rounded[group[0]] - weight
                return float(((moved @ hessian) * moved).sum(dtype=torch.float64))

        else:
            error = _Parent(self.full, self.block, group, self.windows).error
        best, least = torch.ones_like(hessian[0]), torch.inf
        for factor in factors:
            found = error({name: self._rounded(name, w, factor) for name, w in weights.items()})
            if found < least:
                best, least = factor, found
        return best

    def _rounded(self, name: str, weight: Tensor, factor: Tensor) -> Tensor:
        """``Q(W diag(s)) diag(s)^-1``."""
        quant = QuantTensor.quantize(weight * factor, self.plan.layers[name].weight)
        return quant.masked(self.full.masks.get(name)).dequantize().div_(factor)


class _Parent:
    """The smallest module that holds all of ``group``, and the calls it gets on ``windows``."""

    def __init__(self, full: Model, block: Block, group: list[str], windows: int | None) -> None:
        self.full = full
        self.name = _common_parent(full, group)
        self.module = full.get(self.name)
        self.calls: list[tuple[Any, Any]] = []
        hidden = block.inputs()[:windows]
        hook = self.module.register_forward_pre_hook(self._note, with_kwargs=True)
        try:
            for at in torch.arange(len(hidden)).split(8):
                block.run(hidden[at], at)
        finally:
            hook.remove()
        self.targets = self._outputs({})

    def _note(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls.append((args, kwargs))

    def _outputs(self, weights: dict[str, Tensor]) -> list[Tensor]:
        prefix = f"{self.name}."
        inside = {}
        for name, weight in weights.items():
            like = self.full.get(name).get_parameter("weight")
            turned = weight.t() if self.full.layers[name].kind == "conv1d" else weight
            inside[f"{name.removeprefix(prefix)}.weight"] = turned.to(like.dtype)
        found = []
        for args, kwargs in self.calls:
            output = functional_call(self.module, inside, args, kwargs)
            found.append((output[0] if isinstance(output, tuple) else output).float())
        return found

    def error(self, rounded: dict[str, Tensor]) -> float:
        """The squared error of the module's outputs with these weights, summed."""
        outputs = self._outputs(rounded)
        pairs = zip(outputs, self.targets, strict=True)
        return sum(float((one - two).square().sum(dtype=torch.float64)) for one, two in pairs)


def relative(weight: Tensor, spec: QuantSpec) -> Tensor:
    """``|w|`` ``(out, in)`` as a share of the largest of its group."""
    parts = [part.abs() for part in formats.split(weight, spec)]
    shares = [part / (part.amax(-1, keepdim=True) + 1e-6) for part in parts]
    return formats.join(shares, weight.shape)


def clipped(weight: Tensor, hessian: Tensor, spec: QuantSpec) -> Tensor:
    """``weight`` ``(out, in)``, each group clamped to its best symmetric range.

    Best is the least squared error of the group's own share of the output, ``d H_gg d^T``: with
    the other groups' as they were.
    """
    parts = formats.split(weight, spec)
    limits = [part.abs().amax(-1, keepdim=True) for part in parts]
    best = [limit.clone() for limit in limits]
    least = [torch.full_like(limit, torch.inf) for limit in limits]
    for clip in CLIPS:
        tried = [limit * clip for limit in limits]
        cut = [part.clamp(-limit, limit) for part, limit in zip(parts, tried, strict=True)]
        quant = QuantTensor.quantize(formats.join(cut, weight.shape), spec)
        for k, error in enumerate(_errors(quant.dequantize() - weight, hessian, spec)):
            better = error < least[k]
            least[k] = torch.where(better, error, least[k])
            best[k] = torch.where(better, tried[k], best[k])
    cut = [part.clamp(-limit, limit) for part, limit in zip(parts, best, strict=True)]
    return formats.join(cut, weight.shape)


def _errors(moved: Tensor, hessian: Tensor, spec: QuantSpec) -> list[Tensor]:
    """``d H_gg d^T`` of each group ``(rows, n, 1)``, by part (see :func:`formats.split`)."""
    if spec.group_size == PER_TENSOR:
        return [((moved @ hessian) * moved).sum().view(1, 1, 1)]
    errors, start = [], 0
    for part in formats.split(moved, spec):
        _, count, size = part.shape
        places = torch.arange(start, start + count * size, device=part.device).view(count, size)
        blocks = hessian[places.unsqueeze(2), places.unsqueeze(1)]
        errors.append((torch.einsum("rng,ngh->rnh", part, blocks) * part).sum(-1, keepdim=True))
        start += count * size
    return errors


def _normalised(factor: Tensor) -> Tensor:
    factor = factor.clamp(min=LEAST)
    factor = factor / (factor.max() * factor.min()).sqrt()
    return torch.where(factor.isfinite(), factor, 1.0)


def _is_query_or_key(model: Model, name: str) -> bool:
    """Whether a layer makes queries or keys: of that role, and not what attention averages."""
    if model.layers[name].role != "attention.qkv":
        return False
    block = model.layers[name].block
    for layer in model.layers.values():
        if layer.block == block and layer.role == "attention.out" and layer.source == name:
            return model.layers[name].shape[0] > layer.shape[1]  # fused: queries and keys as well
    return True


def _common_parent(model: Model, names: list[str]) -> str:
    """The module that is run and holds all of ``names``: their nearest common ancestor."""
    paths = [name.split(".") for name in names]
    shared = 0
    while len({tuple(path[: shared + 1]) for path in paths}) == 1:
        shared += 1
    while isinstance(model.get(".".join(paths[0][:shared])), nn.ModuleList | nn.ModuleDict):
        shared -= 1
    return ".".join(paths[0][:shared])
