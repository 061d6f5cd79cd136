"""AutoRound (Cheng, Zhang, Shen, Cai, He, Lv & Liu, 2023): rounding learned by signed gradients.

Per group of weights with the range ``[l, h]`` and per weight, three things are learned:

    Q(W) = s (clamp(round(W / s + z + V)) - z),   s, z of the range [alpha l, beta h]    (3)

``V``, the offset of each weight before it is rounded, stays within half a step either way;
``alpha`` and ``beta``, the shares of the range that are kept, within 0 and 1. Block by block they
go down the *sign* of the gradient of the mean squared error between what the block makes of the
quantized prefix's states and what the full-precision model has there. Rounding passes gradients on
(straight-through). The rate falls linearly to zero, so that ``iterations`` steps of at most
``1 / iterations`` add up to half a step of ``V``: every weight may reach its other neighbour, none
a third.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.calibration import Block, Calibration
from bitsweep.errors import UserError
from bitsweep.formats.int import Int
from bitsweep.methods import finite_weight, place, replace_layers, seeded
from bitsweep.models import Model
from bitsweep.spec import Plan, QuantSpec
from bitsweep.tensor import QuantTensor
from bitsweep.training import passed_through

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoRound:
    """``iterations`` steps a block, each on ``batch`` windows; ``lr`` null is ``1 / iterations``.

    ``clip=false`` learns ``V`` alone. Windows come in an order drawn by ``seed=`` and drawn again
    when they run out. Of all steps the parameters with the least loss on their own batch are kept,
    as in the authors' code. 0 iterations are rtn.

    The cost is that of ``3 * iterations * batch`` windows run through every block; the authors'
    light recipe is ``iterations=50 lr=0.005``.

    Where implementations differ: the grid, its symmetric range and the order in which scale and
    zero are rounded, is that of :mod:`bitsweep.formats.int`; the authors' symmetric one gives the
    longer side of a group the extra code by a negative scale. Their code takes twice the rate from
    1000 iterations on at 2 and 3 bits. Weights are float32 throughout (theirs: bfloat16 products
    where there is hardware for it). Embedding and head are rounded to nearest, as theirs are
    when they are rounded at all.
    """

    iterations: int = 200
    lr: float | None = None
    batch: int = 8
    clip: bool = True

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset()
    calibrated: ClassVar[bool] = True
    QUICK: ClassVar[Mapping[str, int]] = {"iterations": 4, "batch": 2}

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.batch < 1:
            raise UserError("method.iterations, batch: at least 0, at least 1")
        if self.lr is not None and self.lr <= 0:
            raise UserError(f"method.lr={self.lr:g}: above 0, or null for 1 / iterations")

    def skip(self, spec: QuantSpec) -> str | None:
        if spec.format != "int":
            return (
                f"format={spec.format}: auto_round learns offsets of one step and both ends of a "
                "range, and only format=int has even steps between two ends"
            )
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        blocks = model.by_block(plan.layers)
        outside = blocks.pop(len(model.blocks), [])
        replace_layers(model, plan, outside, QuantTensor.quantize)
        generator = seeded()
        if blocks:
            full = calibration.blocks(calibration.model.copy())
            for teacher, block in zip(full, calibration.blocks(model), strict=True):
                names = blocks.get(block.index, [])
                if names:
                    self._quantize(model, plan, teacher, block, names, generator)
                if block.index == max(blocks):
                    break
        model.plan = plan
        return model

    def _quantize(
        self,
        model: Model,
        plan: Plan,
        teacher: Block,
        block: Block,
        names: list[str],
        generator: torch.Generator,
    ) -> None:
        """Learn how to round the layers ``names`` of one block, and put them in place."""
        learners = {
            name: Learner(
                finite_weight(model, name).to(model.device),
                plan.layers[name].weight,
                model.masks.get(name),
            )
            for name in names
        }
        inputs, targets = block.inputs(), teacher.outputs()
        order = _batches(len(inputs), min(self.batch, len(inputs)), generator)
        best, least, first = {name: each.state() for name, each in learners.items()}, torch.inf, 0.0
        with model.block_on_device(block.index):
            for step in range(self.iterations):
                windows = next(order)
                with torch.enable_grad():
                    weights = {name: each.weight() for name, each in learners.items()}
                    output = block.run(inputs[windows], windows, weights).float()
                    loss = (output - targets[windows].to(output.device).float()).square().mean()
                    loss.backward()
                found = float(loss.detach())
                first = first or found
                if found < least:
                    best, least = {name: each.state() for name, each in learners.items()}, found
                rate = (self.lr or 1 / self.iterations) * (1 - step / self.iterations)
                for learner in learners.values():
                    learner.step(rate, self.clip)
        log.info("%s: loss %.3g to %.3g", block.name, first, least)
        for name, learner in learners.items():
            learner.load(best[name])
            place(model, name, learner.quant().to(model.weight(name).device))


State = list[tuple[Tensor, Tensor, Tensor]]


class Learner:
    """A weight ``(out, in)`` float32 on a grid whose ends and roundings are learned.

    For each part of :func:`formats.split`: ``V`` ``(rows, n, g)``, ``alpha`` and ``beta``
    ``(rows, n)``.
    """

    def __init__(self, weight: Tensor, spec: QuantSpec, mask: Tensor | None) -> None:
        self.shape = weight.shape
        self.spec = spec
        self.mask = None if mask is None else mask.to(weight.device)
        self.parts = formats.split(weight, spec)
        self.learned: State = [
            (
                torch.zeros_like(part).requires_grad_(),
                part.new_ones(part.shape[:2]).requires_grad_(),
                part.new_ones(part.shape[:2]).requires_grad_(),
            )
            for part in self.parts
        ]

    def weight(self) -> Tensor:
        """What the weight is rounded to now, ``(out, in)``; gradients reach what is learned."""
        values = []
        for part, learned in zip(self.parts, self.learned, strict=True):
            scale, zero = self._grid(part, *learned[1:])
            signed = self._signed(part, learned[0], scale, zero)
            values.append((signed - zero.unsqueeze(-1)) * scale.unsqueeze(-1))
        weight = formats.join(values, self.shape)
        return weight if self.mask is None else weight * self.mask

    def quant(self) -> QuantTensor:
        """The codes and parameters of :meth:`weight`."""
        codes, params, half = [], [], 2 ** (int(self.spec.bits) - 1)
        with torch.no_grad():
            for part, (offset, alpha, beta) in zip(self.parts, self.learned, strict=True):
                scale, zero = self._grid(part, alpha, beta)
                signed = self._signed(part, offset, scale, zero)
                codes.append((signed + half).to(torch.uint8))
                params.append(self._stored(part, alpha, beta))
        return QuantTensor(formats.join(codes, self.shape), formats.join_params(params), self.spec)

    def _stored(self, part: Tensor, alpha: Tensor, beta: Tensor) -> dict[str, Tensor]:
        """The parameters that ``format=int`` fits to the learned range."""
        ends = torch.stack(_ends(part, alpha, beta), -1)
        return Int(self.spec.format).fit(ends, self.spec)

    def _grid(self, part: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and signed zero ``(rows, n)``: valued as they are stored, sloped as the range is.

        The zero is a whole number between the lowest and highest signed code, 0 if symmetric.
        """
        half, levels = 2 ** (int(self.spec.bits) - 1), 2 ** int(self.spec.bits) - 1
        stored = self._stored(part, alpha.detach(), beta.detach())
        low, high = _ends(part, alpha, beta)
        if self.spec.symmetric:
            scale = passed_through(
                stored["scale"].float(), torch.maximum(-low, high) / (levels / 2)
            )
            return scale, torch.zeros_like(scale)
        scale = passed_through(stored["scale"].float(), (high - low) / levels)
        zero = stored["zero"].float() - half
        return scale, passed_through(zero, -low / scale - half)

    def _signed(self, part: Tensor, offset: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Signed codes as floats; rounding is invisible to gradients, clamping stops them."""
        half = 2 ** (int(self.spec.bits) - 1)
        exact = part / scale.unsqueeze(-1) + offset + zero.unsqueeze(-1)
        return passed_through(exact.round(), exact).clamp(-half, half - 1)

    @torch.no_grad()
    def step(self, rate: float, clip: bool) -> None:
        """Go ``rate`` down the sign of the gradient; forget the gradient."""
        for offset, alpha, beta in self.learned:
            for tensor in (offset, alpha, beta) if clip else (offset,):
                if tensor.grad is not None:
                    tensor.sub_(tensor.grad.sign_(), alpha=rate)
            offset.clamp_(-0.5, 0.5)
            alpha.clamp_(0, 1)
            beta.clamp_(0, 1)
            offset.grad = alpha.grad = beta.grad = None

    def state(self) -> State:
        """A copy of what is learned, for :meth:`load`."""
        return [
            (v.detach().clone(), a.detach().clone(), b.detach().clone()) for v, a, b in self.learned
        ]

    def load(self, state: State) -> None:
        self.learned = state


def _ends(part: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The range ``[alpha l, beta h]`` ``(rows, n)`` of each group; it always includes 0."""
    return part.amin(-1).clamp(max=0) * alpha, part.amax(-1).clamp(min=0) * beta


def _batches(windows: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of ``batch`` windows without end: each shuffle is used as far as it fills them."""
    while True:
        yield from torch.randperm(windows, generator=generator).split(batch)[: windows // batch]
