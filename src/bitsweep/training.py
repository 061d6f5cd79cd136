"""Gradient descent on the calibration text, for what of a quantized model can be trained.

The loss of a batch of windows is

    (1 - distill) * cross entropy of the next token  +  distill * KL(teacher || student)

both in nats a token, the teacher being the full-precision model (Hinton, Vinyals & Dean, 2015, at
temperature 1). Adam (Kingma & Ba, 2015), whose step is *relative*, as in Adafactor (Shazeer &
Stern, 2018, section 8): ``lr`` times a size of the tensor's own, its root mean square where nothing
else is said. One ``lr`` then serves weights, scales and norms of any model. It rises over the first
tenth of the steps and falls to 0.

Parameters are float32 copies; the forward pass is the quantized model's own, in its dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bitsweep import pace
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.linear import Quantized
from bitsweep.models import Model

BETAS = (0.9, 0.95)
WARM_UP = 0.1
"""Share of the steps over which the learning rate rises."""

LEAST_SIZE = 1e-3
"""Root mean square that a tensor of zeros is taken to have (Adafactor's epsilon_2)."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; ``key`` is what the options are called on the command line."""

    key: str
    steps: int
    lr: float
    batch: int
    distill: float

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1:
            raise UserError(f"{self.key}.steps, batch: at least 0, at least 1")
        if self.lr <= 0:
            raise UserError(f"{self.key}.lr={self.lr:g}: above 0; try 0.003")
        if not 0 <= self.distill <= 1:
            raise UserError(
                f"{self.key}.distill={self.distill:g}: the share of the loss that is distance to "
                "the full-precision model, 0 to 1"
            )

    def rate(self, step: int) -> float:
        """The share of ``lr`` at ``step``: up over the first tenth, then down to zero."""
        rise = max(1, round(WARM_UP * self.steps))
        return min((step + 1) / rise, (self.steps - step) / max(1, self.steps - rise + 1))


@dataclass(frozen=True)
class Knob:
    """A float32 leaf that trains; one step of Adam moves it by about ``lr * size``."""

    value: nn.Parameter
    size: float

    @classmethod
    def of(cls, start: Tensor, size: float | None = None) -> Knob:
        """Begins at ``start``, and moves in units of ``size``: None, of its root mean square."""
        value = start.detach().to(torch.float32, copy=True)
        if size is None:
            size = max(float(value.square().mean().sqrt()), LEAST_SIZE)
        return cls(nn.Parameter(value), size)

    @classmethod
    def factor(cls, like: Tensor, size: float = 1.0) -> Knob:
        """The logarithm of a positive factor for each element of ``like``; begins at 0."""
        return cls(nn.Parameter(torch.zeros_like(like, dtype=torch.float32)), size)


class Weight(Protocol):
    """The weight of one or several (tied) ``layers``, computed anew in every step."""

    @property
    def layers(self) -> Sequence[str]: ...

    @property
    def knobs(self) -> Sequence[Knob]: ...

    def value(self) -> Tensor:
        """The weight ``(out, in)``, float32, with the gradients of its knobs."""


def passed_through(exact: Tensor, surrogate: Tensor) -> Tensor:
    """The numbers of ``exact``, bit for bit, with the gradient of ``surrogate``."""
    return exact.detach() + (surrogate - surrogate.detach())


def train(
    student: Model,
    weights: Sequence[Weight],
    others: Mapping[str, Knob],
    calibration: Calibration,
    schedule: Schedule,
    generator: torch.Generator,
) -> None:
    """Train the knobs of ``weights`` and ``others``, parameters of ``student`` by name.

    ``student`` is a copy of the quantized model that is left holding what it was trained with; no
    tensor of it is written. Its input quantizers pass gradients straight through. Windows are drawn
    without replacement by ``generator``, and again when all have been seen.

    Raises:
        UserError: the loss is no longer finite (``lr``), or the model is larger than its GPU.
    """
    knobs = [knob for weight in weights for knob in weight.knobs] + list(others.values())
    if not knobs or not schedule.steps:
        return
    device = student.device
    if any(tensor.device != device for tensor in student.module.parameters()):
        raise UserError(
            f"{schedule.key}: training needs the whole model on {device}, which it is too large "
            "for; use a smaller model or a larger GPU"
        )
    dtypes = {name: student.module.get_parameter(name).dtype for name in others}
    optimizer = torch.optim.Adam(
        [{"params": [knob.value], "lr": schedule.lr * knob.size} for knob in knobs], betas=BETAS
    )
    fading = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.rate)
    batches = _batches(calibration.tokens, schedule, generator)
    for step, batch in enumerate(pace.of(batches, schedule.steps, "steps")):
        tokens = batch.to(device)
        with torch.enable_grad():
            for weight in weights:
                _hold(student, weight)
            plain = {name: knob.value.to(dtypes[name]) for name, knob in others.items()}
            inputs = {"input_ids": tokens, "use_cache": False}
            logits = functional_call(student.module, plain, kwargs=inputs).logits
            loss = _loss(logits, tokens, calibration.model, schedule.distill)
        if not bool(torch.isfinite(loss)):
            raise UserError(
                f"{schedule.key}.lr={schedule.lr:g}: the loss is {loss.item()} in step {step}; "
                f"try {schedule.key}.lr={schedule.lr / 10:g}"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fading.step()
        calibration.trained_tokens += tokens.numel()


def _hold(student: Model, weight: Weight) -> None:
    dense = weight.value()
    for name in weight.layers:
        module = student.get(name)
        assert isinstance(module, Quantized)
        module.hold(dense.to(module.compute_dtype))


def _batches(tokens: Tensor, schedule: Schedule, generator: torch.Generator) -> Iterator[Tensor]:
    """``steps`` batches ``(batch, window)`` of the calibration windows."""
    waiting: list[int] = []
    for _ in range(schedule.steps):
        while len(waiting) < schedule.batch:
            waiting += torch.randperm(len(tokens), generator=generator).tolist()
        yield tokens[waiting[: schedule.batch]]
        waiting = waiting[schedule.batch :]


def _loss(logits: Tensor, tokens: Tensor, teacher: Model, distill: float) -> Tensor:
    """Nats a token of ``logits`` ``(batch, window, vocabulary)``; see the head of this file."""
    predicted = torch.log_softmax(logits.float(), dim=-1)
    loss = torch.zeros((), device=logits.device)
    if distill < 1:
        vocabulary = predicted.shape[-1]
        rows = predicted[:, :-1].reshape(-1, vocabulary)
        loss = loss + (1 - distill) * F.nll_loss(rows, tokens[:, 1:].reshape(-1))
    if distill > 0:
        with torch.no_grad():
            wanted = teacher.module(input_ids=tokens, use_cache=False).logits.float()
            wanted = torch.log_softmax(wanted, dim=-1)
        apart = F.kl_div(predicted, wanted, reduction="sum", log_target=True)
        loss = loss + distill * apart / tokens.numel()
    return loss
