"""Which weights go, and how they go: what ``transforms/prune`` and ``recover/prune`` share.

A pruned layer keeps its shape. Its mask, bool ``(out, in)``, stands in ``model.masks`` and its
weight is 0 where the mask is False; every method keeps both. Only the linear layers of the blocks
are pruned: embeddings and the head stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitsweep.calibration import Calibration
from bitsweep.calibration.statistics import Energy, Hessian, Statistic, values
from bitsweep.errors import UserError
from bitsweep.library import LibraryLinear
from bitsweep.linear import QuantLinear, quantized
from bitsweep.methods import finite_weight, seeded
from bitsweep.models import Model
from bitsweep.pruning.structure import Units, blocks_of, channels_of, heads_of, misfit

SCORES = ("random", "magnitude", "wanda", "sparsegpt")
OF = {"2:4": 4, "4:8": 8}
"""Half of so many neighbours in a row stay."""
STRUCTURED = ("heads", "channels", "blocks")
PATTERNS = ("unstructured", *OF, *STRUCTURED)


@dataclass(frozen=True)
class Pruning:
    """What is scored how, what goes together, and what share of it goes.

    ``pattern``: single weights (``unstructured``), half of each 4 or 8 neighbours in a row
    (``2:4``, ``4:8``: then ``sparsity`` is 0.5), or whole ``heads``, ffn ``channels`` or
    ``blocks``. ``sparsity`` is the share that goes, rounded down to whole things: of each layer's
    weights, of each block's heads or channels, of the model's blocks.

    ``score``: the least go.

    - ``random``: by lot, of the point's seed.
    - ``magnitude``: ``|W|``, compared within a layer (each layer gets the same sparsity).
    - ``wanda``: ``|W_ij| * ||X_j||`` (Sun, Liu, Bair & Kolter, 2023, eq. 1) on calibration text,
      compared within an output row. As in the authors' code, block by block: inputs come from the
      pruned blocks before, and all layers of a block are scored before any of it is pruned.
    - ``sparsegpt``: see ``transforms/prune``.

    Of whole units, ``magnitude`` sums the squares of all weights that would go with one; ``wanda``
    those of ``|W_ij| * ||X_j||`` over the columns through which it is felt, of ``attention.out``
    for a head, of ``ffn.down`` for a channel. Of blocks it is how much they turn the hidden states
    of the calibration text, ``1 - cos`` (block influence: ShortGPT, Men et al., 2024, eq. 1): what
    early blocks add is small and matters most. Equal scores fall by a fixed lot: codes of few bits
    tie often, and the order of columns must not decide.
    """

    score: str = "wanda"
    pattern: str = "unstructured"
    sparsity: float = 0.5

    key: ClassVar[str]
    """What the options are called on the command line."""

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise UserError(f"{self.key}.score={self.score}: use {', '.join(SCORES)}")
        if self.pattern not in PATTERNS:
            raise UserError(
                f"{self.key}.pattern={self.pattern}: use {', '.join(PATTERNS)} "
                "(with quotes in YAML: '2:4')"
            )
        if not 0 < self.sparsity < 1:
            raise UserError(f"{self.key}.sparsity={self.sparsity}: the share that goes, 0 to 1")
        if self.pattern in OF and self.sparsity != 0.5:
            raise UserError(
                f"{self.key}.sparsity={self.sparsity}: {self.pattern} means 0.5; "
                f"leave it there, or use {self.key}.pattern=unstructured"
            )

    @property
    def calibrated(self) -> bool:
        """Whether the score looks at calibration text."""
        return self.statistic is not None

    @property
    def seeded(self) -> bool:
        """Whether the score is drawn by lot."""
        return self.score == "random"

    @property
    def statistic(self) -> type[Statistic] | None:
        """What the score has to know of a layer's inputs."""
        known: dict[str, type[Statistic]] = {"wanda": Energy, "sparsegpt": Hessian}
        return known.get(self.score)

    def unfit(self, model: Model) -> str | None:
        """Why the pattern does not fit ``model`` (with the key to change), or None."""
        if self.pattern in STRUCTURED:
            return misfit(model, self.pattern, self.sparsity, self.key)
        if self.pattern in OF:
            for name in linear_layers(model):
                if (width := model.layers[name].shape[1]) % OF[self.pattern]:
                    return (
                        f"pattern={self.pattern}: the rows of {name} have {width} weights; "
                        f"use {self.key}.pattern=unstructured"
                    )
        return None

    def choose(
        self, weight: Tensor, seen: Tensor | None, mask: Tensor | None, lot: torch.Generator
    ) -> Tensor:
        """The mask of a ``weight`` ``(out, in)``; ``seen`` is the statistic of its inputs.

        What an earlier ``mask`` took out counts among what goes.
        """
        if self.score == "random":
            score = torch.rand(weight.shape, generator=lot).to(weight.device)
        elif self.score == "magnitude" or seen is None:
            score = weight.abs()
        else:
            score = weight.abs() * seen.sqrt()
        if mask is not None:
            score = score.masked_fill(~mask.to(score.device), -1)
        return best(score, self.pattern, self.sparsity, seen is None)

    def update(self, weight: Tensor, hessian: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Mask and new weights by ``score=sparsegpt``."""
        raise NotImplementedError

    def unit_scores(
        self, units: Units, weights: dict[str, Tensor], seen: dict[str, Tensor], lot: Any
    ) -> Tensor:
        """The score ``(count,)`` of each unit; ``seen`` by the layers in ``units.columns``."""
        if self.score == "random":
            return torch.rand(units.count, generator=lot)
        if self.score == "magnitude":
            return units.energy(weights)
        return units.felt(weights, seen)

    def columns_gone(self, weight: Tensor, seen: Tensor, kept: Tensor) -> Tensor:
        """``weight`` ready to lose the columns outside ``kept`` ``(in,)``."""
        return weight


def linear_layers(model: Model, block: int | None = None) -> list[str]:
    """The linear layers of the blocks, or of one ``block``."""
    inside = [layer for layer in model.layers.values() if layer.block is not None]
    return [layer.name for layer in inside if block is None or layer.block == block]


def prune(model: Model, how: Pruning, calibration: Calibration) -> Model:
    """Take out of ``model`` what ``how`` chooses; full-precision and quantized layers alike."""
    lot = seeded()
    if how.pattern == "blocks":
        _prune_blocks(model, how, calibration, lot)
        return model
    for index, seen in _walk(model, how.statistic, calibration):
        if how.pattern in STRUCTURED:
            make = heads_of if how.pattern == "heads" else channels_of
            _prune_units(model, make(calibration.model, index), how, seen, lot)
            continue
        for name in linear_layers(model, index):
            weight = finite_weight(model, name).to(model.device)
            if how.score == "sparsegpt" and name in seen:
                drop(model, name, *how.update(weight, seen[name], name))
            else:
                drop(model, name, how.choose(weight, seen.get(name), model.masks.get(name), lot))
    return model


def _walk(
    model: Model, statistic: type[Statistic] | None, calibration: Calibration
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Each block's index and the statistic of its layers' inputs, as the model then stands."""
    if statistic is None:
        yield from ((index, {}) for index in range(len(model.blocks)))
        return
    for block in calibration.blocks(model):
        if block.index == len(model.blocks):
            return
        seen = values(block.observe(linear_layers(model, block.index), statistic))
        yield block.index, {name: value for names, value in seen.items() for name in names}


def _prune_units(
    model: Model, units: Units, how: Pruning, seen: dict[str, Tensor], lot: torch.Generator
) -> None:
    weights = {name: finite_weight(model, name).to(model.device) for name in units.layers}
    scores = how.unit_scores(units, weights, seen, lot)
    kept = best(scores.view(1, -1), "unstructured", how.sparsity, whole=True).view(-1)
    for name, lines in units.lines(kept, weights).items():
        columns = lines.columns.to(model.device)
        updated = weights[name]
        if name in seen and name in units.columns:
            updated = how.columns_gone(updated, seen[name], columns)
        drop_lines(model, name, lines.rows.to(model.device), columns, updated)


def _prune_blocks(
    model: Model, how: Pruning, calibration: Calibration, lot: torch.Generator
) -> None:
    """Blocks are compared over the whole model, so all are scored before one goes."""
    if how.calibrated:
        scores = _influences(model, calibration)
    else:
        scores = []
        for index in range(len(model.blocks)):
            units = blocks_of(model, index)
            weights = {name: finite_weight(model, name) for name in units.layers}
            scores.append(float(how.unit_scores(units, weights, {}, lot)))
    kept = best(torch.tensor([scores]), "unstructured", how.sparsity, whole=True)
    for index, stays in enumerate(kept.view(-1).tolist()):
        for name in () if stays else linear_layers(model, index):
            out_features, in_features = model.layers[name].shape
            none = torch.zeros(out_features + in_features, dtype=torch.bool, device=model.device)
            drop_lines(model, name, none[:out_features], none[out_features:])


def _influences(model: Model, calibration: Calibration) -> list[float]:
    """``1 - cos`` between what comes into a block and what leaves it, the mean over tokens."""
    found = []
    for block in calibration.blocks(model):
        if block.index == len(model.blocks):
            break
        similar = torch.cosine_similarity(block.inputs().float(), block.outputs().float(), dim=-1)
        found.append(1 - float(similar.double().mean()))
    return found


def best(score: Tensor, pattern: str, sparsity: float, whole: bool) -> Tensor:
    """The mask of ``score`` ``(out, in)``: the least are False, exactly so many.

    Compared within ``whole`` layers or within rows; in ``2:4`` and ``4:8`` within neighbours.
    """
    size = OF.get(pattern, score.numel() if whole else score.shape[1])
    flat = score.reshape(-1, size)
    gone = math.floor(sparsity * size + 1e-9)
    lot = torch.randperm(size, generator=torch.Generator().manual_seed(0)).to(score.device)
    order = lot[flat[:, lot].argsort(dim=1, stable=True)]
    mask = torch.ones(flat.shape, dtype=torch.bool, device=score.device)
    return mask.scatter_(1, order[:, :gone], False).view(score.shape)


def drop_lines(
    model: Model, name: str, rows: Tensor, columns: Tensor, weight: Tensor | None = None
) -> None:
    """Keep of a layer only ``rows`` ``(out,)`` and ``columns`` ``(in,)``; lost rows' bias too."""
    drop(model, name, rows.unsqueeze(1) & columns, weight)
    module = model.get(name)
    bias = module._parameters.get("bias")
    if bias is not None and not bool(rows.all()):
        new = bias.detach() * rows.to(bias.device)
        module._parameters["bias"] = nn.Parameter(new, requires_grad=False)


def drop(model: Model, name: str, mask: Tensor, weight: Tensor | None = None) -> None:
    """Take the weights of a layer outside ``mask`` ``(out, in)`` out of it.

    ``weight`` takes the place of a full-precision layer's own; a quantized one keeps its codes.

    Raises:
        UserError: it is a library's own layer, which knows no mask (``method``).
    """
    module = model.get(name)
    if isinstance(module, LibraryLinear):
        raise UserError(
            f"recover=[prune]: {name} is a library's own layer, which keeps no mask; "
            "use one of bitsweep's methods"
        )
    own = model.weight(name)
    mask = mask.to(own.device)
    if name in model.masks:
        mask = mask & model.masks[name].to(own.device)
    model.masks[name] = mask
    if isinstance(module, QuantLinear):
        model.replace(name, quantized(module.quant.masked(mask), module))
        return
    new = (own if weight is None else weight.to(own)).detach() * mask
    new = new.t().contiguous() if isinstance(module, Conv1D) else new
    module._parameters["weight"] = nn.Parameter(new, requires_grad=False)
