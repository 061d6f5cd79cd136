"""QAT, quantization-aware training: weights trained through the rounding that they will undergo.

The forward pass computes with fake-quantized weights ``w_hat = dequantize(quantize(w))``; the
latent float32 ``w`` is what trains. Rounding has no derivative, so it gets one:

* **ste**, the straight-through estimator (Bengio, Leonard & Courville, 2013): ``d w_hat / d w = 1``
  inside the range of codes, 0 where the code is clipped.
* **noise**: while training, rounding is replaced by what it resembles, additive uniform noise of
  one step, ``w_hat = clip(w) + s * u`` with u in [-1/2, 1/2] (Baskin et al., UNIQ, 2018; Defossez,
  Adi & Synnaeve, DiffQ, 2021). The result is rounded.

**Learned steps** (LSQ: Esser et al., 2020, eq. 3): with ``v = w / s + z``,

    d w_hat / d s = round(v) - v  inside the range,  0 - z or levels - z  outside.

LSQ multiplies this gradient by ``1 / sqrt(N Q_P)``, so that under SGD a step moves as much relative
to its size as the weights do relative to theirs. Adam divides any such factor out again; here the
same balance is had by units: weights move by shares of a rounding step, and ``log s`` by as much
as moves the outermost code by such a share. So one ``lr`` serves 2 bits, where a step is as large
as a weight, and 8, where moving a weight by a share of *itself* would undo the training that it
had (4 bits on stories260K: +18.6 % with that, +4.8 % with its third and a teacher).
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from bitsweep import activations, axes, formats, kv
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.formats.int import SMALLEST
from bitsweep.methods import Method, Particular, finite_weight, place, seeded
from bitsweep.models import Model
from bitsweep.spec import Plan, QuantSpec
from bitsweep.tensor import QuantTensor
from bitsweep.training import Knob, Schedule, passed_through, train

ESTIMATORS = ("ste", "noise")


@dataclass(frozen=True)
class QAT:
    """Options of quantization-aware training; only planned weights and their steps are trained.

    ``start``: the method, with its defaults, whose codes and parameters training begins from. The
    latent weight is the original one where that rounds to the start's code, else what the code
    stands for: ``steps=0`` is the start itself. ``distill``: the share of the loss that is distance
    to the full-precision model's predictions, the rest being that of the next token. ``steps`` of
    ``batch`` calibration windows each; ``lr`` is a share of a rounding step. With few windows the
    next token alone is learned by heart; the teacher (``distill=1``) keeps it from that.

    ``learn_steps`` is for ``format=int``. Otherwise, and for all but its scales, the parameters
    stay the start's. In formats other than int the estimator passes every gradient (as LLM-QAT and
    BitNet do): what is "clipped" is only clear for a uniform grid.

    Inputs and cache are quantized while it trains as they will be afterwards, straight through;
    static ranges of inputs are those of the start, and found anew for the result.
    """

    start: str = "rtn"
    steps: int = 100
    lr: float = 0.01
    batch: int = 4
    estimator: str = "ste"
    learn_steps: bool = True
    distill: float = 1.0

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset()
    calibrated: ClassVar[bool] = True
    QUICK: ClassVar[Mapping[str, Any]] = {"steps": 2, "batch": 2, "lr": 0.01}
    """Options with which a test sees all that the method does in little time.

    With so small an ``lr`` the result is the start's up to a few codes, and more bits are less
    weight error; training proper leaves the weights for others, which is what it is for.
    """

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise UserError(f"method.estimator={self.estimator}: use {' or '.join(ESTIMATORS)}")
        named(self.start)
        self.schedule  # noqa: B018 - its checks

    @property
    def schedule(self) -> Schedule:
        return Schedule("method", self.steps, self.lr, self.batch, self.distill)

    def skip(self, spec: QuantSpec) -> str | None:
        if spec.format != "int" and self.estimator == "noise":
            return f"format={spec.format}: noise has one step only in int; use method.estimator=ste"
        if spec.format != "int" and self.learn_steps:
            return f"format={spec.format}: learned steps are int's; use method.learn_steps=false"
        if spec.scale_dtype == "power_of_two" and self.learn_steps:
            return "scale_dtype=power_of_two: not learned; use method.learn_steps=false"
        return named(self.start).skip(spec)

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return named(self.start).resolve(spec)

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        model = named(self.start)(model, plan, calibration)
        generator = seeded()
        noise = generator if self.estimator == "noise" else None
        shared: dict[int, list[str]] = {}  # a tied pair is one tensor
        for name in plan.layers:
            shared.setdefault(id(model.get(name).quant), []).append(name)
        weights = [
            Latent(
                cast(QuantTensor, model.get(names[0]).quant),
                finite_weight(calibration.model, names[0]),
                layers=names,
                learn_steps=self.learn_steps,
                noise=noise,
            )
            for names in shared.values()
        ]
        student = model.copy()
        activations.install(student, plan, calibration)
        kv.install(student, plan)
        train(student, weights, {}, calibration, self.schedule, generator)
        for weight in weights:
            quant = weight.rounded()
            for name in weight.layers:
                place(model, name, quant)
        return model


class Latent:
    """The float32 weight behind the codes of ``layers``, and its steps.

    ``noise``: draws the noise that stands for rounding; None rounds straight through.
    """

    def __init__(
        self,
        start: QuantTensor,
        weight: Tensor,
        layers: Sequence[str],
        learn_steps: bool,
        noise: torch.Generator | None,
    ) -> None:
        self.layers = layers
        self._start = start
        self._family = formats.get(start.spec.format)
        self._noise = noise
        again = _round_like(weight, start, start.params)
        same = (again.codes == start.codes).repeat_interleave(self._family.vector(start.spec), 1)
        latent = torch.where(same, weight, start.dequantize())
        self._weight = Knob.of(latent, _step(weight, start))
        outermost = 2.0 ** (1 - start.spec.bits)  # of the codes a share of one is a step
        self._growth = Knob.factor(start.params["scale"], outermost) if learn_steps else None

    @property
    def knobs(self) -> list[Knob]:
        return [knob for knob in (self._weight, self._growth) if knob is not None]

    def params(self) -> dict[str, Tensor]:
        """The parameters as they are stored, in float32; a learned scale has its gradient."""
        params = {name: value.float() for name, value in self._start.params.items()}
        if self._growth is not None:
            scale = params["scale"] * self._growth.value.exp()
            least = SMALLEST[self._start.spec.scale_dtype]
            stored = scale.detach().clamp(min=least).to(self._start.params["scale"].dtype)
            params["scale"] = passed_through(stored.float(), scale)
        return params

    def value(self) -> Tensor:
        order, mask = self._start.permutation, self._start.mask
        weight = self._weight.value if order is None else self._weight.value[:, order]
        parts = formats.split(weight, self._start.spec)
        each = formats.split_params(self.params(), parts)
        fake = [self._fake(part, own) for part, own in zip(parts, each, strict=True)]
        dense = formats.join(fake, weight.shape)
        if order is not None:
            dense = torch.empty_like(dense).index_copy(1, order, dense)
        return dense if mask is None else dense * mask

    def rounded(self) -> QuantTensor:
        """The codes of the weight as it stands."""
        params: dict[str, Tensor] = dict(self._start.params)
        if self._growth is not None:
            params["scale"] = self.params()["scale"].detach().to(params["scale"].dtype)
        return _round_like(self._weight.value.detach(), self._start, params)

    def _fake(self, groups: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """What ``groups`` ``(rows, n, g)`` are in the forward pass."""
        spec = self._start.spec
        if self._noise is not None:
            low, high, step = _range(params, spec)
            noise = torch.rand(groups.shape, generator=self._noise).to(groups.device) - 0.5
            return torch.minimum(torch.maximum(groups, low), high) + step * noise
        with torch.no_grad():
            codes = self._family.quantize(groups, params, spec)
            exact = self._family.dequantize(codes, params, spec)
        return passed_through(exact, _lsq(groups, params, spec) if spec.format == "int" else groups)


def _step(weight: Tensor, start: QuantTensor) -> float:
    """A rounding step, in any format: what would have the error of ``start`` if it were uniform."""
    error = weight - start.dequantize()
    return math.sqrt(12 * float(error.square().mean()))


def _lsq(groups: Tensor, params: Mapping[str, Tensor], spec: QuantSpec) -> Tensor:
    """Fake quantization on a uniform grid whose rounding has the derivative 1 (LSQ, eq. 1 to 3)."""
    step, zero = params["scale"].unsqueeze(-1), _zero(params, spec)
    inside = (groups / step + zero).clamp(0, 2 ** int(spec.bits) - 1)
    return (passed_through(inside.detach().round(), inside) - zero) * step


def _range(params: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor, Tensor]:
    """The least and the largest weight of a uniform grid, and its step ``(rows, n, 1)``."""
    step, zero = params["scale"].unsqueeze(-1), _zero(params, spec)
    return -zero * step, (2 ** int(spec.bits) - 1 - zero) * step, step


def _zero(params: Mapping[str, Tensor], spec: QuantSpec) -> Tensor:
    if spec.symmetric:
        return torch.full((), 2.0 ** (int(spec.bits) - 1), device=params["scale"].device)
    return params["zero"].unsqueeze(-1)


def _round_like(weight: Tensor, start: QuantTensor, params: Mapping[str, Tensor]) -> QuantTensor:
    """``weight`` ``(out, in)`` to its nearest codes of ``params``; groups and mask of ``start``."""
    order = start.permutation
    ordered = weight if order is None else weight[:, order]
    quant = QuantTensor.quantize(ordered, start.spec, params)
    if order is not None:
        codes = torch.empty_like(quant.codes).index_copy_(1, order, quant.codes)
        quant = replace(quant, codes=codes, permutation=order)
    return quant.masked(start.mask)


def named(name: str) -> Method:
    """The method in ``methods/<name>.py``, with its default options, as a start for training.

    Raises:
        UserError: there is none, or its codes are no start (``method.start``).
    """
    known = [other for other in axes.files("methods") if other != "qat"]
    if name not in known:
        raise UserError(f"method.start={name}: use one of {', '.join(known)}")
    module = importlib.import_module(f"bitsweep.methods.{name}")
    own = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if _is_method(kind)]
    [kind] = [kind for kind in own if kind.__module__ == module.__name__]
    method = cast(Method, kind())
    if "policy" in method.ignores or isinstance(method, Particular):
        raise UserError(f"method.start={name}: its layers can not be trained; use rtn or gptq")
    return method


def _is_method(kind: type) -> bool:
    return all(hasattr(kind, name) for name in ("version", "ignores", "resolve", "skip"))
