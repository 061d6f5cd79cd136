"""A quantized weight: codes, the parameters of their groups, and what of it is stored."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.packing import pack, packed_bytes, unpack
from bitsweep.spec import QuantSpec


@dataclass(frozen=True, eq=False)
class QuantTensor:
    """A weight ``(out, in)`` as codes and the parameters of its groups.

    ``codes`` uint8 ``(out, in)``, in the columns' own order; ``(out, in / vector)`` in a format
    whose codes stand for several weights. ``params`` by name ``(out, groups, ...)``, ``(1, 1)`` per
    tensor, in the dtype that is stored. ``permutation`` int64 ``(in,)`` is there when groups are
    contiguous in another order of columns (GPTQ's act_order without static groups): group ``k``
    holds the columns ``permutation[k * g : (k + 1) * g]``. ``mask`` bool ``(out, in)`` is there
    when weights were pruned: where it is False the weight is 0, whatever the code; such codes are 0
    and are not stored.
    """

    codes: Tensor
    params: Mapping[str, Tensor]
    spec: QuantSpec
    permutation: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def quantize(
        cls,
        weight: Tensor,
        spec: QuantSpec,
        params: Mapping[str, Tensor] | None = None,
        importance: Tensor | None = None,
    ) -> QuantTensor:
        """Each weight to its nearest code; parameters are fitted to ``weight`` unless given.

        ``importance`` ``(out, in)`` or ``(1, in)`` weights squared errors where the format's
        parameters are fitted by error.
        """
        family = formats.get(spec.format)
        weight = weight.detach().float()
        if params is None:
            params = formats.fit(weight, spec, importance)
        parts = formats.split(weight, spec)
        each = formats.split_params(params, parts)
        codes = [family.quantize(part, own, spec) for part, own in zip(parts, each, strict=True)]
        out_features, in_features = weight.shape
        shape = torch.Size((out_features, in_features // family.vector(spec)))
        return cls(formats.join(codes, shape), params, spec)

    @classmethod
    def unfilled(cls, shape: tuple[int, int], spec: QuantSpec) -> QuantTensor:
        """What a weight of ``shape`` ``(out, in)`` becomes, on the meta device: bytes, no values.

        Which parameters a format has, and how many, shows on two rows of any numbers.
        """
        out_features, in_features = shape
        vector = formats.get(spec.format).vector(spec)
        params = {
            name: torch.empty(
                (out_features if rows == 2 else rows, *rest), dtype=dtype, device="meta"
            )
            for name, (rows, *rest), dtype in _params_of_two_rows(in_features, spec)
        }
        codes_shape = (out_features, in_features // vector)
        return cls(torch.empty(codes_shape, dtype=torch.uint8, device="meta"), params, spec)

    @property
    def shape(self) -> torch.Size:
        """``(out, in)`` of the weight."""
        vector = formats.get(self.spec.format).vector(self.spec)
        return torch.Size((self.codes.shape[0], self.codes.shape[1] * vector))

    def masked(self, mask: Tensor | None) -> QuantTensor:
        """The same codes, with the weights outside ``mask`` ``(out, in)`` gone."""
        if mask is None:
            return self
        mask = mask.to(self.codes.device)
        kept = self._kept(mask)
        codes = self.codes if kept is None else self.codes * kept
        return replace(self, codes=codes, mask=mask)

    def _kept(self, mask: Tensor) -> Tensor | None:
        """Which codes are stored; None where a code stands for several weights: then all are."""
        return mask if mask.shape == self.codes.shape else None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``(out, in)`` that the codes stand for, computed in float32, then cast."""
        family = formats.get(self.spec.format)
        codes = self.codes if self.permutation is None else self.codes[:, self.permutation]
        parts = formats.split(codes, self.spec, family.vector(self.spec))
        each = formats.split_params(self.params, parts)
        values = [family.dequantize(p, own, self.spec) for p, own in zip(parts, each, strict=True)]
        weight = formats.join(values, self.shape).to(dtype)
        if self.permutation is not None:
            weight = torch.empty_like(weight).index_copy_(1, self.permutation, weight)
        return weight if self.mask is None else weight.mul_(self.mask)

    def nbytes(self) -> dict[str, int]:
        """Stored bytes by part: codes packed without a gap, each parameter, permutation, mask.

        An integer zero takes ``bits`` bits, a power of two one byte, a column's place 4 bytes. A
        mask takes a bit a weight (as 2:4 does: 4 bits for 4 weights), or a bit a row and a bit a
        column where whole rows and columns are gone; codes of pruned weights take none.
        """
        family = formats.get(self.spec.format)
        width = family.params_bits(self.spec)
        count, sizes = self.codes.numel(), {}
        if self.mask is not None:
            kept = self._kept(self.mask)
            count = count if kept is None else int(kept.sum())
            sizes["mask"] = mask_bytes(self.mask)
        sizes = {"codes": family.packed_bytes(count, self.spec)} | sizes
        for name, value in self.params.items():
            sizes[name] = packed_bytes(value.numel(), width[name])
        if self.permutation is not None:
            sizes["permutation"] = 4 * self.permutation.numel()
        return sizes

    def pack(self) -> dict[str, Tensor]:
        """The tensors of a file: ``codes`` as a bitstream, parameters as they are stored.

        ``mask`` has a bit a weight, ``mask_lines`` a bit a row and a bit a column instead.
        """
        family = formats.get(self.spec.format)
        tensors: dict[str, Tensor] = {}
        codes = self.codes
        if self.mask is not None:
            kept = self._kept(self.mask)
            codes = codes if kept is None else codes[kept]
            lines = mask_lines(self.mask)
            bits = self.mask if lines is None else lines
            tensors["mask" if lines is None else "mask_lines"] = pack(bits.to(torch.uint8), 1)
        tensors |= {"codes": family.pack(codes, self.spec), **self.params}
        if self.permutation is not None:
            tensors["permutation"] = self.permutation.to(torch.int32)
        return tensors

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, Tensor], spec: QuantSpec, shape: tuple[int, int]
    ) -> QuantTensor:
        """The inverse of :meth:`pack`, exact; ``shape`` is ``(out, in)``."""
        family = formats.get(spec.format)
        others = ("codes", "permutation", "mask", "mask_lines")
        params = {k: v for k, v in tensors.items() if k not in others}
        order = tensors.get("permutation")
        vector = family.vector(spec)
        codes_shape = (shape[0], shape[1] // vector)
        mask = None
        if "mask" in tensors:
            mask = unpack(tensors["mask"], 1, shape[0] * shape[1]).view(shape).bool()
        if "mask_lines" in tensors:
            rows, columns = unpack(tensors["mask_lines"], 1, sum(shape)).bool().split(shape)
            mask = rows.unsqueeze(1) & columns
        if mask is not None and vector == 1:
            codes = torch.zeros(codes_shape, dtype=torch.uint8, device=mask.device)
            codes[mask] = family.unpack(tensors["codes"], spec, int(mask.sum()))
        else:
            count = codes_shape[0] * codes_shape[1]
            codes = family.unpack(tensors["codes"], spec, count).view(codes_shape)
        return cls(codes, params, spec, None if order is None else order.long(), mask)

    def to(self, device: torch.device | str) -> QuantTensor:
        """The same codes on ``device``; dtypes stay, they belong to the format."""
        order = None if self.permutation is None else self.permutation.to(device)
        mask = None if self.mask is None else self.mask.to(device)
        params = {name: value.to(device) for name, value in self.params.items()}
        codes = self.codes.to(device)
        return replace(self, codes=codes, params=params, permutation=order, mask=mask)


@functools.cache
def _params_of_two_rows(
    in_features: int, spec: QuantSpec
) -> list[tuple[str, torch.Size, torch.dtype]]:
    """Name, shape and dtype of what is stored beside the codes of two rows."""
    rows = torch.linspace(-1, 1, 2 * in_features).view(2, in_features)
    return [(name, value.shape, value.dtype) for name, value in formats.fit(rows, spec).items()]


def mask_bytes(mask: Tensor) -> int:
    """Bytes that say which weights of ``mask`` bool ``(out, in)`` are kept."""
    lines = mask_lines(mask)
    return packed_bytes(mask.numel() if lines is None else lines.numel(), 1)


def mask_lines(mask: Tensor) -> Tensor | None:
    """Which rows and which columns are kept, bool ``(out + in,)``; None where that is not all."""
    rows, columns = mask.any(1), mask.any(0)
    whole = torch.equal(mask, rows.unsqueeze(1) & columns)
    return torch.cat([rows, columns]) if whole else None
