"""The modules that hold a quantized weight in place of a Linear, Conv1D or Embedding.

Quality is measured with these modules: they compute with the *dequantized* weight, in the model's
compute dtype. What executes packed codes, and is timed, are the engines.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsweep.tensor import QuantTensor


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

    def hold(self, weight: Tensor) -> None:
        """Compute with ``weight`` ``(out, in)``, gradient and all: what training puts in place."""
        self._dense = weight

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
    name for ``out``. ``input_quantizer`` maps ``x`` to what its codes stand for; ``correction``
    maps the same ``x`` to a term that is added to the output (a low-rank correction). Either may
    be None.
    """

    input_quantizer: nn.Module | None
    correction: nn.Module | None

    def __init__(self, quant: QuantTensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__(quant, dtype)
        self.bias = bias
        self.input_quantizer = None
        self.correction = None
        self.out_features, self.in_features = quant.shape
        self.nf = self.out_features

    def forward(self, input: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        output = F.linear(input, self.weight, self.bias)
        return output if self.correction is None else output + self.correction(input)

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


Quantized = QuantLinear | QuantEmbedding
"""What holds codes in a model."""


def quantized(quant: QuantTensor, like: nn.Module) -> nn.Module:
    """The module that takes the place of ``like`` with the weight ``quant``; keeps its bias.

    Of a quantized ``like`` it keeps the input quantizer and the correction as well.
    """
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
        module.input_quantizer = getattr(like, "input_quantizer", None)
        module.correction = getattr(like, "correction", None)
    return module.train(like.training)
