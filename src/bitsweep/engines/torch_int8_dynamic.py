"""8-bit weights times 8-bit inputs on the CPU, in integers: oneDNN's kernel, inputs as they come.

With signed codes ``v`` and ``u``, scales and zeros of the rows of weight and input,

    y[m, n] = s[m] * t[n] * sum_k (u[m, k] - a[m]) * (v[n, k] - b[n])
            = s[m] * (t[n] * (u @ v.T)[m, n] - a[m] * A[n] - r[m] * B[n]),

``A[n] = t[n] * sum_k v[n, k]``, ``B[n] = t[n] * b[n]``, ``r[m] = sum_k (u[m, k] - a[m])``. The
products are summed exactly in 32 bits; ``onednn::qlinear_pointwise`` scales the sums by ``t`` and,
where all rows of the input share one scale, by ``s``, takes ``a`` away, adds the bias and rounds to
bf16 in the same pass. It takes one scale only: tokens that have their own (``input.per=token``) get
theirs afterwards, in float32, some rows at a time while they are still in the cache.

``s``, ``a`` and ``u`` are those of :class:`bitsweep.activations.InputQuantizer` to the last bit:
found in float32 by the rule of :mod:`bitsweep.formats.int`, divided, rounded half to even. (torch's
own ``linear_dynamic`` has another rule: it multiplies by the reciprocal, and no scale is below
6.1e-5. Its weights are one scale per tensor by default, which is measurably worse.) What differs
from ``dense`` is the order of sums and the rounding of the output to bf16.

Layers that are given the same tensor (query, key and value; gate and up) share its codes: see
:func:`bitsweep.engines.layerwise.share_inputs`.

A processor that can not sum four products of bytes into 32 bits (VNNI) sums two in 16 bits, which
overflow: :func:`bitsweep.engines.failure` multiplies the largest codes and finds that.
"""

from __future__ import annotations

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsweep.engines import grid
from bitsweep.engines._torch import TorchKernel
from bitsweep.engines.packed import COMPUTE, Packed
from bitsweep.engines.protocols import input_spec
from bitsweep.formats.int import SMALLEST
from bitsweep.linear import QuantEmbedding, Quantized, QuantLinear
from bitsweep.spec import PER_CHANNEL, InputSpec
from bitsweep.tensor import QuantTensor

HALF = 128
"""Codes are stored from 0 up; less this they are signed."""

COLUMNS = 32
OUTPUTS = 256
SLOW_COLUMNS = 256
"""What :class:`Product` fills up."""

AT_ONCE = 2**18
"""Numbers of an input or output that are worked on at a time, to stay in the cache (1 MiB)."""


class TorchInt8Dynamic(TorchKernel):
    """8-bit integers with one scale a row (or tensor), times dynamic 8-bit integers."""

    name = "torch_int8_dynamic"
    bits = 8

    def wrong_inputs(self, layer: Quantized) -> str | None:
        if isinstance(layer, QuantEmbedding):
            return None
        found = input_spec(layer)
        if found is None:
            return "its inputs float, and this kernel multiplies 8-bit integers"
        quant = found.quant
        exact = (
            quant.format == "int"
            and quant.bits == 8
            and quant.group_size == PER_CHANNEL
            and quant.scale_dtype == "float32"
            and found.per in ("token", "tensor")
            and found.range == "dynamic"
            and not found.adaptive
        )
        if exact:
            return None
        return f"its inputs are a{found}, not dynamic 8-bit integers per token or tensor"

    def misfit(self, layer: QuantLinear) -> str | None:
        return grid.grouped(layer.quant.spec, layer.in_features)

    def pack(self, layer: Quantized) -> nn.Module:
        if isinstance(layer, QuantEmbedding):
            return super().pack(layer)
        spec = input_spec(layer)
        assert spec is not None
        return Int8DynamicLinear(layer.quant, layer.bias, Inputs(spec))


class Inputs:
    """Codes of layer inputs ``(rows, in)``, as ``spec`` says; those of the last one are kept.

    ``of`` gives the signed codes int8, and float32 ``(rows, 1)``, or ``(1, 1)`` per tensor, their
    scale, their signed zero (None where symmetric).
    """

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec
        self._last: weakref.ref[Tensor] | None = None
        self._codes: tuple[Tensor, Tensor, Tensor | None]

    def of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self._last is None or self._last() is not x:
            rows = x.reshape(-1, x.shape[-1])
            if self.spec.per == "tensor":
                scale, zero = self._grid(rows.float().view(1, -1))
                codes = self._codes_of(rows.float(), scale, zero)
                self._codes = codes, scale, zero
            else:
                self._codes = self._by_token(rows)
            self._last = weakref.ref(x)
        return self._codes

    def _by_token(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        found = []
        for part in rows.split(max(1, AT_ONCE // rows.shape[1])):
            values = part.float()
            scale, zero = self._grid(values)
            found.append((self._codes_of(values, scale, zero), scale, zero))
        if len(found) == 1:
            return found[0]
        codes, scales, zeros = zip(*found, strict=True)
        return torch.cat(codes), torch.cat(scales), None if zeros[0] is None else torch.cat(zeros)

    def _grid(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and signed zero of each row of ``values``."""
        least = SMALLEST[self.spec.quant.scale_dtype]
        if self.spec.quant.symmetric:
            return values.abs().amax(1, True).div_(HALF - 0.5).clamp_min_(least), None
        low = values.amin(1, True).clamp_max_(0)
        high = values.amax(1, True).clamp_min_(0)
        scale = high.sub_(low).div_(2 * HALF - 1).clamp_min_(least)
        return scale, low.neg_().div_(scale).sub_(HALF).clamp_(-HALF, HALF - 1).round_()

    def _codes_of(self, values: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        signed = values / scale
        if zero is not None:
            signed += zero
        return signed.round_().clamp_(-HALF, HALF - 1).to(torch.int8)


class Int8DynamicLinear(Packed):
    """``weight`` times inputs: its codes as oneDNN lays them out, and t, A, B of the rows above.

    ``shift`` is B, None where the weight is symmetric.
    """

    scale: Tensor
    sums: Tensor
    shift: Tensor | None
    bias: Tensor | None
    one: Tensor

    def __init__(self, weight: QuantTensor, bias: Tensor | None, inputs: Inputs) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.inputs = inputs
        scale, zero = (value[:, 0] for value in grid.affine(weight))
        signed = (weight.codes.int() - HALF).to(torch.int8)
        shift = (zero - HALF) * scale
        self.product = Product(signed, scale.contiguous())
        self.register_buffer("sums", (signed.sum(1, dtype=torch.int32) * scale).view(1, -1))
        self.register_buffer("shift", shift.view(1, -1) if shift.any() else None)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("one", torch.ones(1, 1))

    def forward(self, input: Tensor) -> Tensor:
        codes, scale, zero = self.inputs.of(input)
        if len(scale) == 1 and self.shift is None:
            y = self.product(codes, scale, zero, self.bias, COMPUTE)
        else:
            y = self._by_rows(codes, scale, zero)
        return y.view(*input.shape[:-1], self.out_features)

    def _by_rows(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        result = codes.new_empty(len(codes), self.out_features, dtype=COMPUTE)
        step = max(1, AT_ONCE // self.out_features)
        for start in range(0, len(codes), step):
            rows = slice(start, start + step)
            part, own = codes[rows], slice(None) if len(scale) == 1 else rows
            y = self.product(part, self.one, None, None, torch.float32)
            if zero is not None:
                y.addcmul_(zero[own], self.sums, value=-1)
            if self.shift is not None:
                total = part.sum(1, keepdim=True, dtype=torch.int32).float()
                if zero is not None:
                    total -= self.in_features * zero[own]
                y.addcmul_(total, self.shift, value=-1)
            y *= scale[own]
            if self.bias is not None:
                y += self.bias
            result[rows] = y
        return result


class Product(nn.Module):
    """``scale * t * (u - zero) @ v.T + bias``: v ``codes`` int8 ``(out, in)``, t ``scale``.

    oneDNN's fast kernels leave out what they take for too little work, and a plain loop a hundred
    times slower does it: 16 columns or fewer, 256 outputs of all rows or fewer, one row of 256
    columns (oneDNN 3.12 with AMX, asked with ONEDNN_VERBOSE=1). Zeros fill such inputs up.
    """

    codes: Tensor
    scale: Tensor
    no_zeros: Tensor
    nought: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        rows, columns = codes.shape
        self.extra_columns = max(0, COLUMNS - columns)
        self.rows = max(OUTPUTS // rows + 1, 2 if columns == SLOW_COLUMNS else 1)
        codes = F.pad(codes, (0, self.extra_columns))
        codes = codes.contiguous()  # qlinear_prepack reads no strides
        self.register_buffer("codes", torch.ops.onednn.qlinear_prepack(codes, None))
        self.register_buffer("scale", scale)
        self.register_buffer("no_zeros", torch.zeros(rows, dtype=torch.int32))
        self.register_buffer("nought", torch.zeros(1, dtype=torch.int32))

    def forward(
        self,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """In ``dtype``, for u ``codes`` ``(rows, in)``; ``scale`` and ``zero`` have one element."""
        rows = len(codes)
        if rows < self.rows or self.extra_columns:
            codes = F.pad(codes, (0, self.extra_columns, 0, max(0, self.rows - rows)))
        y: Tensor = torch.ops.onednn.qlinear_pointwise.tensor(
            codes,
            scale,
            self.nought if zero is None else zero.int(),
            self.codes,
            self.scale,
            self.no_zeros,
            bias,
            1.0,  # what follows is for outputs that are quantized again, or activated
            0,
            dtype,
            "none",
            [],
            "",
        )
        return y[:rows]
