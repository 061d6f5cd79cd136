"""Low rank: each linear layer of the blocks becomes two thin ones, by truncated SVD.

Plain, or for the layer's outputs on calibration text (SVD-LLM; :mod:`bitsweep.lowrank`). The two
are linear layers like any other: ``q_proj.down`` ``(r, in)`` and ``q_proj.up`` ``(out, r)``, of the
same role and block, and the Plan quantizes both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bitsweep.calibration import Calibration
from bitsweep.calibration.statistics import Hessian
from bitsweep.errors import UserError
from bitsweep.lowrank import Factors, factorize
from bitsweep.methods import finite_weight
from bitsweep.models import Layer, Model
from bitsweep.models.roles import Anatomy


@dataclass(frozen=True)
class LowRank:
    """How thin: by ``keep``, the factors' share of a layer's parameters, or by ``rank``.

    ``keep``: the rank r is the largest with ``r (out + in) <= keep * out * in``. ``rank`` gives r
    itself, the same for all, and ``keep`` is not looked at. ``multiple``: r is rounded down to
    one of it (and up to at least one), so that groups of that size fit. Layers whose factors would
    not be smaller stay whole. ``activation_aware``: least error of the layer's outputs on
    calibration text, all of it run through the model as it was before (as in SVD-LLM's code).
    """

    keep: float = 0.8
    rank: int | None = None
    multiple: int = 1
    activation_aware: bool = True

    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UserError(f"transforms.low_rank.keep={self.keep}: a share above 0, at most 1")
        if self.multiple < 1 or (self.rank is not None and self.rank < 1):
            raise UserError("transforms.low_rank.rank, multiple: at least 1")

    @property
    def calibrated(self) -> bool:
        return self.activation_aware

    def skip(self, model: Model) -> str | None:
        if "prune" in model.transformed:
            return "a low rank fills what prune took out; write transforms=[low_rank,prune]"
        if not self.ranks(model):
            return "no layer gets smaller; use a smaller transforms.low_rank.rank, keep or multiple"
        return None

    def ranks(self, model: Model) -> dict[str, int]:
        """The rank of every layer that is split."""
        found = {}
        for name, layer in model.layers.items():
            out_features, in_features = layer.shape
            rank = self.rank or int(self.keep * out_features * in_features / sum(layer.shape))
            rank = max(1, rank // self.multiple) * self.multiple
            if layer.block is not None and rank * sum(layer.shape) < out_features * in_features:
                found[name] = rank
        return found

    def reshape(self, model: Model) -> None:
        def empty(name: str, rank: int) -> tuple[Tensor, Tensor]:
            out_features, in_features = model.layers[name].shape
            meta = torch.empty(0, device="meta", dtype=model.weight(name).dtype)
            return meta.new_empty(out_features, rank), meta.new_empty(rank, in_features)

        split(model, self.ranks(model), empty)

    def __call__(self, model: Model, calibration: Calibration) -> Model:
        hessians: dict[str, Tensor] = {}

        def factors(name: str, rank: int) -> tuple[Tensor, Tensor]:
            weight = finite_weight(model, name).to(model.device)
            index = model.layers[name].block
            if self.activation_aware and index is not None and name not in hessians:
                hessians.clear()
                for names, value in calibration.full_precision(index, Hessian).items():
                    hessians.update(dict.fromkeys(names, value))
            hessian = hessians.get(name)  # a layer that the text never reaches has none
            return factorize(weight, rank, None if hessian is None else hessian.to(weight.device))

        split(model, self.ranks(model), factors)
        return model


def split(
    model: Model,
    ranks: Mapping[str, int],
    factors: Callable[[str, int], tuple[Tensor, Tensor]],
) -> None:
    """Replace each layer in ``ranks`` by the ``up`` and ``down`` that ``factors`` makes of it."""
    for name, rank in ranks.items():
        layer, own = model.get(name), model.weight(name)
        up, down = factors(name, rank)
        bias = layer._parameters.get("bias")
        pair = Factors(_linear(down.to(own), None), _linear(up.to(own), bias))
        model.replace(name, pair.train(layer.training))
    model.anatomy = split_anatomy(model.anatomy, ranks)


def _linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = bias  # type: ignore[assignment]
    return linear


def split_anatomy(anatomy: Anatomy, ranks: Mapping[str, int]) -> Anatomy:
    """The parts by name after the layers in ``ranks`` were split."""

    def feeder(name: str | None) -> str | None:
        return f"{name}.up" if name in ranks else name

    layers: dict[str, Layer] = {}
    for name, layer in anatomy.layers.items():
        layer = dataclasses.replace(layer, source=feeder(layer.source))
        if name not in ranks:
            layers[name] = layer
            continue
        (rows, columns), rank = layer.shape, ranks[name]
        down = dataclasses.replace(layer, name=f"{name}.down", shape=(rank, columns), kind="linear")
        up = dataclasses.replace(
            layer, name=f"{name}.up", shape=(rows, rank), kind="linear", source=down.name
        )
        layers |= {down.name: down, up.name: up}
    stages = [
        [
            stage
            for group in block
            for stage in (
                [f"{name}.down" if name in ranks else name for name in group],
                [f"{name}.up" for name in group if name in ranks],
            )
            if stage
        ]
        for block in anatomy.stages
    ]
    return Anatomy(layers, anatomy.blocks, stages)
