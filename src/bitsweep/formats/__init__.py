"""What the codes of one group mean: one family per file, found on disk by its name.

``formats/int.py`` holds the class ``Int``; ``get("int")`` imports it. A family may go by several
names: ``VARIANTS = {"e5m2": "what it is, in a line"}`` in its file makes ``get("e5m2")`` the family
told that name; a tuple of names will do. A file that starts with ``_`` is none. A new family is a
new file and nothing else. Every family works over *groups*: a weight ``(out, in)`` seen as
``(rows, n, g)``, ``n`` groups of ``g`` weights that share their parameters. :func:`split` makes
that view for every kind of grouping, so that no family and no method knows about tensors, channels
or ragged ends.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep import axes
from bitsweep.errors import UserError
from bitsweep.packing import pack, packed_bytes, unpack
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, QuantSpec

Params = Mapping[str, Tensor]
"""Parameters by name, in their stored dtype: of each group ``(rows, n, ...)`` (``scale``, ``zero``,
a ``codebook`` of ``(rows, n, entries, vector)``), or of the whole tensor ``(1, 1)``: see
:meth:`Family.shared`."""


class Family:
    """One family of number formats. Instances hold no state but the name they were asked by.

    ``has_zero``: a weight of 0 stays exactly 0.
    """

    has_zero: ClassVar[bool] = True

    def __init__(self, name: str) -> None:
        self.name = name

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        """What the name really stands for: one that fixes its groups or scales puts them in."""
        return spec

    def skip(self, spec: QuantSpec) -> str | None:
        """Why this family cannot be ``spec`` (with the key to change), or None."""
        raise NotImplementedError

    def shared(self, weight: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
        """Parameters ``(1, 1)`` of the whole ``weight`` ``(out, in)``, which every group uses."""
        return {}

    def spans_rows(self, spec: QuantSpec) -> bool:
        """Whether the codes of a row depend on other rows: on a parameter that all share."""
        return spec.group_size == PER_TENSOR or type(self).shared is not Family.shared

    def fit(
        self,
        groups: Tensor,
        spec: QuantSpec,
        shared: Params = MappingProxyType({}),
        importance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Parameters ``(rows, n, ...)`` for ``groups`` ``(rows, n, g)``, in their stored dtype.

        Already rounded to what is stored, so that codes are chosen against the stored grid.
        ``shared`` is what :meth:`shared` gave; it is not repeated in the answer. ``importance``,
        which broadcasts to ``groups``, weights squared errors; a family that covers a range
        instead of minimising an error does not look at it.
        """
        raise NotImplementedError

    def quantize(self, groups: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """The nearest codes, uint8 ``(rows, n, g / vector)``; ``params`` hold the shared ones too.

        ``params`` may be float32 copies.
        """
        raise NotImplementedError

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """What ``codes`` ``(rows, n, g / vector)`` stand for, float32 ``(rows, n, g)``."""
        raise NotImplementedError

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        """Stored bits of each element of each parameter."""
        raise NotImplementedError

    def vector(self, spec: QuantSpec) -> int:
        """How many weights one code stands for."""
        return 1

    def levels(self, spec: QuantSpec) -> int:
        """How many codes there are: 0 up to one less than this. Some may mean the same or NaN."""
        return 1 << self._width(spec)

    def packed_bytes(self, count: int, spec: QuantSpec) -> int:
        """Bytes that ``count`` codes fill."""
        return packed_bytes(count, self._width(spec))

    def pack(self, codes: Tensor, spec: QuantSpec) -> Tensor:
        """``codes`` as the flat uint8 stream of a file."""
        return pack(codes, self._width(spec))

    def unpack(self, stream: Tensor, spec: QuantSpec, count: int) -> Tensor:
        """The first ``count`` codes of :meth:`pack`'s stream, flat, uint8."""
        return unpack(stream, self._width(spec), count)

    def _width(self, spec: QuantSpec) -> int:
        return round(spec.bits * self.vector(spec))


@functools.cache
def names() -> dict[str, str]:
    """Every name that ``format=`` takes, and the file of its family (see ``axes.format_files``)."""
    return axes.format_files()


def get(name: str) -> Family:
    """The family called ``name``.

    Raises:
        UserError: there is no such format (``format=``).
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.0)
        raise UserError(f"format={name}: no such format; try {' or '.join(near)}")
    module = importlib.import_module(f"{__name__}.{known[name]}")
    family: Family = getattr(module, known[name].capitalize())(name)
    return family


def resolve(spec: QuantSpec) -> QuantSpec:
    """``spec`` with what its format fixes: ``mxfp4`` has groups of 32, whatever it says."""
    return get(spec.format).resolve(spec)


def split(weight: Tensor, spec: QuantSpec, vector: int = 1) -> list[Tensor]:
    """A weight ``(out, in)``, or codes ``(out, in / vector)``, in groups; views where they can be.

    One part: ``(1, 1, out * in)`` per tensor, ``(out, 1, in)`` per channel, ``(out, n, g)`` in
    groups. A ragged row has a second part, ``(out, 1, rest)``: a shorter group is fitted by itself,
    never padded, since a pad would enter means and errors.

    Raises:
        UserError: the last group is not full and ``spec.ragged`` is off (``misfit=``).
    """
    out_features, in_features = weight.shape
    if spec.group_size == PER_TENSOR:
        return [weight.reshape(1, 1, -1)]
    if spec.group_size == PER_CHANNEL:
        return [weight.unsqueeze(1)]
    size = spec.group_size // vector
    if in_features % size and not spec.ragged:
        raise UserError(
            f"group_size={spec.group_size} does not divide in_features={in_features * vector}; "
            "try misfit=ragged or misfit=per_channel"
        )
    full = in_features // size
    body = weight[:, : full * size].reshape(out_features, full, size)
    rest = weight[:, full * size :].unsqueeze(1)
    return [part for part in (body, rest) if part.numel()]


def join(parts: list[Tensor], shape: torch.Size) -> Tensor:
    """The weight of ``shape`` ``(out, in)`` whose :func:`split` is ``parts``."""
    if len(parts) == 1:
        return parts[0].reshape(shape)
    return torch.cat([part.reshape(shape[0], -1) for part in parts], dim=1)


def split_params(params: Params, parts: list[Tensor]) -> list[dict[str, Tensor]]:
    """The columns of each parameter ``(rows, groups, ...)`` that belong to each part.

    A parameter of the whole tensor goes to every part.
    """
    counts = [part.shape[1] for part in parts]
    columns = {
        name: value.split(counts, dim=1) if value.shape[1] == sum(counts) else [value] * len(parts)
        for name, value in params.items()
    }
    return [{name: columns[name][i] for name in params} for i in range(len(parts))]


def join_params(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters ``(rows, groups, ...)`` of a whole weight from those of its parts."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def least(tried: Iterable[tuple[dict[str, Tensor], Tensor]]) -> dict[str, Tensor]:
    """For each group the parameters with the least error; of equal ones the first.

    ``tried`` yields parameters ``(rows, n, ...)`` and the error of each group ``(rows, n)``.
    """
    best: dict[str, Tensor] = {}
    lowest: Tensor | None = None
    for params, error in tried:
        if lowest is None:
            lowest = torch.full_like(error, torch.inf)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        for name, new in params.items():
            where = better.view(*better.shape, *[1] * (new.ndim - better.ndim))
            best[name] = torch.where(where, new, best.get(name, new))
    return best


Fit = Callable[[Family, Tensor, QuantSpec, Params, Tensor | None], dict[str, Tensor]]
"""Parameters of ``(family, groups, spec, shared, importance)``, as :meth:`Family.fit` has them."""


def plain(
    family: Family, groups: Tensor, spec: QuantSpec, shared: Params, importance: Tensor | None
) -> dict[str, Tensor]:
    """The family's own :data:`Fit`."""
    return family.fit(groups, spec, shared, importance)


def fit(
    weight: Tensor, spec: QuantSpec, importance: Tensor | None = None, how: Fit = plain
) -> dict[str, Tensor]:
    """All parameters of ``weight`` ``(out, in)`` float32, shared ones included.

    ``importance`` ``(out, in)`` or ``(1, in)`` weights squared errors.
    """
    family = get(spec.format)
    shared = family.shared(weight, spec)
    parts = split(weight, spec)
    weights: list[Tensor] | list[None] = [None] * len(parts)
    if importance is not None:
        weights = split(importance.expand(weight.shape), spec)
    each = [how(family, g, spec, shared, own) for g, own in zip(parts, weights, strict=True)]
    return join_params(each) | shared
