"""GPTQ (Frantar, Ashkboos, Hoefler & Alistarh, 2022): the error of each column into the next ones.

Minimises ``tr((W - Q) H (W - Q)^T)``, the squared error of the layer's output on calibration text,
with ``H = X^T X``. Columns are rounded in order; with ``U`` the upper Cholesky factor of the
inverse, ``H^-1 = U^T U``, the error ``e = (w_j - q_j) / U_jj`` of column j moves every later column
k by ``-e U_jk`` (Algorithm 1). Updates beyond a block of columns wait and are applied together.

Where a code stands for d columns P (GPTVQ, van Baalen et al., 2024), ``e = (w_P - q_P) U_PP^-1``
does the same for all of them, and ``|e|^2`` is what the choice adds to the objective: the entry
that makes it least is taken. A pruned weight has ``q = 0``, as in SparseGPT (Frantar & Alistarh,
2023): later columns make up for it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.calibration import Calibration, Hessian
from bitsweep.errors import UserError
from bitsweep.formats import Family, Params
from bitsweep.formats.codebook import nearest
from bitsweep.formats.int import Int
from bitsweep.methods import finite_weight, place
from bitsweep.methods._inputs import Inputs
from bitsweep.models import Model
from bitsweep.spec import PER_TENSOR, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

log = logging.getLogger(__name__)

Rounding = Callable[[Tensor, Tensor], Tensor]
"""``(column (out,), codes (out,) to write) -> what the codes stand for``."""


@dataclass(frozen=True)
class GPTQ:
    """Options of GPTQ.

    ``damping``: added to H's diagonal, as a share of its mean. ``act_order``: columns in falling
    order of their input's energy, so that errors of important ones meet the most columns that can
    absorb them. ``static_groups``: each group's grid is fitted before, to the original weights in
    their own order, so act_order needs no permutation at run time; without it a grid is fitted to
    the *updated* weights when its group begins, and act_order stores the order. ``block_size``:
    columns whose updates wait; it changes speed only. ``true_sequential``: layers of a block in
    the order in which they run, each seeing what those before it became.
    ``prefix``: inputs come from the ``quantized`` model so far, or from the ``full_precision`` one,
    whose Hessians serve every bits and group size.

    Where implementations differ: a column whose input is always zero is rounded to nearest (the
    authors' code sets it to zero, which another text would feel). Groups smaller than a block are
    fitted to weights with all earlier updates (the authors' code misses those of the running
    block). Formats that fit by error (codebooks) weight it with H's damped diagonal. Vectors keep
    together and act in order of their summed energy; their codebooks are always static, and are
    not tuned afterwards (GPTVQ's code does, by gradients). An embedding has no H to speak of, since
    its input is one-hot (H is diagonal, and rounding to nearest is the optimum): it is rounded,
    and so is a head tied to it.
    """

    damping: float = 0.01
    act_order: bool = True
    static_groups: bool = True
    block_size: int = 128
    true_sequential: bool = False
    prefix: str = "quantized"

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset()
    calibrated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Inputs(self.prefix, self.true_sequential).check()
        if self.damping <= 0 or self.block_size < 1:
            raise UserError("method.damping, block_size: above 0, at least 1")

    def skip(self, spec: QuantSpec) -> str | None:
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        inputs = Inputs(self.prefix, self.true_sequential)
        for names, hessian in inputs.of(model, plan, calibration, Hessian):
            weights = {name: finite_weight(model, name) for name in names}
            if hessian is None:
                log.warning(
                    "%s: the calibration text never reaches it; rounded to nearest",
                    ", ".join(names),
                )
                for name, weight in weights.items():
                    place(model, name, QuantTensor.quantize(weight, plan.layers[name].weight))
                continue
            for spec in dict.fromkeys(plan.layers[name].weight for name in names):
                alike = [name for name in names if plan.layers[name].weight == spec]
                quants = self.quantize_together(
                    [weights[name].to(model.device) for name in alike],
                    hessian.to(model.device),
                    spec,
                    ", ".join(alike),
                    [model.masks.get(name) for name in alike],
                )
                for name, quant in zip(alike, quants, strict=True):
                    place(model, name, quant.to(weights[name].device))
        model.plan = plan
        return model

    def quantize(
        self,
        weight: Tensor,
        hessian: Tensor,
        spec: QuantSpec,
        name: str = "",
        mask: Tensor | None = None,
    ) -> QuantTensor:
        """``weight`` ``(out, in)`` float32 quantized under ``hessian`` ``(in, in)`` float32.

        Where ``mask`` bool ``(out, in)`` is False the weight is pruned: 0 before and after.
        """
        return self.quantize_together([weight], hessian, spec, name, [mask])[0]

    @torch.no_grad()
    def quantize_together(
        self,
        weights: list[Tensor],
        hessian: Tensor,
        spec: QuantSpec,
        name: str,
        masks: list[Tensor | None],
    ) -> list[QuantTensor]:
        """Weights that read the same inputs: rows do not feel each other, so they are stacked.

        Unless the whole of a weight shares parameters: then one after the other.
        """
        family = formats.get(spec.format)
        vector = family.vector(spec)
        order = torch.arange(len(hessian), device=hessian.device)
        if self.act_order:
            energy = hessian.diagonal().view(-1, vector).sum(1)
            first = torch.argsort(energy, descending=True, stable=True).unsqueeze(1) * vector
            order = (first + order[:vector]).view(-1)
        factor = inverse_factor(hessian[order][:, order], self.damping, name)
        importance = hessian.diagonal() + self.damping * hessian.diagonal().mean()
        apart = spec.group_size == PER_TENSOR or bool(family.shared(weights[0], spec))
        each = [[i] for i in range(len(weights))] if apart else [list(range(len(weights)))]
        found: list[QuantTensor] = []
        for stack in each:
            rows = [len(weights[i]) for i in stack]
            pruned = any(masks[i] is not None for i in stack)
            kept = [_kept(weights[i], masks[i]) for i in stack]
            quant = self._stacked(
                torch.cat([weights[i] for i in stack]),
                torch.cat(kept) if pruned else None,
                order,
                factor,
                importance,
                spec,
            )
            found += [
                part.masked(masks[i]) for i, part in zip(stack, _rows(quant, rows), strict=True)
            ]
        return found

    def _stacked(
        self,
        weight: Tensor,
        mask: Tensor | None,
        order: Tensor,
        factor: Tensor,
        importance: Tensor,
        spec: QuantSpec,
    ) -> QuantTensor:
        family = formats.get(spec.format)
        vector = family.vector(spec)
        if mask is not None:
            weight = weight * mask
        grid = _Grid(weight, mask, order, importance, spec, self.static_groups)
        columns = weight[:, order].T.contiguous()
        kept = None if mask is None else mask[:, order].T.contiguous()
        if vector == 1:
            codes = _columns(columns, kept, factor, grid, self.block_size)
        else:
            codes = _vectors(columns, kept, factor, grid, self.block_size, vector)
        places = order.view(-1, vector)[:, 0] // vector
        natural = torch.empty_like(codes).index_copy_(0, places, codes).T.contiguous()
        moved = self.act_order and not grid.static
        return QuantTensor(natural, grid.params(), spec, order if moved else None)


def _kept(weight: Tensor, mask: Tensor | None) -> Tensor:
    every = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    return every if mask is None else mask.to(weight.device)


def _rows(quant: QuantTensor, counts: list[int]) -> list[QuantTensor]:
    """``quant`` cut into tensors of so many rows each."""
    if len(counts) == 1:
        return [quant]
    codes = quant.codes.split(counts)
    params = {name: value.split(counts) for name, value in quant.params.items()}
    return [
        QuantTensor(
            part.contiguous(),
            {n: v[i].contiguous() for n, v in params.items()},
            quant.spec,
            quant.permutation,
        )
        for i, part in enumerate(codes)
    ]


def inverse_factor(hessian: Tensor, damping: float, name: str = "") -> Tensor:
    """Upper triangular ``U`` ``(in, in)`` with ``U^T U = (H + damping * mean(diag H) I)^-1``.

    With J the reversal of the order, ``J H J = L L^T`` gives ``U = (J L J)^-1``: one Cholesky and
    one triangular inverse, and H is never inverted. A column that is always zero gets a diagonal
    of 1. In float64: a float32 factor is off by about 1e-4, and each code that flips for it sends
    the rest of its row another way. The damping grows tenfold, with a warning, until H is positive
    definite.
    """
    diagonal = hessian.diagonal().double()
    base = hessian.double() + torch.diag((diagonal == 0).double())
    mean = float(diagonal.mean()) or 1.0
    identity = torch.eye(len(diagonal), dtype=torch.float64, device=hessian.device)
    if not math.isfinite(float(base.sum())):
        raise FloatingPointError(f"{name}: its inputs on the calibration text are not finite")
    while True:
        lower, failed = torch.linalg.cholesky_ex((base + damping * mean * identity).flip(0, 1))
        if not int(failed):
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            return upper.float()
        damping *= 10
        log.warning("%s: Hessian not positive definite, damping raised to %g", name, damping)


class _Grid:
    """Each column's parameters, in the order in which GPTQ meets the columns.

    ``static``: fitted at once to the original ``weight``. So is a grid per tensor or per channel,
    which covers the row before any of it has moved, and so are vectors', whose order stays.
    """

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor | None,
        order: Tensor,
        importance: Tensor,
        spec: QuantSpec,
        static: bool,
    ) -> None:
        self.family: Family = formats.get(spec.format)
        self.spec = spec
        self.group_size = spec.group_size if spec.group_size > 0 else weight.shape[1]
        self.static = static or spec.group_size <= 0 or self.family.vector(spec) > 1
        self._shared = self.family.shared(weight, spec)
        self._importance = importance[order]
        self._mask = None if mask is None else mask[:, order]
        self._fitted: list[dict[str, Tensor]] = []
        self._roundings: list[Rounding] = []
        places = torch.arange(weight.shape[1], device=weight.device)
        if self.static:
            weights = importance.unsqueeze(0) if mask is None else importance * mask
            whole = formats.fit(weight, spec, weights)
            count = spec.groups(weight.shape[1])
            for k in range(count):
                self._add({n: v[:, k : k + 1] for n, v in whole.items() if n not in self._shared})
            places = order
        else:
            formats.split(weight, spec)  # raises for a group that does not fit
        self.group = torch.div(places, self.group_size, rounding_mode="floor").tolist()

    def begins(self, column: int) -> bool:
        """Whether a grid is to be fitted at this column."""
        return not self.static and column % self.group_size == 0

    def fit(self, columns: Tensor, start: int) -> None:
        """The next group's parameters from its weights ``(g, out)`` as they stand now."""
        stop = start + len(columns)
        groups, importance = columns.T.unsqueeze(1).contiguous(), self._importance[start:stop]
        if self._mask is not None:
            kept = self._mask[:, start:stop].unsqueeze(1)
            groups, importance = groups * kept, importance * kept
        self._add(self.family.fit(groups, self.spec, self._shared, importance))

    def _add(self, params: dict[str, Tensor]) -> None:
        self._fitted.append(params)
        values = {name: value.float() for name, value in (params | self._shared).items()}
        make = _uniform if isinstance(self.family, Int) else _general
        self._roundings.append(make(self.family, values, self.spec))

    def rounding(self, column: int) -> Rounding:
        return self._roundings[self.group[column]]

    def codebook(self, column: int) -> Tensor:
        """Entries ``(rows or 1, count, vector)`` of the vector that begins at ``column``."""
        return self._fitted[self.group[column]]["codebook"].float().squeeze(1)

    def params(self) -> dict[str, Tensor]:
        return formats.join_params(self._fitted) | self._shared


def _general(family: Family, params: Params, spec: QuantSpec) -> Rounding:
    def rounding(column: Tensor, codes: Tensor) -> Tensor:
        found = family.quantize(column.view(-1, 1, 1), params, spec)
        codes.copy_(found.view(-1))
        return family.dequantize(found, params, spec).view(-1)

    return rounding


def _uniform(family: Family, params: Params, spec: QuantSpec) -> Rounding:
    """The operations of :class:`Int`, each in place: they are most of GPTQ's loop."""
    half = 2.0 ** (int(spec.bits) - 1)
    scale = params["scale"].reshape(-1)
    zero = params["zero"].reshape(-1) if "zero" in params else None
    offset = None if zero is None else zero - half

    def rounding(column: Tensor, codes: Tensor) -> Tensor:
        values = column / scale
        if offset is not None:
            values += offset
        values.round_().clamp_(-half, half - 1).add_(half)
        codes.copy_(values)
        values -= half if zero is None else zero
        return values.mul_(scale)

    return rounding


def _columns(
    weight: Tensor, mask: Tensor | None, factor: Tensor, grid: _Grid, block_size: int
) -> Tensor:
    """Algorithm 1 over ``weight`` ``(in, out)``, transposed so that a column is contiguous.

    Returns codes uint8 ``(in, out)``; ``weight`` is overwritten.
    """
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    errors = torch.empty(block_size, weight.shape[1], device=weight.device)
    columns, code, diagonal = weight.unbind(), codes.unbind(), factor.diagonal().tolist()
    for start, stop in _blocks(weight.shape[0], grid, block_size):
        for j in range(start, stop):
            if grid.begins(j):
                grid.fit(weight[j : j + grid.group_size], j)
            rounded = grid.rounding(j)(columns[j], code[j])
            if mask is not None:
                rounded = rounded * mask[j]
            error = errors[j - start]
            torch.sub(columns[j], rounded, out=error).div_(diagonal[j])
            weight[j + 1 : stop].addr_(factor[j, j + 1 : stop], error, alpha=-1)
        waiting = errors[: stop - start]
        weight[stop:].addmm_(factor[start:stop, stop:].T, waiting, alpha=-1)
    return codes


def _vectors(
    weight: Tensor, mask: Tensor | None, factor: Tensor, grid: _Grid, block_size: int, vector: int
) -> Tensor:
    """The same with codes ``(in / vector, out)`` of ``vector`` columns each."""
    count, rows = weight.shape[0] // vector, weight.shape[1]
    codes = torch.empty(count, rows, dtype=torch.uint8, device=weight.device)
    step = max(1, block_size // vector) * vector
    errors = torch.empty(step, rows, device=weight.device)
    for start in range(0, len(weight), step):
        stop = min(start + step, len(weight))
        for j in range(start, stop, vector):
            own = slice(j, j + vector)
            triangle = factor[own, own]
            entries = grid.codebook(j)
            if mask is not None:
                entries = entries * mask[own].T.unsqueeze(1)
            wanted, entries = (
                torch.linalg.solve_triangular(triangle, one, upper=True, left=False)
                for one in (weight[own].T, entries)
            )
            if len(entries) == 1:  # one codebook for all rows
                places = nearest(wanted.unsqueeze(0), entries).view(-1)
                chosen = entries[0][places]
            else:
                places = nearest(wanted.unsqueeze(1), entries)
                chosen = entries.gather(1, places.unsqueeze(2).expand(-1, 1, vector)).squeeze(1)
                places = places.view(-1)
            codes[j // vector] = places
            error = errors[j - start : j - start + vector]
            torch.sub(wanted.T, chosen.T, out=error)
            weight[own.stop : stop].addmm_(factor[own, own.stop : stop].T, error, alpha=-1)
        waiting = errors[: stop - start]
        weight[stop:].addmm_(factor[start:stop, stop:].T, waiting, alpha=-1)
    return codes


def _blocks(columns: int, grid: _Grid, block_size: int) -> list[tuple[int, int]]:
    """Blocks of at most ``block_size`` columns that never end inside a group they began.

    So a grid is always fitted to weights that carry every earlier update: whole groups where they
    are smaller than a block, and a new block at each group's beginning where they are larger.
    """
    group = grid.group_size
    if grid.static:
        step = block_size
        starts = list(range(0, columns, step))
    elif group <= block_size:
        starts = list(range(0, columns, block_size // group * group))
    else:
        starts = [
            first + offset
            for first in range(0, columns, group)
            for offset in range(0, min(group, columns - first), block_size)
        ]
    return list(zip(starts, [*starts[1:], columns], strict=True))
