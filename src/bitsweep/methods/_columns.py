"""GPTQ's columns: the grid that each is rounded to, and the loops over them.

:mod:`bitsweep.methods.gptq` says what they compute, and names the symbols.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.formats import Family, Params
from bitsweep.formats.codebook import nearest
from bitsweep.formats.int import Int
from bitsweep.spec import QuantSpec

Rounding = Callable[[Tensor, Tensor], Tensor]
"""``(column (out,), codes (out,) to write) -> what the codes stand for``."""


class Grid:
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


def round_columns(
    weight: Tensor, mask: Tensor | None, factor: Tensor, grid: Grid, block_size: int
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


def round_vectors(
    weight: Tensor, mask: Tensor | None, factor: Tensor, grid: Grid, block_size: int, vector: int
) -> Tensor:
    """:func:`round_columns` with codes ``(in / vector, out)`` of ``vector`` columns each."""
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


def _blocks(columns: int, grid: Grid, block_size: int) -> list[tuple[int, int]]:
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
