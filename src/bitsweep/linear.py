"""A quantized weight, and the modules that hold one in place of a Linear, Conv1D or Embedding.

Quality is measured with these modules: they compute with the *dequantized* weight, in the model's
compute dtype. What executes packed codes, and is timed, are the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsweep import formats
from bitsweep.packing import pack, packed_bytes, unpack
from bitsweep.spec import QuantSpec


@dataclass(frozen=True, eq=False)
class QuantTensor:
    """A weight ``(out, in)`` as codes and the parameters of its groups.

    ``codes`` uint8 ``(out, in)``, in the columns' own order. ``params`` by name ``(out, groups)``,
    ``(1, 1)`` per tensor, in the dtype that is stored. ``permutation`` int64 ``(in,)`` is there
    when groups are contiguous in another order of columns (GPTQ's act_order without static
    groups): group ``k`` holds the columns ``permutation[k * g : (k + 1) * g]``.
    """

    codes: Tensor
    params: Mapping[str, Tensor]
    spec: QuantSpec
    permutation: Tensor | None = None

    @classmethod
    def quantize(
        cls, weight: Tensor, spec: QuantSpec, params: Mapping[str, Tensor] | None = None
    ) -> QuantTensor:
        """Each weight to its nearest code; parameters are fitted to ``weight`` unless given."""
        family = formats.get(spec.format)
        parts = formats.split(weight.detach().float(), spec)
        if params is None:
            params = formats.join_params([family.fit(part, spec) for part in parts])
        each = formats.split_params(params, parts)
        codes = [family.quantize(part, own, spec) for part, own in zip(parts, each, strict=True)]
        return cls(formats.join(codes, weight.shape), params, spec)

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight ``(out, in)`` that the codes stand for, computed in float32, then cast."""
        family = formats.get(self.spec.format)
        codes = self.codes if self.permutation is None else self.codes[:, self.permutation]
        parts = formats.split(codes, self.spec)
        each = formats.split_params(self.params, parts)
        values = [family.dequantize(p, own, self.spec) for p, own in zip(parts, each, strict=True)]
        weight = formats.join(values, codes.shape).to(dtype)
        if self.permutation is None:
            return weight
        return torch.empty_like(weight).index_copy_(1, self.permutation, weight)

    def nbytes(self) -> dict[str, int]:
        """Stored bytes by part: codes packed without a gap, each parameter, the permutation.

        An integer zero takes ``bits`` bits, a power of two one byte, a column's place 4 bytes.
        """
        width = formats.get(self.spec.format).params_bits(self.spec)
        sizes = {"codes": packed_bytes(self.codes.numel(), int(self.spec.bits))}
        for name, value in self.params.items():
            sizes[name] = packed_bytes(value.numel(), width[name])
        if self.permutation is not None:
            sizes["permutation"] = 4 * self.permutation.numel()
        return sizes

    def pack(self) -> dict[str, Tensor]:
        """The tensors of a file: ``codes`` as a bitstream, parameters as they are stored."""
        tensors = {"codes": pack(self.codes, int(self.spec.bits)), **self.params}
        if self.permutation is not None:
            tensors["permutation"] = self.permutation.to(torch.int32)
        return tensors

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, Tensor], spec: QuantSpec, shape: tuple[int, int]
    ) -> QuantTensor:
        """The inverse of :meth:`pack`, exact."""
        params = {k: v for k, v in tensors.items() if k not in ("codes", "permutation")}
        codes = unpack(tensors["codes"], int(spec.bits), shape[0] * shape[1]).view(shape)
        order = tensors.get("permutation")
        return cls(codes, params, spec, None if order is None else order.long())

    def to(self, device: torch.device | str) -> QuantTensor:
        """The same codes on ``device``; dtypes stay, they belong to the format."""
        order = None if self.permutation is None else self.permutation.to(device)
        params = {name: value.to(device) for name, value in self.params.items()}
        return replace(self, codes=self.codes.to(device), params=params, permutation=order)


class _Quantized(nn.Module):
    """A module whose weight is a :class:`QuantTensor`.

    ``quant`` is that tensor: the very same object in both ends of a tied pair. ``weight`` is its
    dense form in the compute dtype, made when first needed and dropped when the module moves; it
    is neither a parameter nor saved. transformers reads ``module.weight.dtype`` and ``.device`` in
    places, so the name must answer with a floating tensor.
    """

    def __init__(self, quant: QuantTensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.quant = quant
        self.compute_dtype = dtype
        self._dense: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        if self._dense is None:
            with torch.inference_mode(False), torch.no_grad():  # whoever asks first, all may use it
                self._dense = self.quant.dequantize(self.compute_dtype)
        return self._dense

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Quantized:
        """Follow ``.to(...)``: the device for all, the dtype for the dense weight only."""
        super()._apply(fn, recurse)
        probe = fn(torch.empty(0, dtype=self.compute_dtype, device=self.quant.codes.device))
        if probe.device != self.quant.codes.device:
            self.quant = self.quant.to(probe.device)
            self._dense = None
        if probe.dtype != self.compute_dtype:
            self.compute_dtype = probe.dtype
            self._dense = None
        return self


class QuantLinear(_Quantized):
    """In place of ``nn.Linear`` and of GPT-2's ``Conv1D``: ``y = x @ weight.T + bias``.

    ``weight`` is ``(out, in)`` here also where a Conv1D kept ``(in, out)``; ``nf`` is a Conv1D's
    name for ``out``.
    """

    def __init__(self, quant: QuantTensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__(quant, dtype)
        self.bias = bias
        self.out_features, self.in_features = quant.shape
        self.nf = self.out_features

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.quant.spec}"


class QuantEmbedding(_Quantized):
    """In place of ``nn.Embedding``; groups run along the embedding's width.

    ``scale`` is the factor of embeddings that multiply their output (Gemma's), else None.
    """

    def __init__(
        self, quant: QuantTensor, padding_idx: int | None, scale: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__(quant, dtype)
        self.num_embeddings, self.embedding_dim = quant.shape
        self.padding_idx = padding_idx
        self.embed_scale: Tensor | None
        self.register_buffer("embed_scale", scale, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        rows = F.embedding(input, self.weight)
        return rows if self.embed_scale is None else rows * self.embed_scale.to(rows.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.quant.spec}"


def quantized(quant: QuantTensor, like: nn.Module) -> nn.Module:
    """The module that takes the place of ``like`` with the weight ``quant``; keeps its bias."""
    dtype = like.weight.dtype
    assert isinstance(dtype, torch.dtype)
    module: _Quantized
    if isinstance(like, nn.Embedding | QuantEmbedding):
        scale = getattr(like, "embed_scale", None)
        if isinstance(scale, float | int):
            scale = torch.tensor(float(scale))
        module = QuantEmbedding(quant, like.padding_idx, scale, dtype)
    else:
        module = QuantLinear(quant, getattr(like, "bias", None), dtype)
    return module.train(like.training)


def quantized_spec(module: nn.Module) -> QuantSpec | None:
    """What the weight of ``module`` was quantized to; None for a module in full precision."""
    return module.quant.spec if isinstance(module, _Quantized) else None
