"""Codebooks: a code is an entry of a table fitted by k-means; of one weight, or of 2, 4 or 8.

``codebook`` gives each group ``2**bits`` entries (SqueezeLLM, Kim et al., 2023, without its sparse
outliers). ``vector2``, ``vector4`` and ``vector8`` have entries for that many consecutive weights
of a row (GPTVQ, van Baalen et al., 2024). ``bits`` stays what one weight takes: a code of ``vector8
bits=0.5`` has 4 bits for 8 weights.

    minimise  sum_i h_i (w_i - c_code(i))^2          h: ``importance``, 1 without it

Conventions, where implementations differ:

* **Entries** are stored in ``scale_dtype`` (float16 or float32), codes are chosen against what is
  stored, and all entries are counted in the size. There is no scale, and no entry is kept at 0.
* **One codebook for** a group, a channel (-1) or the whole tensor (0). Entries of vectors are many
  and long: 256 of 4 weights take 2 KiB, so ``group_size=0`` is the sensible one for them.
* **One weight**: sorted, the clusters are intervals, and dynamic programming finds the best ones
  of up to :data:`BINS` bins of equal count (exact for groups of as many weights); with too
  many entries for that, the entries start at the optimal density of high resolution, which is that
  of the weights to the power 1/3 (Panter & Dite, 1951). Lloyd's iteration does the rest.
* **Vectors**: k-means++ from fixed random numbers, then Lloyd's iteration; the same at every seed.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from bitsweep.errors import UserError
from bitsweep.formats import Family, Params
from bitsweep.spec import PER_CHANNEL, QuantSpec

VARIANTS = {
    "vector2": "Codebooks of two weights a code, 0.5 to 4 bits.",
    "vector4": "Codebooks of four weights a code, 0.25 to 2 bits.",
    "vector8": "Codebooks of eight weights a code, 0.125 to 1 bit.",
}

DTYPES = {"float16": torch.float16, "float32": torch.float32}
WIDTHS = range(1, 9)
"""Bits of one code."""

BINS = 64
LLOYD = 100
"""Iterations at most of one weight's clusters, which cost little; vectors take a quarter."""

CHUNK = 2**22
"""Numbers of one intermediate tensor."""


class Codebook(Family):
    """Entries fitted by k-means, of ``vector`` weights each."""

    has_zero = False

    def vector(self, spec: QuantSpec) -> int:
        return int(self.name.removeprefix("vector")) if self.name != "codebook" else 1

    def skip(self, spec: QuantSpec) -> str | None:
        vector = self.vector(spec)
        width = spec.bits * vector
        if width not in WIDTHS:
            first, last = 1 / vector, 8 / vector
            each = f" in steps of {first:g}: a code of 1 to 8 bits for {vector} weights"
            return f"bits={spec.bits:g}: format={self.name} has {first:g} to {last:g} bits" + (
                each if vector > 1 else ""
            )
        if spec.group_size < PER_CHANNEL:
            return f"group_size={spec.group_size}: a size, -1 (per channel) or 0 (per tensor)"
        if spec.group_size > 0 and spec.group_size % vector:
            return (
                f"group_size={spec.group_size}: format={self.name} needs a multiple of {vector}, "
                "or 0 (one codebook for the whole tensor)"
            )
        if spec.scale_dtype not in DTYPES:
            return f"scale_dtype={spec.scale_dtype}: entries are float16 or float32"
        if spec.symmetric:
            return "symmetric=true: a codebook has no zero-point; try symmetric=false"
        entries = 2 ** int(width)
        table = entries * vector * self.params_bits(spec)["codebook"]
        if spec.group_size > 0 and table / spec.group_size + spec.bits >= 16:
            return (
                f"group_size={spec.group_size} bits={spec.bits:g}: a codebook of {entries} entries "
                f"for each group takes {table / spec.group_size:g} bits a weight; "
                "try group_size=0 (one for the whole tensor), -1 or fewer bits"
            )
        return None

    def spans_rows(self, spec: QuantSpec) -> bool:
        return True  # k-means draws for all of them, and goes on until all of them are settled

    def fit(
        self,
        groups: Tensor,
        spec: QuantSpec,
        shared: Params = MappingProxyType({}),
        importance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        vector, entries = self.vector(spec), 2 ** self._width(spec)
        rows, count, size = groups.shape
        points = groups.float().reshape(rows * count, size // vector, vector)
        weights = torch.ones_like(points)
        if importance is not None:
            weights = importance.float().expand(groups.shape).reshape(points.shape)
            nothing = weights.sum((1, 2), keepdim=True) == 0  # all pruned, or never any input
            weights = torch.where(nothing, 1.0, weights)
        if vector == 1:
            centers = scalar_clusters(points[..., 0], weights[..., 0], entries).unsqueeze(-1)
        else:
            centers = vector_clusters(points, weights, entries)
        return {"codebook": _stored(centers, spec).view(rows, count, entries, vector)}

    def quantize(
        self, groups: Tensor, params: Params, spec: QuantSpec, importance: Tensor | None = None
    ) -> Tensor:
        """The nearest codes; ``importance`` weights the places of a vector, of one weight nothing.

        Entries of a scalar codebook are in rising order; of equal ones the first is used.
        """
        codebook, vector = params["codebook"].float(), self.vector(spec)
        rows, count, size = groups.shape
        points = groups.reshape(len(codebook) * codebook.shape[1], -1, vector)
        centers = codebook.flatten(0, 1)
        if vector == 1:
            codes = torch.searchsorted(_limits(centers[..., 0]), points[..., 0].contiguous())
        else:
            weights = importance
            if importance is not None:
                weights = importance.expand(groups.shape).reshape(points.shape)
            codes = nearest(points, centers, weights)
        return codes.to(torch.uint8).view(rows, count, size // vector)

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        centers = params["codebook"].float().flatten(0, 1)
        flat = codes.reshape(len(centers), -1, 1).long().expand(-1, -1, centers.shape[2])
        return centers.gather(1, flat).view(*codes.shape[:2], -1)

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        return {"codebook": 32 if spec.scale_dtype == "float32" else 16}


def _limits(entries: Tensor) -> Tensor:
    """Upper limits ``(groups, count - 1)`` of what rounds to each of the rising ``entries``.

    An entry reaches up to the middle to the next other one: equal entries share their limit, so
    that the search stops at the first of them.
    """
    low, high = entries[:, :-1], entries[:, 1:]
    middle = ((low + high) / 2).masked_fill_(low == high, torch.inf)
    return middle.flip(1).cummin(1).values.flip(1).contiguous()


def _stored(centers: Tensor, spec: QuantSpec) -> Tensor:
    stored = centers.to(DTYPES[spec.scale_dtype])
    if not bool(torch.isfinite(stored).all()):
        raise UserError(
            f"scale_dtype={spec.scale_dtype}: weights of {float(centers.abs().max()):.3g} are "
            "beyond it; try scale_dtype=float32"
        )
    return stored


# ------------------------------------------------------------------------------ one weight


def scalar_clusters(values: Tensor, weights: Tensor, count: int) -> Tensor:
    """Centers ``(groups, count)``, rising, of ``values`` ``(groups, m)`` with ``weights``."""
    values, order = values.double().sort(1)
    if values.shape[1] <= count:
        unused = values[:, -1:].expand(-1, count - values.shape[1])
        return torch.cat([values, unused], 1).float()
    weights = weights.double().gather(1, order)
    middle = values.mean(1, keepdim=True)
    values = values - middle  # sums of squares then lose no digits to a common offset
    mass, moment, energy = (_sums(weights * values**power) for power in range(3))
    bins = min(BINS, values.shape[1])
    if count <= bins // 4 or bins == values.shape[1]:
        edges = torch.linspace(0, values.shape[1], bins + 1, device=values.device).round().long()
        sums = torch.stack([mass, moment, energy])[:, :, edges]
        starts = [
            _best_intervals(part, count) for part in sums.split(max(1, CHUNK // (bins + 1) ** 2), 1)
        ]
        bounds = edges[torch.cat(starts)]
    else:
        gaps = torch.diff(values, dim=1, prepend=values[:, :1])
        share = (weights.pow(1 / 3) * gaps.pow(2 / 3)).cumsum(1)
        share /= share[:, -1:].clamp(min=torch.finfo(share.dtype).tiny)
        targets = torch.arange(1, count, device=values.device, dtype=share.dtype) / count
        bounds = torch.searchsorted(share, targets.expand(len(values), -1).contiguous())
        bounds = torch.nn.functional.pad(bounds, (1, 0))
        bounds = torch.nn.functional.pad(bounds, (0, 1), value=values.shape[1])
    last = values.shape[1] - 1
    centers = values.gather(1, bounds[:, :-1].clamp(max=last))
    for _ in range(LLOYD):
        inside = torch.diff(mass.gather(1, bounds), dim=1)
        mean = torch.diff(moment.gather(1, bounds), dim=1) / inside
        centers = torch.where(inside > 0, mean, centers).cummax(1).values
        between = (centers[:, 1:] + centers[:, :-1]) / 2
        moved = bounds.clone()
        moved[:, 1:-1] = torch.searchsorted(values, between.contiguous())
        if torch.equal(moved, bounds):
            break
        bounds = moved
    return (centers + middle).float()


def _sums(values: Tensor) -> Tensor:
    """Sums ``(groups, m + 1)`` of the first 0, 1 ... m values."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))


def _best_intervals(sums: Tensor, count: int) -> Tensor:
    """Edges ``(groups, count + 1)`` of the intervals of bins with the least squared error.

    ``sums`` ``(3, groups, bins + 1)`` are those of weights, weighted values and weighted squares up
    to each edge. ``D_t(b) = min_a D_t-1(a) + error(a, b)``, the error of one interval being
    ``energy - moment^2 / mass``.
    """
    within = sums.unsqueeze(2) - sums.unsqueeze(3)  # [:, g, a, b]: from edge a to edge b
    error = within[2] - within[1].square() / within[0].clamp(min=torch.finfo(sums.dtype).tiny)
    edges = sums.shape[2]
    backwards = torch.ones(edges, edges, dtype=torch.bool, device=sums.device).tril(-1)
    error = error.clamp_(min=0).masked_fill_(backwards, torch.inf).float()
    error = error.transpose(1, 2).contiguous()  # [g, b, a]: the minimum is along a row
    best, choices = error[:, :, 0], []
    for _ in range(count - 1):
        best, choice = (error + best.unsqueeze(1)).min(2)
        choices.append(choice)
    edge = torch.full((sums.shape[1], 1), edges - 1, device=sums.device)
    found = [edge]
    for choice in reversed(choices):
        edge = choice.gather(1, edge)
        found.append(edge)
    return torch.cat([torch.zeros_like(edge), *reversed(found)], 1)


# ------------------------------------------------------------------------------ vectors


def nearest(points: Tensor, centers: Tensor, weights: Tensor | None = None) -> Tensor:
    """Index ``(groups, m)`` of the center nearest to each of ``points`` ``(groups, m, vector)``.

    ``centers`` ``(groups, entries, vector)``; ``weights`` are of each number of ``points``. Up to
    what is the same for all entries the distance is ``sum w c^2 - 2 w x c``: one product.
    """
    left, right = -2 * points, centers
    constant = centers.square().sum(2).unsqueeze(1)
    if weights is not None:
        left = torch.cat([weights, left * weights], 2)
        right = torch.cat([centers.square(), centers], 2)
        constant = torch.zeros_like(constant)
    right = right.transpose(1, 2)
    step = max(1, CHUNK // (len(points) * centers.shape[1]))
    found = [torch.baddbmm(constant, part, right).argmin(2) for part in left.split(step, 1)]
    return torch.cat(found, 1)


def vector_clusters(points: Tensor, weights: Tensor, count: int) -> Tensor:
    """Centers ``(groups, count, vector)`` of ``points`` ``(groups, m, vector)`` by Lloyd."""
    groups, _, vector = points.shape
    centers, codes = _spread(points, weights, count), None
    offset = count * torch.arange(groups, device=points.device).unsqueeze(1)
    pulls = (points * weights).reshape(-1, vector)
    for _ in range(LLOYD // 4):
        before, codes = codes, nearest(points, centers, weights)
        if before is not None and torch.equal(before, codes):
            break
        place = (codes + offset).reshape(-1)
        sums = torch.zeros(2, groups * count, vector, device=points.device)
        sums[0].index_add_(0, place, pulls)
        sums[1].index_add_(0, place, weights.reshape(-1, vector))
        moved = (sums[0] / sums[1]).view_as(centers)
        centers = torch.where(sums[1].view_as(centers) > 0, moved, centers)
    return centers


def _spread(points: Tensor, weights: Tensor, count: int) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii, 2007): each next center with odds of its squared error."""
    random = torch.Generator().manual_seed(0)
    draws: Tensor = torch.rand(count, len(points), 1, generator=random, dtype=torch.float64)
    draws = draws.to(points.device)
    odds = weights.sum(2)
    least = torch.full_like(odds, torch.inf)
    centers = []
    for draw in draws:
        total = odds.double().cumsum(1)
        place = torch.searchsorted(total, draw * total[:, -1:]).clamp(max=points.shape[1] - 1)
        center = points.gather(1, place.unsqueeze(2).expand(-1, -1, points.shape[2]))
        least = torch.minimum(least, ((points - center).square_() * weights).sum(2))
        odds = least
        centers.append(center)
    return torch.cat(centers, 1)
