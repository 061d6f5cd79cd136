"""Shapes: the configurations of real architectures, to be filled with random weights.

For latency, memory and size, which no value of a weight decides; a quality of random weights means
nothing, and ``prepared.prepare`` refuses it. ``model=shape/NAME``, or ``model.path=shape:NAME``; a
shape is ``NAME.json`` beside this file: what of the published config.json decides the tensors.

A shape is no checkpoint: it has no tokenizer, and its identity is its configuration and the rule
by which its weights are drawn (:mod:`bitsweep.models.drawn`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsweep.artifacts import digest
from bitsweep.compose import choices, nearest
from bitsweep.errors import UserError
from bitsweep.models.source import SHAPE

VERSION = 1
"""Of the rule by which weights are drawn: part of every shape's identity."""

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Shape:
    """``config`` is what ``file``, a config.json by another name, says."""

    file: Path
    config: dict[str, Any]

    @property
    def checkpoint(self) -> str:
        """What stands for the SHA-256 of a checkpoint: no file has these weights."""
        config = {key: value for key, value in self.config.items() if key != "dtype"}
        return digest({"weights": f"random weights v{VERSION}", "config": config})

    @property
    def stored_bytes(self) -> int:
        """Bytes of a number in the published checkpoint."""
        return BYTES[self.config["dtype"]]


def find(path: str) -> Shape:
    """The shape that ``path``, ``shape:NAME``, names.

    Raises:
        UserError: there is none of that name (``model.path``).
    """
    known = names()
    name = path.removeprefix(SHAPE)
    if name not in known:
        raise UserError(
            f"model.path={path}: no such shape{nearest(name, known)}{choices(list(known))}"
        )
    return Shape(known[name], json.loads(known[name].read_text(encoding="utf-8")))


def names() -> dict[str, Path]:
    """Every shape's file by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}
