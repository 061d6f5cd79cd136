"""What the codes of one group mean: one family per file, found on disk by its name.

``formats/int.py`` holds the class ``Int``; ``get("int")`` imports it. A new family is a new file
and nothing else. Every family works over *groups*: a weight ``(out, in)`` seen as ``(rows, n, g)``,
``n`` groups of ``g`` weights that share their parameters. :func:`split` makes that view for every
kind of grouping, so that no family and no method knows about tensors, channels or ragged ends.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from bitsweep.errors import UserError
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, QuantSpec

Params = Mapping[str, Tensor]
"""Parameters of groups by name (``scale``, ``zero``), each ``(rows, n)`` in its stored dtype."""


class Format(Protocol):
    """One family of number formats. Instances hold no state."""

    name: str

    def skip(self, spec: QuantSpec) -> str | None:
        """Why this family cannot be ``spec`` (with the key to change), or None."""

    def fit(self, groups: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
        """Parameters ``(rows, n)`` that cover ``groups`` ``(rows, n, g)``, in their stored dtype.

        Already rounded to what is stored, so that codes are chosen against the stored grid.
        """

    def quantize(self, groups: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """The nearest codes, uint8, shaped as ``groups``. ``params`` may be float32 copies."""

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """What ``codes`` ``(rows, n, g)`` stand for, float32."""

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        """Stored bits of each parameter of one group."""


def names() -> list[str]:
    """The families on disk."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Format:
    """The family called ``name``.

    Raises:
        UserError: there is no such family (``format=``).
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1, 0.0)
        raise UserError(f"format={name}: no such format; try {' or '.join(near)}")
    module = importlib.import_module(f"{__name__}.{name}")
    family: Format = getattr(module, name.capitalize())()
    return family


def split(weight: Tensor, spec: QuantSpec) -> list[Tensor]:
    """``weight`` ``(out, in)`` as groups ``(rows, n, g)``, views where strides allow.

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
    if not spec.fits(in_features) and not spec.ragged:
        raise UserError(
            f"group_size={spec.group_size} does not divide in_features={in_features}; "
            "try misfit=ragged or misfit=per_channel"
        )
    full = in_features // spec.group_size
    body = weight[:, : full * spec.group_size].reshape(out_features, full, spec.group_size)
    rest = weight[:, full * spec.group_size :].unsqueeze(1)
    return [part for part in (body, rest) if part.numel()]


def join(parts: list[Tensor], shape: torch.Size) -> Tensor:
    """The weight of ``shape`` ``(out, in)`` whose :func:`split` is ``parts``."""
    if len(parts) == 1:
        return parts[0].reshape(shape)
    return torch.cat([part.reshape(shape[0], -1) for part in parts], dim=1)


def split_params(params: Params, parts: list[Tensor]) -> list[dict[str, Tensor]]:
    """The columns of each parameter ``(rows, groups)`` that belong to each part."""
    counts = [part.shape[1] for part in parts]
    columns = {name: value.split(counts, dim=1) for name, value in params.items()}
    return [{name: columns[name][i] for name in params} for i in range(len(parts))]


def join_params(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters ``(rows, groups)`` of a whole weight from those of its parts."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
