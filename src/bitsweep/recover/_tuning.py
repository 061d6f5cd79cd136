"""What of a quantized model is not codes: trained, while every code stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bitsweep import formats
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.linear import Quantized, QuantLinear
from bitsweep.methods import place, seeded
from bitsweep.models import Model
from bitsweep.spec import Plan
from bitsweep.tensor import QuantTensor
from bitsweep.training import Knob, Schedule, passed_through, train

WHAT = ("all", "scales", "norms", "corrections")


@dataclass(frozen=True)
class Tuning:
    """Options of a recovery that trains; its file says by which loss.

    ``what``: ``scales`` are the parameters of the codes that are stored as float16 or float32
    numbers: scales, real zeros, codebooks (integer zeros and powers of two stay). ``norms`` are the
    weights and biases of norms, and the biases of linear layers. ``corrections`` are what a
    recovery before this one added to the layers' outputs. ``all`` is the three. Neither codes nor
    a layer that was not planned are touched.

    ``steps`` of ``batch`` calibration windows each, in an order that ``seed`` decides;
    ``lr`` relative to each tensor's root mean square (for scales: to each scale). Quantized inputs
    stay quantized while it trains, with the straight-through gradient.
    """

    steps: int = 60
    lr: float = 0.003
    batch: int = 4
    what: str = "all"

    teacher: ClassVar[float]
    """Share of the loss that is the distance to the full-precision model."""
    calibrated: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    QUICK: ClassVar[Mapping[str, Any]] = {"steps": 2, "batch": 2}
    """Options with which a test sees all that the recovery does in little time."""

    def __post_init__(self) -> None:
        if self.what not in WHAT:
            raise UserError(f"{self._key}.what={self.what}: use {', '.join(WHAT)}")
        self._schedule  # noqa: B018 - its checks

    @property
    def _key(self) -> str:
        return f"recover.{type(self).__name__.lower()}"

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self._key, self.steps, self.lr, self.batch, self.teacher)

    def skip(self, plan: Plan) -> str | None:
        return None

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        shared: dict[int, list[str]] = {}  # a tied pair is one tensor
        for name in plan.layers:
            module = model.get(name)
            if not isinstance(module, Quantized):
                raise UserError(
                    f"recover={self._key.partition('.')[2]}: {name} is a layer of another library, "
                    "which can not be trained; leave the recovery out"
                )
            shared.setdefault(id(module.quant), []).append(name)
        weights = []
        if self.what in ("all", "scales"):
            weights = [Codes(model.get(names[0]).quant, names) for names in shared.values()]
        others = {name: Knob.of(value) for name, value in self._others(model).items()}
        if not others and not any(weight.knobs for weight in weights):
            before = f"recover=[low_rank,{self._key.partition('.')[2]}] adds corrections; "
            raise UserError(
                f"{self._key}.what={self.what}: this point has none, so nothing would be trained; "
                f"{before * (self.what == 'corrections')}{self._key}.what=all trains what there is"
            )
        train(model.copy(), weights, others, calibration, self._schedule, seeded())
        for weight in weights:
            quant = weight.trained()
            for name in weight.layers:
                place(model, name, quant)
        _write(model, {name: knob.value.detach() for name, knob in others.items()})
        return model

    def _others(self, model: Model) -> dict[str, nn.Parameter]:
        """The parameters by name, beside those of codes, that ``what`` trains."""
        corrections = {
            id(parameter)
            for module in model.module.modules()
            if isinstance(module, QuantLinear) and module.correction is not None
            for parameter in module.correction.parameters()
        }
        named = dict(model.module.named_parameters())
        found: dict[str, nn.Parameter] = {}
        if self.what in ("all", "norms"):
            found |= {n: p for n, p in named.items() if p.ndim == 1 and id(p) not in corrections}
        if self.what in ("all", "corrections"):
            found |= {n: p for n, p in named.items() if id(p) in corrections}
        return {name: value for name, value in found.items() if value.is_floating_point()}


class Codes:
    """The weight of ``layers`` whose codes stay and whose parameters train."""

    def __init__(self, quant: Any, layers: Sequence[str]) -> None:
        assert isinstance(quant, QuantTensor)
        self.layers = layers
        self._quant = quant
        bits = formats.get(quant.spec.format).params_bits(quant.spec)
        free = {n: p for n, p in quant.params.items() if _is_free(p, bits[n])}
        self._knobs = {
            name: Knob.factor(value) if name == "scale" else Knob.of(value)
            for name, value in free.items()
        }

    @property
    def knobs(self) -> list[Knob]:
        return list(self._knobs.values())

    def params(self) -> dict[str, Tensor]:
        """Parameters as they are stored, in float32, with the gradients of what trains."""
        params = {name: value.float() for name, value in self._quant.params.items()}
        for name, knob in self._knobs.items():
            free = params[name] * knob.value.exp() if name == "scale" else knob.value
            stored = free.detach().to(self._quant.params[name].dtype).float()
            params[name] = passed_through(stored, free)
        return params

    def value(self) -> Tensor:
        return replace(self._quant, params=self.params()).dequantize()

    def trained(self) -> QuantTensor:
        """The same codes with the parameters as they stand, in the dtype that is stored."""
        params, now = dict(self._quant.params), self.params()
        for name in self._knobs:
            params[name] = now[name].detach().to(params[name].dtype)
        return replace(self._quant, params=params)


def _is_free(value: Tensor, bits: int) -> bool:
    """Whether a parameter may be any number of its dtype, as far as what is stored goes."""
    plain = value.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return plain and bits == 8 * value.element_size()


def _write(model: Model, values: Mapping[str, Tensor]) -> None:
    """Put new parameters where those named are, wherever else the same ones are too."""
    named = dict(model.module.named_parameters())
    new = {
        id(named[name]): nn.Parameter(value.to(named[name].dtype), requires_grad=False)
        for name, value in values.items()
    }
    for module in model.module.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in new:
                module._parameters[name] = new[id(parameter)]
