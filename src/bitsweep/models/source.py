"""What a model is called and what a layer of it is: plain values, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal[
    "embedding", "attention.qkv", "attention.out", "ffn.up", "ffn.gate", "ffn.down", "head"
]
Kind = Literal["linear", "conv1d", "embedding"]

MANIFEST = "bitsweep.json"
"""In the folder of a checkpoint that was exported: what it is of, and its files' digests."""

SHAPE = "shape:"
"""Of a path that names no checkpoint but a shape, to be filled with random weights."""


@dataclass(frozen=True)
class ModelSource:
    """Where a checkpoint comes from and how it is held while it is measured.

    ``path`` is a folder (relative to the working directory), a hub id, ``pkg:reference`` for
    the model inside this package, or ``shape:NAME`` for random weights in a real model's shape
    (:mod:`bitsweep.models.shapes`). ``device`` is where the model runs (``cpu``, ``cuda``,
    ``cuda:1``); weights too large for it stay on the CPU and visit it block by block.
    ``untie`` gives a head that shares the embedding's tensor a copy of its own.
    """

    name: str
    path: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False
    untie: bool = False

    @property
    def random_weights(self) -> bool:
        """Whether this is a shape: no file's weights, and no quality to measure."""
        return self.path.startswith(SHAPE)


@dataclass(frozen=True)
class Layer:
    """One matrix that can be quantized.

    ``shape`` is always (out_features, in_features), also for ``conv1d`` (GPT-2), whose parameter
    is stored transposed; for an embedding it is (vocabulary, hidden).

    A fused matrix has one role: query, key and value in one is ``attention.qkv``; gate and up in
    one (Phi-3, GLM) is ``ffn.up``. ``block`` is the index of its decoder block, None for embedding
    and head.

    ``source`` names the norm or linear layer that feeds this one such that a positive factor per
    channel can move from one to the other without changing the function, which is what AWQ and
    SmoothQuant need: norm -> query, key, value; norm -> gate and up; value -> attention.out;
    up -> ffn.down. It may have fewer channels (grouped heads repeat the value's) or more (a fused
    source, of which one part counts). None where no factor can pass: behind a GELU, or where
    something else looks at the source's output as well (a post-norm residual).
    """

    name: str
    role: Role
    block: int | None
    shape: tuple[int, int]
    kind: Kind
    source: str | None
