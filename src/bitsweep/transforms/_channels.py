"""Which output channel of its source each input channel of a layer is.

Grouped heads repeat the value's channels, a fused query-key-value has its own order of parts, and
of a fused gate-and-up one half counts. No layout is assumed: the channels are followed through the
model. Each source's output is replaced by random numbers, times a power of two that spells the
channel's number, digit by digit; what the digit did to an input channel of the reader tells where
it came from. One token at a time: its softmax is 1, so attention passes the value on as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitsweep.models import Model
from bitsweep.transforms._folding import random_tokens

DIGIT = 3
"""Bits of a digit: factors 1 to 128, exact in every float type."""

ROWS = 32
"""Tokens that are followed: behind a ReLU half of the channels are 0 for each of them."""


@torch.no_grad()
def channels(model: Model, sources: Iterable[str]) -> dict[str, Tensor]:
    """By layer that one of ``sources`` feeds, its map int64 ``(in,)`` to the source's channels.

    A layer whose inputs are no plain copies of them, up to other layers' factors, is left out.
    """
    wanted = set(sources)
    readers = {n: str(layer.source) for n, layer in model.layers.items() if layer.source in wanted}
    probe = _Probe(model, readers)
    found = probe.follow(dict.fromkeys(readers, 0), fused=False)
    missing = {n: probe.makes[s] // probe.takes[n] for n, s in readers.items() if n not in found}
    for part in range(max(missing.values(), default=0)):
        rest = {n: part * probe.takes[n] for n, parts in missing.items() if part < parts > 1}
        found |= probe.follow(rest, fused=True)
    return found


class _Probe:
    """Runs the model with the outputs of its sources replaced; all else repeats the first run."""

    def __init__(self, model: Model, readers: dict[str, str]) -> None:
        self.model = model
        self.readers = readers
        self.sources = dict.fromkeys(readers.values())
        self.ids = random_tokens(model, ROWS, 1)
        self.generator = torch.Generator().manual_seed(0)
        self.outputs: dict[str, Tensor] = {}
        self.factors: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.plain = self._run({})
        self.takes = {name: value.shape[-1] for name, value in self.plain.items()}
        self.makes = {name: self.outputs[name].shape[-1] for name in self.sources}

    def follow(self, starts: dict[str, int], fused: bool) -> dict[str, Tensor]:
        """Maps of the layers in ``starts``; ``fused`` moves only their window of the source."""
        moved: dict[str, Tensor] = {}  # by source, the channels that take part
        for name, start in starts.items():
            source = self.readers[name]
            moved.setdefault(source, torch.zeros(self.makes[source], dtype=torch.bool))
            stop = start + self.takes[name] if fused else None
            moved[source][start:stop] = True
        largest = max((self.makes[source] for source in moved), default=1)
        found = {name: torch.zeros(self.takes[name], dtype=torch.long) for name in starts}
        for low in range(0, max(1, (largest - 1).bit_length()), DIGIT):
            factors = {}
            for source, mine in moved.items():
                digits = (torch.arange(len(mine)) >> low) % 2**DIGIT
                factors[source] = torch.where(mine, 2.0**digits, 1.0)
            seen = self._run(factors)
            for name in list(found):
                digit = _digit(self.plain[name], seen[name])
                if digit is None:
                    del found[name]
                else:
                    found[name] += digit << low
        return {n: m for n, m in found.items() if int(m.max()) < self.makes[self.readers[n]]}

    def _run(self, factors: dict[str, Tensor]) -> dict[str, Tensor]:
        self.factors, self.inputs = factors, {}
        hooks = []
        for name in dict.fromkeys([*self.sources, *self.readers]):
            module = self.model.get(name)
            hooks.append(module.register_forward_hook(self._hook(name)))
        try:
            self.model.module(input_ids=self.ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return self.inputs

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name in self.readers:
                self.inputs[name] = args[0].reshape(-1, args[0].shape[-1]).double().cpu()
            if name not in self.outputs:
                made = output
                if name in self.sources:
                    made = torch.randn(output.shape, generator=self.generator).to(output)
                self.outputs[name] = made
            factor = self.factors.get(name)
            known = self.outputs[name]
            return known if factor is None else known * factor.to(known)

        return hook


def _digit(plain: Tensor, seen: Tensor) -> Tensor | None:
    """The digit of each channel of ``seen`` ``(rows, in)``; None unless all are powers of two."""
    if seen.shape != plain.shape:
        return None
    row = plain.abs().argmax(0, keepdim=True)
    ratio = seen.gather(0, row) / plain.gather(0, row)
    digit = ratio.clamp(min=0.5, max=2.0 ** (2**DIGIT)).log2().round()
    same = torch.isclose(seen, plain * 2.0**digit, rtol=0.05, atol=1e-30).all()
    return digit.squeeze(0).long() if bool(same & (digit >= 0).all()) else None
