"""SmoothQuant (Xiao et al., 2022): outliers of the inputs moved into the weights.

``Y = (X diag(1/s)) (diag(s) W^T)`` (equation 3) with, per input channel j,
``s_j = max|X_j|^a / max|W_j|^(1 - a)`` (equation 4), ``a`` the strength. ``1/s`` is folded into the
norm or linear layer that makes X, so nothing is left to compute at run time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep.calibration import Calibration
from bitsweep.calibration.statistics import Spaced
from bitsweep.errors import UserError
from bitsweep.models import Layer, Model
from bitsweep.models.fold import readers
from bitsweep.models.norms import norm_kind, norm_offset
from bitsweep.models.trace import is_norm
from bitsweep.transforms._channels import channels
from bitsweep.transforms._folding import (
    bias_of,
    check_unchanged,
    put,
    put_weight,
    sample_logits,
    weight_of,
)

SEARCH = "search"
GRID = tuple(step / 20 for step in range(21))
"""Strengths that ``strength=search`` tries, besides leaving the layers as they are."""

SAMPLE = 512
"""Tokens at most on which a strength is judged."""

FLOOR = 1e-5
"""Below it a channel's largest magnitude counts as this (SmoothQuant's code has the same)."""


class AbsMax:
    """The largest magnitude of each channel of a layer's inputs, ``(1, in)``."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.largest = torch.zeros(features, device=device)

    def add(self, inputs: Tensor) -> None:
        self.largest = torch.maximum(self.largest, inputs.float().abs().amax(0))

    def value(self) -> Tensor:
        return self.largest.unsqueeze(0)


class AbsMaxAndSample(AbsMax):
    """Row 0: the largest magnitude of each channel; then up to ``SAMPLE`` inputs."""

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.rows = Spaced(SAMPLE, features, device)

    def add(self, inputs: Tensor) -> None:
        super().add(inputs)
        self.rows.add(inputs)

    def value(self) -> Tensor:
        return torch.cat([super().value(), self.rows.value()])


@dataclass(frozen=True)
class Smooth:
    """Options of SmoothQuant.

    ``strength``: the exponent a, 0.5 in the paper (0.75 to 0.9 for harder models), or ``search``.
    ``search`` takes for each source by itself the a of :data:`GRID` with the least squared error of
    the outputs of all layers that read it, each relative to its size, when weights are rounded to
    ``weight_bits`` (symmetric, a scale per output channel) and inputs to ``input_bits`` (symmetric,
    a scale per token, dynamic); 16 leaves either as it is. A transform does not know the point's
    own format; leaving the layers as they are is among what is tried. Errors are those of up to
    :data:`SAMPLE` calibration tokens.
    ``sources``: ``norm`` smooths what norms feed (query, key, value; gate and up), as SmoothQuant
    does; ``all`` also value -> attention.out and up -> ffn.down where a factor can pass
    (``Layer.source``). The head is left as it is.

    A channel shared by repeats (grouped heads) takes the largest magnitudes of all of them.
    Channels whose inputs or weights are all zero keep their scale.
    """

    strength: float | str = 0.5
    sources: str = "norm"
    weight_bits: int = 8
    input_bits: int = 8

    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    calibrated: ClassVar[bool] = True
    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        key = "transforms.smooth"
        if isinstance(self.strength, str) and self.strength != SEARCH:
            raise UserError(f"{key}.strength={self.strength}: use a number from 0 to 1 or {SEARCH}")
        if not isinstance(self.strength, str) and not 0 <= self.strength <= 1:
            raise UserError(f"{key}.strength={self.strength:g}: use a number from 0 to 1")
        if self.sources not in ("norm", "all"):
            raise UserError(f"{key}.sources={self.sources}: use norm or all")
        for name in ("weight_bits", "input_bits"):
            if not 2 <= getattr(self, name) <= 16:
                raise UserError(f"{key}.{name}={getattr(self, name)}: use 2 to 16")

    def skip(self, model: Model) -> str | None:
        if not self._groups(model):
            advice = "; try transforms.smooth.sources=all" if self.sources == "norm" else ""
            return (
                f"no layer of {model.source.name} has a {self.sources.replace('all', 'source')} "
                f"in front across which a factor can pass{advice}"
            )
        return None

    def reshape(self, model: Model) -> None:
        """Structure stays as it is."""

    @torch.no_grad()
    def __call__(self, model: Model, calibration: Calibration) -> Model:
        before = sample_logits(model)
        groups = self._groups(model)
        maps = channels(model, groups)
        statistic = AbsMaxAndSample if self.strength == SEARCH else AbsMax
        for index in range(len(model.blocks)):
            seen = {
                name: value
                for names, value in calibration.full_precision(index, statistic).items()
                for name in names
            }
            for source, layers in groups.items():
                names = [layer.name for layer in layers]
                whole = all(name in maps and name in seen for name in names)
                if layers[0].block == index and whole:
                    edge = _Edge(model, source, {n: maps[n] for n in names}, seen)
                    edge.fold(self._factor(edge))
        check_unchanged(model, before, "smooth")
        return model

    def _groups(self, model: Model) -> dict[str, list[Layer]]:
        """By source, the layers that read it, all of them in blocks."""
        groups = {s: [model.layers[name] for name in names] for s, names in readers(model).items()}
        inner = {s: ls for s, ls in groups.items() if all(layer.block is not None for layer in ls)}
        return {source: layers for source, layers in inner.items() if self._takes(model, source)}

    def _takes(self, model: Model, source: str) -> bool:
        module = model.get(source)
        return norm_kind(module) is not None if is_norm(module) else self.sources == "all"

    def _factor(self, edge: _Edge) -> Tensor:
        if not isinstance(self.strength, str):
            return edge.factor(self.strength)
        tried = [torch.ones_like(edge.inputs), *map(edge.factor, GRID)]
        errors = [edge.error(s, self.weight_bits, self.input_bits) for s in tried]
        return tried[min(range(len(tried)), key=errors.__getitem__)]


class _Edge:
    """A source and the layers that read it: the paper's equation 4 over the source's channels.

    ``maps`` int64 ``(in,)`` by layer: which channel of the source each of its inputs is. ``seen``
    float32 ``(1 + n, in)`` by layer: the largest magnitudes of its inputs, and n of the inputs.
    """

    def __init__(
        self, model: Model, source: str, maps: dict[str, Tensor], seen: dict[str, Tensor]
    ) -> None:
        self.feeder = model.get(source)
        self.layers = {name: model.get(name) for name in maps}
        device = model.device
        self.maps = {name: channel.to(device) for name, channel in maps.items()}
        self.samples = {name: seen[name][1:].to(device).double() for name in maps}
        weight = self.feeder.get_parameter("weight")
        count = len(weight) if weight.ndim == 1 else len(weight_of(self.feeder))
        self.inputs = torch.zeros(count, dtype=torch.float64, device=device)
        self.weights = torch.zeros_like(self.inputs)
        for name, layer in self.layers.items():
            by_channel = seen[name][0].to(device).double()
            self.inputs.scatter_reduce_(0, self.maps[name], by_channel, "amax")
            columns = weight_of(layer).to(device).abs().amax(0)
            self.weights.scatter_reduce_(0, self.maps[name], columns, "amax")

    def factor(self, strength: float) -> Tensor:
        """``s`` float64 ``(channels of the source,)``."""
        inputs, weights = self.inputs.clamp(min=FLOOR), self.weights.clamp(min=FLOOR)
        s = inputs.pow(strength) / weights.pow(1 - strength)
        alive = (self.inputs > 0) & (self.weights > 0)
        return torch.where(alive, s.clamp(min=FLOOR), torch.ones_like(s))

    def error(self, s: Tensor, weight_bits: int, input_bits: int) -> float:
        """Squared error of the layers' outputs when both sides are rounded, each of its size."""
        return math.fsum(self._errors(s, weight_bits, input_bits))

    def _errors(self, s: Tensor, weight_bits: int, input_bits: int) -> Iterator[float]:
        for name, layer in self.layers.items():
            x, own = self.samples[name], s[self.maps[name]]
            weight = weight_of(layer).to(x.device)
            exact = x @ weight.t()
            rounded = _rounded(x / own, input_bits) @ _rounded(weight * own, weight_bits).t()
            yield float((exact - rounded).square().sum() / exact.square().sum().clamp(min=1e-30))

    def fold(self, s: Tensor) -> None:
        """Divide what the source makes by ``s``, multiply the columns of its readers."""
        for name, layer in self.layers.items():
            weight = weight_of(layer)
            put_weight(layer, weight * s[self.maps[name]].to(weight.device))
        bias, home = bias_of(self.feeder), self.feeder.get_parameter("weight").device
        s = s.to(home)
        if is_norm(self.feeder):
            offset = norm_offset(self.feeder)
            gain = self.feeder.get_parameter("weight").double() + offset
            put(self.feeder, "weight", gain / s - offset)
        else:
            put_weight(self.feeder, weight_of(self.feeder) / s.unsqueeze(1))
        if bias is not None:
            put(self.feeder, "bias", bias / s)


def _rounded(rows: Tensor, bits: int) -> Tensor:
    """Each row ``(..., in)`` rounded to nearest, symmetric, one scale a row; 16 bits: as it is."""
    if bits >= 16:
        return rows
    top = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-30) / top
    return (rows / scale).round() * scale
