"""How the rounding error accumulates: of each weight, of each layer's output, of the hidden states.

All are relative, ``||a - b|| / ||b||`` with Frobenius norms over all tokens of the first windows of
the first text, ``b`` being the full-precision model *as the transforms left it*: this is the error
of rounding, not of pruning or of what else was done before. A layer's output error is isolated:
both layers read the full-precision input, so it says what this layer adds. The hidden state's is
not: at depth d it comes out of the d-th block of the quantized model, with all that came before;
depth 0 is what enters the first block.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bitsweep.artifacts import Artifacts
from bitsweep.data import Data, Reference
from bitsweep.models.fold import factor_since, factors_since
from bitsweep.models.offload import visiting
from bitsweep.probes import check_counts
from bitsweep.probes.perplexity import cut_text, text_identity
from bitsweep.record import Kind, Measurement, Metric

if TYPE_CHECKING:
    from bitsweep.models import Model

BATCH_TOKENS = 1024
"""Tokens of one batch (one window at least), whose hidden states are kept at every depth."""


@dataclass(frozen=True)
class Error:
    """``weight_error`` and ``output_error`` (means over the quantized layers), ``hidden_error``.

    ``hidden_error`` is that of the last block's output; the details have it by depth, and the other
    two by layer. ``tokens`` of the first text, in whole windows.
    """

    tokens: int = 2048

    version: ClassVar[int] = 2
    kind: ClassVar[Kind] = "quality"

    def __post_init__(self) -> None:
        check_counts("error", self, "tokens")

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        return {"tokens": self.tokens, **text_identity(data, artifacts)}

    @torch.no_grad()
    def __call__(self, model: Model, reference: Reference) -> Measurement:
        if not reference.data.texts:
            return Measurement([])
        text = next(iter(reference.data.texts.values()))
        cut = cut_text(model, reference, text, self.tokens)
        full = reference.unrounded
        layers = [] if model.plan is None else list(model.plan.layers)
        output, hidden = _Sums(), _Sums()
        for batch in cut.windows.split(max(1, BATCH_TOKENS // cut.windows.shape[1])):
            states = _states(full, batch, _Isolated(full, model, layers, output))
            for depth, (ours, theirs) in enumerate(zip(_states(model, batch), states, strict=True)):
                hidden.add(str(depth), ours, theirs)
        weight = _Sums()
        for name in layers:
            weight.add(name, weight_of(model, full, name), full.weight(name))
        depths = list(hidden.relative().values())
        why = "no layer is quantized" if not layers else moved(model, full)
        tail = f"relative|{cut.signature}|tokens:{cut.windows.numel()}|v{self.version}"
        metrics = [
            _mean(
                "weight_error", weight, why, f"weight_error|relative|mean:layers|v{self.version}"
            ),
            _mean("output_error", output, why, f"output_error|isolated|mean:layers|{tail}"),
            Metric("hidden_error", depths[-1], "", "lower", f"hidden_error|last block|{tail}"),
        ]
        each = [] if why else zip(layers, weight.relative().values(), strict=True)
        details: list[dict[str, Any]] = [
            {"layer": name, "weight_error": value, "output_error": output.relative().get(name)}
            for name, value in each
        ]
        details.append({"metric": "hidden_error", "by_depth": depths})
        return Measurement(metrics, details)


def weight_of(model: Model, full: Model, name: str) -> Tensor:
    """The weight ``(out, in)`` of a layer of ``model``, float32, as ``full`` scales its channels.

    A method that moved factors between layers (AWQ) is taken back by them: they are no error.
    """
    weight = model.weight(name).float()
    if name not in model.folded:
        return weight
    return weight / factor_since(full, model, name).to(weight)


def moved(model: Model, full: Model) -> str | None:
    """Why a layer of ``model`` can not be compared with its like in ``full`` by itself, or None.

    A method that trains what it does not round changes norms and other parameters as well. Norms
    into which factors were folded are known and taken into account.
    """
    if model.folded.keys() - full.folded.keys():
        return None
    known = dict(full.module.named_parameters())
    for name, parameter in model.module.named_parameters():
        other = known.get(name)
        if other is not None and other is not parameter and not torch.equal(other, parameter):
            return f"the method changed more than it rounded ({name}): layers do not compare"
    return None


class _Sums:
    """Squared norms of differences and of what they are relative to, by name, in float64."""

    def __init__(self) -> None:
        self._error: dict[str, float] = defaultdict(float)
        self._norm: dict[str, float] = defaultdict(float)

    def add(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        theirs = theirs.float()
        difference = ours.float().to(theirs.device) - theirs
        self._error[name] += float(difference.square().sum(dtype=torch.float64))
        self._norm[name] += float(theirs.square().sum(dtype=torch.float64))

    def relative(self) -> dict[str, float]:
        """Eight digits: more is noise, and makes the details larger."""
        return {
            name: float(f"{math.sqrt(error / (self._norm[name] or 1.0)):.8g}")
            for name, error in self._error.items()
        }


def _mean(name: str, sums: _Sums, why: str | None, signature: str) -> Metric:
    values = list(sums.relative().values())
    if why is not None or not values:
        reason = why or "no quantized layer was reached"
        return Metric(name, None, "", "lower", signature, reason=reason)
    return Metric(name, sum(values) / len(values), "", "lower", signature)


class _Isolated:
    """Hooks on the full-precision layers: what the quantized ones would make of their inputs."""

    def __init__(self, full: Model, model: Model, layers: Sequence[str], sums: _Sums) -> None:
        self._full, self._model, self._layers, self._sums = full, model, layers, sums

    def hooks(self) -> Iterator[Any]:
        for name in self._layers:
            yield self._full.get(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        quantized = self._model.get(name)
        factors = None
        if name in self._model.folded:
            factors = factors_since(self._full, self._model, name)

        def look(module: nn.Module, args: Any, output: Tensor) -> None:
            with visiting(quantized, output.device):
                if factors is None:
                    ours = quantized(*args)
                else:  # its inputs come divided by what its columns were multiplied with
                    rows, columns = factors
                    ours = quantized(args[0] / columns.to(args[0])) / rows.to(output)
                self._sums.add(name, ours, output)

        return look


def _states(model: Model, batch: Tensor, isolated: _Isolated | None = None) -> list[Tensor]:
    """What enters the first block and leaves each, ``(windows, window, hidden)``, on the CPU."""
    states: list[Tensor] = []
    with _watching(model, states), _hooked(isolated):
        model.module(input_ids=batch.to(model.device), use_cache=False)
    return states


@contextmanager
def _watching(model: Model, states: list[Tensor]) -> Iterator[None]:
    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        states.append((args[0] if args else kwargs["hidden_states"]).cpu())

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).cpu())

    blocks = [model.get(name) for name in model.blocks]
    hooks = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _hooked(isolated: _Isolated | None) -> Iterator[None]:
    hooks = list(isolated.hooks()) if isolated is not None else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
