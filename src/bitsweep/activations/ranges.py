"""Static ranges: what calibration text says of a layer's inputs, and the parameters for it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.activations.quantizer import restored
from bitsweep.calibration.statistics import Spaced
from bitsweep.spec import InputSpec

SAMPLE_ROWS = 4096
"""Tokens of the calibration text, evenly spaced, from which percentiles and errors are taken."""

SAMPLE_NUMBERS = 2**18
"""The same for one scale per tensor: more numbers would move its range by less than a per mille."""

FACTORS = tuple(0.9**step for step in range(45))
"""Shares of the full range that ``range=mse`` tries: 1, 0.9, 0.81 ... 0.0097.

A few channels of a language model reach a hundred times as far as the others (LLM.int8, arXiv
2208.07339), so the best range of a tensor can be that much smaller than the full one.
"""


class Sample:
    """Up to :data:`SAMPLE_ROWS` of a layer's inputs, and the ends of each column over all."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.low = torch.full((features,), torch.inf, device=device)
        self.high = torch.full((features,), -torch.inf, device=device)
        self._rows = Spaced(SAMPLE_ROWS, features, device)

    def add(self, inputs: Tensor) -> None:
        inputs = inputs.float()
        self.low = torch.minimum(self.low, inputs.amin(0))
        self.high = torch.maximum(self.high, inputs.amax(0))
        self._rows.add(inputs)

    def value(self) -> Tensor:
        """The rows kept, float32 ``(rows, in)``."""
        return self._rows.value()


def static_params(sample: Sample, spec: InputSpec) -> dict[str, Tensor]:
    """The parameters of ``spec`` on the range that calibration text has.

    ``minmax``: the ends over all of the text. ``percentile``: the range that holds ``percentile``
    per cent of the sampled numbers, as many missing at each end, and when symmetric that of
    magnitudes (TensorRT takes magnitudes always). ``mse``: the share of the min-max range,
    both ends by one factor of :data:`FACTORS`, with the least squared error of the sample.
    A format fitted to more than a range (``binary``'s mean) is fitted to the sample cut to it.
    Per token, what the format has of the whole tensor (``nvfp4``'s scale of scales).
    """
    if spec.per == "token":
        whole = torch.cat([sample.value(), sample.low.unsqueeze(0), sample.high.unsqueeze(0)])
        return formats.get(spec.quant.format).shared(whole, spec.quant)
    rows, low, high = sample.value(), sample.low.unsqueeze(1), sample.high.unsqueeze(1)
    if spec.per == "tensor":
        low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
        rows = rows.flatten()[:: max(1, rows.numel() // SAMPLE_NUMBERS)].unsqueeze(1)
    matrix = rows.T.contiguous()
    if spec.range == "percentile":
        low, high = _percentiles(matrix, spec)
    if spec.range != "mse":
        return formats.fit(cut(matrix, low, high), spec.quant)

    def tried() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for factor in FACTORS:
            params = formats.fit(cut(matrix, factor * low, factor * high), spec.quant)
            moved = restored(matrix, spec.quant, params).sub_(matrix)
            yield params, moved.square_().sum(1, keepdim=True)

    return formats.least(tried())


def cut(matrix: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``matrix`` ``(rows, n)`` within ``low`` and ``high`` ``(rows, 1)``, both ends among it."""
    return torch.cat([matrix.clamp(low, high), low, high], dim=1)


def _percentiles(matrix: Tensor, spec: InputSpec) -> tuple[Tensor, Tensor]:
    if spec.quant.symmetric:
        high = quantile(matrix.abs(), spec.percentile / 100)
        return -high, high
    outside = (1 - spec.percentile / 100) / 2
    return -quantile(-matrix, 1 - outside), quantile(matrix, 1 - outside)


def quantile(matrix: Tensor, share: float) -> Tensor:
    """The smallest number of each row that at least ``share`` of it do not exceed, ``(rows, 1)``.

    The nearest rank, a number that occurs (others interpolate).
    """
    count = matrix.shape[1]
    rank = min(count, max(1, math.ceil(share * count - 1e-9)))
    return matrix.kthvalue(rank, dim=1, keepdim=True).values
