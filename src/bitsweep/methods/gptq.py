"""GPTQ (Frantar, Ashkboos, Hoefler & Alistarh, 2022): the error of each column into the next ones.

Minimises ``tr((W - Q) H (W - Q)^T)``, the squared error of the layer's output on calibration text,
with ``H = X^T X``. Columns are rounded in order; with ``U`` the upper Cholesky factor of the
inverse, ``H^-1 = U^T U``, the error ``e = (w_j - q_j) / U_jj`` of column j moves every later column
k by ``-e U_jk`` (Algorithm 1). Updates beyond a block of columns wait and are applied together.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.calibration import Block, Calibration, Hessian
from bitsweep.errors import UserError
from bitsweep.formats import Family
from bitsweep.methods import finite_weight, place, replace_layers, tied_embedding
from bitsweep.models import Model
from bitsweep.spec import Plan, QuantSpec
from bitsweep.tensor import QuantTensor

log = logging.getLogger(__name__)

PREFIXES = ("quantized", "full_precision")


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
    block). An embedding has no H to speak of, since its input is one-hot (H is diagonal, and
    rounding to nearest is the optimum): it is rounded, and so is a head tied to it.
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
        if self.prefix not in PREFIXES:
            raise UserError(f"method.prefix={self.prefix}: use {' or '.join(PREFIXES)}")
        if self.true_sequential and self.prefix != "quantized":
            raise UserError("method.true_sequential=true: needs method.prefix=quantized")
        if self.damping <= 0 or self.block_size < 1:
            raise UserError("method.damping, block_size: above 0, at least 1")

    def skip(self, spec: QuantSpec) -> str | None:
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        rounded = [name for name in plan.layers if _is_rounded(model, name)]
        replace_layers(model, plan, rounded, QuantTensor.quantize)
        last = len(model.blocks)
        blocks: dict[int, list[str]] = {}
        for name in plan.layers:
            if name not in rounded:
                place = model.layers[name].block
                blocks.setdefault(last if place is None else place, []).append(name)
        if self.prefix == "full_precision":
            for index, names in sorted(blocks.items()):
                hessians = _by_layer(calibration.full_precision(index, Hessian))
                self._quantize(model, plan, index, names, hessians)
        elif blocks:
            for block in calibration.blocks(model):
                self._walk(model, plan, block, blocks.get(block.index, []))
                if block.index == max(blocks):
                    break
        model.plan = plan
        return model

    def _walk(self, model: Model, plan: Plan, block: Block, names: list[str]) -> None:
        """Quantize the planned layers of a block with what the model as it stands feeds them."""
        stages = [names]
        if self.true_sequential and block.index < len(model.blocks):
            order = model.sequential(block.index)
            stages = [[name for name in stage if name in names] for stage in order]
        for stage in filter(None, stages):
            shared = block.observe(stage, Hessian)
            values = {id(hessian): hessian.value() for hessian in shared.values()}
            hessians = {name: values[id(hessian)] for name, hessian in shared.items()}
            self._quantize(model, plan, block.index, stage, hessians)

    def _quantize(
        self, model: Model, plan: Plan, index: int, names: list[str], hessians: dict[str, Tensor]
    ) -> None:
        for name in names:
            weight, spec = finite_weight(model, name), plan.layers[name].weight
            if name in hessians:
                hessian = hessians[name].to(model.device)
                quant = self.quantize(weight.to(model.device), hessian, spec, name)
            else:
                log.warning("%s: the calibration text never reaches it; rounded to nearest", name)
                quant = QuantTensor.quantize(weight, spec)
            place(model, name, quant.to(weight.device))

    @torch.no_grad()
    def quantize(
        self, weight: Tensor, hessian: Tensor, spec: QuantSpec, name: str = ""
    ) -> QuantTensor:
        """``weight`` ``(out, in)`` float32 quantized under ``hessian`` ``(in, in)`` float32."""
        in_features = weight.shape[1]
        diagonal = hessian.diagonal()
        order = torch.arange(in_features, device=weight.device)
        if self.act_order:
            order = torch.argsort(diagonal, descending=True, stable=True)
        factor = inverse_factor(hessian[order][:, order], self.damping, name)
        grid = _Grid(weight, order, spec, static=self.static_groups)
        codes = _columns(weight[:, order].T.contiguous(), factor, grid, self.block_size)
        natural = torch.empty_like(codes).index_copy_(0, order, codes).T.contiguous()
        moved = self.act_order and not grid.static and spec.group_size > 0
        return QuantTensor(natural, grid.params(), spec, order if moved else None)


def _is_rounded(model: Model, name: str) -> bool:
    return model.layers[name].kind == "embedding" or tied_embedding(model, name) is not None


def _by_layer(shared: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for names, value in shared.items() for name in names.split(",")}


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
    which covers the row before any of it has moved.
    """

    def __init__(self, weight: Tensor, order: Tensor, spec: QuantSpec, static: bool) -> None:
        self.family: Family = formats.get(spec.format)
        self.spec = spec
        self.group_size = spec.group_size if spec.group_size > 0 else weight.shape[1]
        self.static = static or spec.group_size <= 0
        self._fitted: list[dict[str, Tensor]] = []
        places = torch.arange(weight.shape[1], device=weight.device)
        if self.static:
            parts = formats.split(weight, spec)
            whole = formats.join_params([self.family.fit(part, spec) for part in parts])
            self._fitted = [
                {name: value[:, k : k + 1] for name, value in whole.items()}
                for k in range(whole["scale"].shape[1])
            ]
            places = order
        else:
            formats.split(weight, spec)  # raises for a group that does not fit
        self.group = torch.div(places, self.group_size, rounding_mode="floor").tolist()
        self._float: list[dict[str, Tensor]] = [_floats(params) for params in self._fitted]

    def begins(self, column: int) -> bool:
        """Whether a grid is to be fitted at this column."""
        return not self.static and column % self.group_size == 0

    def fit(self, columns: Tensor) -> None:
        """The next group's parameters from its weights ``(g, out)`` as they stand now."""
        params = self.family.fit(columns.T.unsqueeze(1).contiguous(), self.spec)
        self._fitted.append(params)
        self._float.append(_floats(params))

    def round(self, column: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Codes ``(out,)`` uint8 of column ``index`` and what they stand for."""
        params, groups = self._float[self.group[index]], column.view(-1, 1, 1)
        codes = self.family.quantize(groups, params, self.spec)
        return codes.view(-1), self.family.dequantize(codes, params, self.spec).view(-1)

    def params(self) -> dict[str, Tensor]:
        return formats.join_params(self._fitted)


def _floats(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in params.items()}


def _columns(weight: Tensor, factor: Tensor, grid: _Grid, block_size: int) -> Tensor:
    """Algorithm 1 over ``weight`` ``(in, out)``, transposed so that a column is contiguous.

    Returns codes uint8 ``(in, out)``; ``weight`` is overwritten.
    """
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    errors = torch.empty(block_size, weight.shape[1], device=weight.device)
    for start, stop in _blocks(weight.shape[0], grid, block_size):
        for j in range(start, stop):
            if grid.begins(j):
                grid.fit(weight[j : j + grid.group_size])
            codes[j], rounded = grid.round(weight[j], j)
            error = errors[j - start]
            torch.sub(weight[j], rounded, out=error).div_(factor[j, j])
            weight[j + 1 : stop].addr_(factor[j, j + 1 : stop], error, alpha=-1)
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
