"""The planned layers with what the calibration text says of their inputs, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from bitsweep.calibration import Block, Calibration
from bitsweep.calibration.statistics import Statistic, values
from bitsweep.errors import UserError
from bitsweep.methods import replace_layers, tied_embedding
from bitsweep.models import Model
from bitsweep.spec import Plan
from bitsweep.tensor import QuantTensor

PREFIXES = ("quantized", "full_precision")


@dataclass(frozen=True)
class Inputs:
    """Whose inputs a method looks at.

    ``prefix``: those of the ``quantized`` model so far, or of the ``full_precision`` one, whose
    statistics serve every bits and group size. ``true_sequential``: the layers of a block in the
    order in which they run, each seeing what those before it became.
    """

    prefix: str = "quantized"
    true_sequential: bool = False

    def check(self) -> None:
        """Raises UserError for options that name nothing, or exclude each other."""
        if self.prefix not in PREFIXES:
            raise UserError(f"method.prefix={self.prefix}: use {' or '.join(PREFIXES)}")
        if self.true_sequential and self.prefix != "quantized":
            raise UserError("method.true_sequential=true: needs method.prefix=quantized")

    def of(
        self, model: Model, plan: Plan, calibration: Calibration, statistic: type[Statistic]
    ) -> Iterator[tuple[list[str], Tensor | None]]:
        """Names of layers that read one tensor, and its statistic; None where no text gets to.

        The layers have to be replaced before the next ones are asked for. What has no such input
        is quantized here, to nearest: an embedding, whose input is one-hot, and a head tied to it.
        """
        nearest = [name for name in plan.layers if _is_embedding(model, name)]
        replace_layers(model, plan, nearest, QuantTensor.quantize)
        blocks = model.by_block(name for name in plan.layers if name not in nearest)
        if self.prefix == "full_precision":
            for index, names in sorted(blocks.items()):
                found = calibration.full_precision(index, statistic)
                yield from _together(names, found)
        elif blocks:
            for block in calibration.blocks(model):
                for stage in self._stages(model, block, blocks.get(block.index, [])):
                    yield from _together(stage, values(block.observe(stage, statistic)))
                if block.index == max(blocks):
                    break

    def _stages(self, model: Model, block: Block, names: list[str]) -> Iterator[list[str]]:
        stages = [names]
        if self.true_sequential and block.index < len(model.blocks):
            order = model.sequential(block.index)
            stages = [[name for name in stage if name in names] for stage in order]
        yield from filter(None, stages)


def _together(
    names: Iterable[str], found: dict[tuple[str, ...], Tensor]
) -> Iterator[tuple[list[str], Tensor | None]]:
    left = list(names)
    for readers, value in found.items():
        group = [name for name in left if name in readers]
        if group:
            left = [name for name in left if name not in group]
            yield group, value
    if left:
        yield left, None


def _is_embedding(model: Model, name: str) -> bool:
    return model.layers[name].kind == "embedding" or tied_embedding(model, name) is not None
