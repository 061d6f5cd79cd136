"""What stands before a layer: its input becomes what its codes stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from bitsweep import formats
from bitsweep.models import Model
from bitsweep.packing import packed_bytes
from bitsweep.spec import InputSpec, QuantSpec

AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
"""Numbers that are quantized at a time where rows do not depend on each other: on a CPU few enough
to stay in its cache, and to need no fresh memory, which costs more than the arithmetic."""

SMALLEST = torch.finfo(torch.float32).tiny


class InputQuantizer(nn.Module):
    """``x`` ``(..., in)`` to what its codes stand for, in ``x``'s dtype.

    ``params`` are the static ones: ``(1, 1)`` per tensor, ``(in, 1)`` per channel, and per token
    what the format has of the whole tensor; none when dynamic. A token with a NaN or an infinity
    is left as it is, for the loss to tell. Gradients pass straight through (Bengio et al. 2013,
    arXiv 1308.3432).
    """

    def __init__(self, spec: InputSpec, params: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.spec = spec
        self._names = tuple(params or ())
        for name, value in (params or {}).items():
            self.register_buffer(name, value, persistent=False)
        self.spent: Spent | None = None

    @property
    def params(self) -> dict[str, Tensor]:
        return {name: cast(Tensor, getattr(self, name)) for name in self._names}

    def forward(self, x: Tensor) -> Tensor:
        together = self.spec.per == "tensor" and not self._names
        return quantized_rows(x, self._restored, together)

    def _restored(self, rows: Tensor) -> Tensor:
        quant = self.spec.quant
        if self.spec.adaptive:
            values, widths = adapt(rows, self.spec)
            if self.spent is not None:
                self.spent.add(float(widths.sum()), len(rows), rows.shape[1])
            return values
        if self.spent is not None:
            self.spent.add(self.spec.bits * len(rows), len(rows), rows.shape[1])
        if self.spec.per == "channel":
            return restored(rows.T, quant, self.params).T
        if self.spec.per == "tensor":
            return restored(rows.reshape(1, -1), quant, self.params).view(rows.shape)
        return restored(rows, quant, self.params)

    def nbytes(self) -> int:
        """Stored bytes of the static parameters; 0 when dynamic."""
        width = formats.get(self.spec.quant.format).params_bits(self.spec.quant)
        return sum(packed_bytes(v.numel(), width[name]) for name, v in self.params.items())

    def extra_repr(self) -> str:
        return str(self.spec)


class Spent:
    """Bits that inputs took while somebody counted; the codes' own, without scales."""

    def __init__(self) -> None:
        self._bits = 0.0
        self._numbers = 0

    def add(self, bits_of_rows: float, rows: int, features: int) -> None:
        """``rows`` tokens of ``features`` numbers, whose widths sum to ``bits_of_rows``."""
        self._bits += bits_of_rows * features
        self._numbers += rows * features

    @property
    def average(self) -> float | None:
        """Bits of a number, over all tokens, layers and columns; None where nothing was counted."""
        return self._bits / self._numbers if self._numbers else None


@contextmanager
def counting(model: Model) -> Iterator[Spent]:
    """Count inside the ``with`` what inputs take, if any chooses its own width; else nothing."""
    quantizers = [m for m in model.module.modules() if isinstance(m, InputQuantizer)]
    spent = Spent()
    if any(quantizer.spec.adaptive for quantizer in quantizers):
        for quantizer in quantizers:
            quantizer.spent = spent
    try:
        yield spent
    finally:
        for quantizer in quantizers:
            quantizer.spent = None


def quantized_rows(
    x: Tensor, restore: Callable[[Tensor], Tensor], together: bool = False
) -> Tensor:
    """``x`` ``(..., n)`` after ``restore``, which maps rows ``(m, n)`` float32 to the same.

    ``together``: all rows in one call, else few at a time.
    """
    if not x.numel():  # an expert whom no token of the batch chose
        return x
    with torch.no_grad():
        rows = x.reshape(-1, x.shape[-1])
        values = torch.empty_like(rows)
        at_once = AT_ONCE.get(x.device.type, AT_ONCE["cpu"])
        step = len(rows) if together else max(1, at_once // rows.shape[1])
        for part, out in zip(rows.split(step), values.split(step), strict=True):
            out.copy_(_sound(part.float(), restore))
        values = values.view(x.shape)
    if torch.is_grad_enabled() and x.requires_grad:
        return values + (x - x.detach())  # the values to the last bit, the gradient of x
    return values


def _sound(rows: Tensor, restore: Callable[[Tensor], Tensor]) -> Tensor:
    """``restore(rows)``, and rows that are not finite as they are."""
    if bool(rows.sum().isfinite()):  # one quick pass; it may overflow, then each row is asked
        return restore(rows)
    sound = rows.isfinite().all(-1, keepdim=True)
    return torch.where(sound, restore(torch.where(sound, rows, 0.0)), rows)


def restored(
    matrix: Tensor, quant: QuantSpec, params: Mapping[str, Tensor] = MappingProxyType({})
) -> Tensor:
    """What the codes of ``matrix`` ``(rows, n)`` float32 stand for.

    ``params`` are all of them, or those of the whole tensor (:meth:`Family.shared`), or none: the
    others are fitted to ``matrix``.
    """
    family = formats.get(quant.format)
    parts = formats.split(matrix, quant)
    if family.params_bits(quant).keys() <= params.keys():
        each = formats.split_params(params, parts)
    else:
        shared = params or family.shared(matrix, quant)
        each = [family.fit(part, quant, shared) | dict(shared) for part in parts]
    values = [
        family.dequantize(family.quantize(part, own, quant), own, quant)
        for part, own in zip(parts, each, strict=True)
    ]
    return formats.join(values, matrix.shape)


def adapt(rows: Tensor, spec: InputSpec) -> tuple[Tensor, Tensor]:
    """``rows`` ``(tokens, n)`` each at its own width, and the widths ``(tokens,)`` float32.

    The first width whose squared error is at most ``threshold`` of the row's square; the widest
    where none is.
    """
    limit = rows.square().sum(-1).clamp_(min=SMALLEST).mul_(spec.threshold)
    values, widths = rows, rows.new_zeros(len(rows))
    unmet = torch.ones_like(widths, dtype=torch.bool)
    for bits in spec.adaptive:
        found = restored(rows, spec.at(bits).quant)
        values = torch.where(unmet.unsqueeze(1), found, values)
        widths.masked_fill_(unmet, float(bits))
        unmet &= (found - rows).square_().sum(-1) > limit
        if not bool(unmet.any()):
            break
    return values, widths
