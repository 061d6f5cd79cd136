"""One block of the walk over a model: what its layers see, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn

from bitsweep.calibration.replay import BATCH_TOKENS, Replay
from bitsweep.calibration.statistics import Statistic

S = TypeVar("S", bound=Statistic)


class Block:
    """Block ``index`` of the walk; ``len(model.blocks)`` is what comes behind them: norm, head."""

    def __init__(self, replay: Replay, index: int) -> None:
        self._replay = replay
        self.index = index

    def observe(self, names: Iterable[str], statistic: type[S]) -> dict[str, S]:
        """Run the block on the calibration windows and gather a statistic of each layer's input.

        Layers that read one and the same tensor (query, key and value; gate and up) share one
        object. A layer that the text never reaches (an expert) is missing.
        """
        names = list(names)
        found: dict[str, S] = {}
        seen: list[tuple[Tensor, str]] = []  # inputs of this batch, kept alive: identity is by id
        reached: list[str] = []
        each_once = False  # in an earlier batch: then nothing behind the last of them is computed

        def watch(name: str, inputs: Tensor) -> None:
            leader = next((other for known, other in seen if known is inputs), None)
            if leader is not None:
                found[name] = found[leader]
            else:
                seen.append((inputs, name))
                if name not in found:
                    found[name] = statistic(inputs.shape[-1], inputs.device)
                found[name].add(inputs.reshape(-1, inputs.shape[-1]))
            reached.append(name)
            if each_once and len(set(reached)) == len(names):
                self._replay.stop()

        def end() -> None:
            nonlocal each_once
            each_once = each_once or sorted(reached) == sorted(names)
            reached.clear()
            seen.clear()

        model = self._replay.model
        hooks = [model.get(name).register_forward_pre_hook(_Watch(name, watch)) for name in names]
        try:
            self._replay.run(self.index, after_batch=end, keep=False)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    @property
    def name(self) -> str:
        """The block's module name; what comes behind the blocks has none."""
        return self._replay.model.blocks[self.index]

    def inputs(self) -> Tensor:
        """The hidden states ``(windows, window, hidden)`` that come into the block, on the CPU.

        Of the model as it stands: computed through what the blocks before have become.
        """
        return self._replay.inputs()

    def run(
        self,
        hidden: Tensor,
        windows: Tensor,
        weights: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """The block on ``hidden`` ``(n, window, hidden)``, states of ``windows`` int64 ``(n,)``.

        ``weights`` ``(out, in)`` by layer name stand in for those of the block's own layers, which
        must be in full precision. Gradients flow to both where they are enabled.
        """
        model, prefix = self._replay.model, f"{self.name}."
        inside = {
            f"{name.removeprefix(prefix)}.weight": (
                weight.t() if model.layers[name].kind == "conv1d" else weight
            )
            for name, weight in weights.items()
        }
        return self._replay.call(self.index, hidden, windows, inside)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """What the block as it stands makes of :meth:`inputs`, on the CPU."""
        hidden = self.inputs()
        batch = max(1, BATCH_TOKENS // hidden.shape[1])
        places = torch.arange(len(hidden)).split(batch)
        return torch.cat([self.run(hidden[at], at).cpu() for at in places])


class _Watch:
    def __init__(self, name: str, look: Callable[[str, Tensor], None]) -> None:
        self._name = name
        self._look = look

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._look(self._name, args[0])
