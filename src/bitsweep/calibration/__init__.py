"""Calibration: the text that a method may look at, and what the model's layers see of it.

A method walks the decoder with :meth:`Calibration.blocks`. Each block's inputs come from the model
*as it stands*: from whatever the blocks before it have become. The alternative, inputs from the
full-precision model, is another method (its statistics serve every bits x group point):
:meth:`Calibration.full_precision`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bitsweep import data, pace
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import windows
from bitsweep.calibration.block import Block
from bitsweep.calibration.replay import Replay
from bitsweep.calibration.statistics import Statistic, values
from bitsweep.data import TextSource
from bitsweep.errors import UserError
from bitsweep.models import Model

VERSION = 1
"""Of the statistics that are kept on disk."""


@dataclass(frozen=True)
class CalibrationSpec:
    """Which text, how many windows of how many tokens (None: the data's longest), which ones.

    ``choice``: ``random`` ones by ``seed``, the ``longest`` documents or the most ``diverse``
    windows, see :mod:`bitsweep.calibration.windows`.
    """

    source: TextSource | RandomTokens
    windows: int = 128
    window: int | None = None
    seed: int = 0
    choice: str = "random"


@dataclass(frozen=True)
class RandomTokens:
    """No text at all: tokens drawn uniformly from the vocabulary, but for the special ones.

    What a method needs of its text, if anything, is what it loses here (Williams & Aletras 2024,
    arXiv 2311.09755, compare sources of calibration data).
    """

    name: str = "random_tokens"
    path: str = "random_tokens"

    def sha256(self, artifacts: Artifacts) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def tokens(self, model: Model, count: int, seed: int) -> Tensor:
        """``count`` tokens, int64."""
        special = set(model.tokenizer.all_special_ids)
        size = min(len(model.tokenizer), model.module.config.get_text_config().vocab_size)
        known = torch.tensor([index for index in range(size) if index not in special])
        generator = torch.Generator().manual_seed(seed)
        return known[torch.randint(len(known), (count,), generator=generator)]


class Calibration:
    """The calibration windows of one point, and walks over a model with them.

    The text's tokens are cut into windows that do not overlap, so no token is seen twice. (GPTQ's
    code draws random offsets, which may overlap.) Random ones are drawn without replacement, by a
    generator of their own: no process-wide seed is touched. There are no special tokens in them.

    ``model`` is the full-precision model, transformed as far as the point's transforms have come.
    ``trained_tokens`` counts those that training has gone through, each time it does.
    Nothing is read before it is asked for.
    """

    def __init__(self, model: Model, spec: CalibrationSpec, artifacts: Artifacts) -> None:
        self.model = model
        self.spec = spec
        self.artifacts = artifacts
        self.trained_tokens = 0
        self._walk: Iterator[Block] | None = None
        self._next = 0

    def of(self, model: Model) -> Calibration:
        """The same windows for ``model``, a transformed version of this one's.

        Text and tokenizer decide them: where nobody has asked yet, they are chosen when somebody
        does, and a point that looks at no text needs none.
        """
        calibration = Calibration(model, self.spec, self.artifacts)
        if "tokens" in vars(self):
            calibration.tokens = self.tokens
        return calibration

    @cached_property
    def text_sha256(self) -> str:
        return self.spec.source.sha256(self.artifacts)

    @cached_property
    def tokens(self) -> Tensor:
        """The windows, int64 ``(windows, window)``.

        Raises:
            UserError: the text is too short, or the window longer than the model's context
                (``calibration.windows``, ``calibration.window``).
        """
        limit = self.model.max_positions
        window = min(data.LONGEST_WINDOW, limit) if self.spec.window is None else self.spec.window
        if not 1 < window <= limit:
            raise UserError(
                f"calibration.window={window}: a window has 2 to {limit} tokens, "
                f"the context of {self.model.source.name}"
            )
        spec = self.spec
        if isinstance(spec.source, RandomTokens):
            drawn = spec.source.tokens(self.model, spec.windows * window, spec.seed)
            return drawn.view(spec.windows, window)
        cut = data.windows(data.tokens(spec.source, self.model, self.artifacts), window)
        if not 0 < spec.windows <= len(cut):
            fewer = f"1 to {len(cut)}, or " if len(cut) else ""
            raise UserError(
                f"calibration.windows={spec.windows}: the text {spec.source.name} has "
                f"{len(cut)} windows of {window} tokens; use {fewer}a smaller "
                "calibration.window"
            )
        return cut[self._chosen(spec.source, cut)].clone()

    def _chosen(self, source: TextSource, cut: Tensor) -> list[int]:
        """Which of the windows ``cut`` ``(n, window)``; found once a process where it takes long.

        Raises:
            UserError: ``calibration.choice=longest`` of tokens that do not say where they lie.
        """
        spec = self.spec
        if spec.choice == "random":
            return windows.drawn(spec.windows, len(cut), spec.seed)

        def make() -> list[int]:
            if spec.choice == "diverse":
                return windows.diverse(cut, spec.windows)
            stream = data.stream(source, self.model, self.artifacts)
            if "bytes" not in stream:
                raise UserError(
                    "calibration.choice=longest: this tokenizer does not say where its tokens lie "
                    "in the text; use random or diverse"
                )
            documents = windows.documents_of(source.text(self.artifacts), stream["bytes"], source)
            return windows.longest(documents, cut.shape[1], spec.windows)

        key = {
            "text": self.text_sha256,
            "source": source,
            "tokenizer": self.model.tokenizer_sha256,
            "window": cut.shape[1],
            "windows": spec.windows,
            "choice": spec.choice,
        }
        return self.artifacts.remember("windows", key, make)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the codes, and what the Record says of it."""
        count, window = self.tokens.shape
        how: dict[str, Any] = {"seed": self.spec.seed}
        if self.spec.choice != "random":
            how = {"choice": self.spec.choice}  # and no seed: nothing was drawn
        return {
            "source": self.spec.source.name,
            "text_sha256": self.text_sha256,
            "sha256": hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest(),
            "windows": count,
            "window": window,
            **how,
        }

    def blocks(self, model: Model) -> Iterator[Block]:
        """The blocks of ``model`` in order, and last the part behind them that feeds the head.

        Replace layers of a block before asking for the next one: its inputs are then computed
        through what the block has become. The embedding has to be replaced before the first.
        """
        replay = Replay(model, self.tokens)
        count = len(model.blocks) + 1
        for index in pace.of(range(count), count, "blocks"):
            if index > 0:
                replay.run(index - 1, after_batch=_nothing, keep=True)
            yield Block(replay, index)

    def full_precision(
        self, index: int, statistic: type[Statistic]
    ) -> dict[tuple[str, ...], Tensor]:
        """A statistic of the inputs of every layer of block ``index``, in the full-precision model.

        By the layers that share the tensor. Made once for a checkpoint and a set of windows, then
        found; asked for in order, it costs one walk in all.
        """
        key = {
            "checkpoint": self.model.content,
            "dtype": self.model.source.dtype,
            "windows": self.identity["sha256"],
            "block": index,
            "version": VERSION,
        }
        kind = statistic.__name__.lower()
        found = self.artifacts.get(kind, key, lambda: self._observe_source(index, statistic))
        return {tuple(names.split(",")): value for names, value in found.items()}

    def _observe_source(self, index: int, statistic: type[Statistic]) -> dict[str, Tensor]:
        if self._walk is None or index < self._next:
            self._walk, self._next = self.blocks(self.model.copy()), 0
        for block in self._walk:
            self._next = block.index + 1
            if block.index == index:
                break
        else:
            raise IndexError(f"block {index} of {len(self.model.blocks)}")
        layers = self.model.layers.values()
        linear = self.model.by_block(x.name for x in layers if x.kind != "embedding")
        found = block.observe(linear.get(index, []), statistic)
        return {",".join(names): value.cpu() for names, value in values(found).items()}


def _nothing() -> None:
    """After a batch of which nobody watches anything."""
