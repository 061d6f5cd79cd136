"""Inputs of layers, quantized before they are multiplied.

Numbers are quantized and at once replaced by what their codes stand for, in float32 whatever the
model computes in; a packed kernel that multiplies the codes gives the same product up to the order
of its sums.

* **Dynamic** parameters come from the numbers at hand: of each token by itself (``per=token``, in
  groups if asked), so that no token's result depends on what shares its batch, or of all numbers
  of the call (``per=tensor``, as torch's ``quantize_dynamic``): of the whole batch, later tokens
  included, which makes a perplexity of full windows flatter than decoding is.
* **Static** ones are found once on calibration text: of the whole tensor, or of each of its columns
  (``per=channel``: better, though no integer kernel can multiply it without folding the scales into
  the weight). Blocks are walked in order through the model as it stands: weights quantized, inputs
  of the blocks before quantized as well, those of the block itself not yet. Weights are chosen
  first (GPTQ sees inputs in full precision, as in QuaRot's and llm-compressor's code).
* **Adaptive**: each token takes the narrowest width at which it is represented well enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from bitsweep import formats
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.linear import QuantLinear
from bitsweep.models import Model
from bitsweep.packing import packed_bytes
from bitsweep.spec import PER_CHANNEL, InputSpec, Plan, QuantSpec

SAMPLE_ROWS = 4096
"""Tokens of the calibration text, evenly spaced, from which percentiles and errors are taken."""

SAMPLE_NUMBERS = 2**18
"""The same for one scale per tensor: more numbers would move its range by less than a per mille."""

AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
"""Numbers that are quantized at a time where rows do not depend on each other: on a CPU few enough
to stay in its cache, and to need no fresh memory, which costs more than the arithmetic."""

FACTORS = tuple(0.9**step for step in range(45))
"""Shares of the full range that ``range=mse`` tries: 1, 0.9, 0.81 ... 0.0097.

A few channels of a language model reach a hundred times as far as the others (LLM.int8, arXiv
2208.07339), so the best range of a tensor can be that much smaller than the full one.
"""

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


class Sample:
    """Evenly spaced rows of a layer's inputs, and the ends of each column over all of them.

    Every ``2**k``-th row is kept, k growing so that there are at most :data:`SAMPLE_ROWS`.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.low = torch.full((features,), torch.inf, device=device)
        self.high = torch.full((features,), -torch.inf, device=device)
        self._kept: list[Tensor] = []
        self._step, self._seen = 1, 0

    def add(self, inputs: Tensor) -> None:
        inputs = inputs.float()
        self.low = torch.minimum(self.low, inputs.amin(0))
        self.high = torch.maximum(self.high, inputs.amax(0))
        self._kept.append(inputs[-self._seen % self._step :: self._step].clone())
        self._seen += len(inputs)
        while sum(map(len, self._kept)) > SAMPLE_ROWS:
            self._kept, self._step = [self.value()[::2]], 2 * self._step

    def value(self) -> Tensor:
        """The rows kept, float32 ``(rows, in)``."""
        return torch.cat(self._kept)


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


def skip(plan: Plan, model: Model) -> str | None:
    """Why the inputs that ``plan`` asks for cannot be made (with the key to change), or None."""
    for name, layer in plan.layers.items():
        if layer.input is not None:
            reason = _skip(layer.input, name, model.layers[name].shape[1])
            if reason is not None:
                return reason
    return None


def _skip(spec: InputSpec, name: str, in_features: int) -> str | None:
    quant, static = spec.quant, spec.range != "dynamic"
    if spec.adaptive and (static or spec.per != "token"):
        return "input.adaptive: a token that chooses its width has input.per=token range=dynamic"
    if spec.per == "token" and static and (spec.range != "minmax" or not shares(quant)):
        return (
            f"input.range={spec.range}: a token's range shows when it comes; "
            "use input.per=tensor or channel, or input.range=dynamic"
        )
    if spec.per == "channel" and not static:
        return (
            "input.per=channel: a column's range over all tokens comes from calibration; "
            "use input.range=minmax, percentile or mse"
        )
    if spec.per != "token" and quant.group_size != PER_CHANNEL:
        return f"input.group_size={quant.group_size}: input.per={spec.per} has no groups; use -1"
    for width in [spec.at(bits).quant for bits in spec.adaptive] or [quant]:
        reason = formats.get(width.format).skip(width) or _unfit(width, spec)
        if reason is not None:
            return f"input.{reason}"
    if not quant.fits(in_features):
        return (
            f"input.group_size={quant.group_size} does not divide in_features={in_features} of "
            f"{name}; use -1 (the whole token) or a divisor"
        )
    return None


def _unfit(quant: QuantSpec, spec: InputSpec) -> str | None:
    """Why ``quant``, a format of weights, cannot be fitted as ``spec`` says, or None."""
    if formats.get(quant.format).vector(quant) > 1:
        return f"format={quant.format}: codes of several numbers at once are for weights"
    if spec.range == "dynamic" or spec.per == "token":
        if learned(quant):
            return (
                f"format={quant.format}: learned on calibration text; "
                "use input.per=tensor input.range=minmax"
            )
        if spec.range == "dynamic" and shares(quant):
            return (
                f"format={quant.format}: has a parameter of the whole tensor, which calibration "
                "finds; use input.range=minmax"
            )
    return None


def shares(quant: QuantSpec) -> bool:
    """Whether numbers of this format have parameters of the whole tensor beside their groups'."""
    return bool(formats.get(quant.format).shared(torch.linspace(-1, 1, 64).view(1, 64), quant))


def learned(quant: QuantSpec) -> bool:
    """Whether the format is fitted at leisure, by a search that no token can wait for."""
    return "codebook" in formats.get(quant.format).params_bits(quant)


def install(model: Model, plan: Plan, calibration: Calibration) -> None:
    """Give each layer of ``model``, quantized, the input quantizer that ``plan`` names.

    A layer that has one already (of a library that quantizes inputs by itself) keeps it.

    Raises:
        UserError: a layer with static ranges that the calibration text never reaches.
    """
    wanted: dict[str, InputSpec] = {}
    for name, layer in plan.layers.items():
        if layer.input is not None and _layer(model, name).input_quantizer is None:
            wanted[name] = layer.input
    for name, spec in wanted.items():
        if spec.range == "dynamic":
            _layer(model, name).input_quantizer = InputQuantizer(spec)
    static = model.by_block(name for name, spec in wanted.items() if spec.range != "dynamic")
    for block in calibration.blocks(model) if static else ():
        names = static.pop(block.index, [])
        samples = block.observe(names, Sample)
        for name in names:
            if name not in samples:
                raise UserError(
                    f"input.range={wanted[name].range}: the calibration text never reaches {name}; "
                    "use more calibration.windows, or input.range=dynamic"
                )
            params = static_params(samples[name], wanted[name])
            home = _layer(model, name).quant.codes.device
            _layer(model, name).input_quantizer = InputQuantizer(wanted[name], params).to(home)
        if not static:
            break


def _layer(model: Model, name: str) -> QuantLinear:
    return cast(QuantLinear, model.get(name))
