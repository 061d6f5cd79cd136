"""A Point: one resolved, validated configuration as plain values, and how it is named.

``config.py`` makes it from Hydra's config; everything below it takes the Point.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep.spec import UNTOUCHED, InputSpec, QuantSpec

if TYPE_CHECKING:
    from bitsweep.calibration import CalibrationSpec
    from bitsweep.data import Data
    from bitsweep.methods import Method
    from bitsweep.models import ModelSource
    from bitsweep.policies import Chooser
    from bitsweep.probes import Probe
    from bitsweep.recover import Recovery
    from bitsweep.transforms import Transform

FULL_PRECISION = "full_precision"
"""The method that rounds nothing."""

RANDOM = "random"
"""The column ``weights`` of a shape; other points have no such column."""


@dataclass(frozen=True)
class Point:
    """One point of a sweep. ``spec`` holds the axes bits, group_size, symmetric, format, scale.

    ``transforms`` and ``recover`` are done in their order; ``input`` quantizes the inputs of the
    planned layers, ``kv`` the cache; either is None at 16 bits. ``options`` says of the method
    by name, of transforms and recoveries as ``recover.prune``, which options differ from those of
    the YAML (``clip=mse``). ``command`` makes this point again when typed; both name the point to
    people and identify nothing.
    """

    experiment: str
    results_dir: Path
    model: ModelSource
    data: Data
    method_name: str
    method: Method
    spec: QuantSpec
    policy: Chooser
    calibration: CalibrationSpec
    probes: Mapping[str, Probe] = field(default_factory=dict)
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    recover: Mapping[str, Recovery] = field(default_factory=dict)
    input: InputSpec | None = None
    kv: QuantSpec | None = None
    misfit: str = "error"
    engine: str = "auto"
    seed: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def inputs(self) -> InputSpec | None:
        """``input`` where layers are planned: without them there is none to quantize."""
        return None if "policy" in self.method.ignores else self.input

    @property
    def calibrated(self) -> bool:
        """Whether anything of this point looks at calibration text."""
        steps: list[Any] = [self.method, *self.transforms.values(), *self.recover.values()]
        static = self.inputs is not None and self.inputs.range != "dynamic"
        return static or any(step.calibrated for step in steps)

    @property
    def seeded(self) -> bool:
        """Whether the seed decides anything."""
        steps: list[Any] = [*self.transforms.values(), *self.recover.values()]
        return any(step.seeded for step in steps) or "seed" not in self.method.ignores

    @property
    def folder(self) -> Path:
        return self.results_dir / self.experiment

    def columns(self) -> dict[str, Any]:
        """The flat config columns of the Record; an axis that the method ignores is None."""
        columns: dict[str, Any] = {
            "model": self.model.name,
            "method": self.method_name,
            "method_options": self.options.get(self.method_name, ""),
            "bits": self.spec.bits,
            "group_size": self.spec.group_size,
            "format": self.spec.format,
            "symmetric": self.spec.symmetric,
            "scale_dtype": self.spec.scale_dtype,
            "policy": self.policy.name,
            "misfit": self.misfit,
            "data": self.data.name,
            "calibration": self.calibration.source.name,
            "seed": self.seed,
            "dtype": self.model.dtype,
            "transforms": self._chain("transforms", self.transforms),
            "recover": self._chain("recover", self.recover),
            "input": "" if self.inputs is None else str(self.inputs),
            "kv": "" if self.kv is None else str(self.kv),
        }
        if self.model.random_weights:
            columns["weights"] = RANDOM
        needed = {"calibration": self.calibrated, "seed": self.seeded}
        for axis in self.method.ignores:
            if not needed.get(axis, False):
                columns[axis] = None
        for axis in self.policy.decides if columns["policy"] is not None else ():
            columns[axis] = None
        columns["label"] = label(columns)
        return columns

    def _chain(self, group: str, steps: Mapping[str, Any]) -> str:
        """``smooth (strength=0.5) + rotate``."""
        options = {name: self.options.get(f"{group}.{name}") for name in steps}
        return " + ".join(f"{n} ({options[n]})" if options[n] else n for n in steps)


def label(columns: Mapping[str, Any]) -> str:
    """A point in a few words: ``rotate + gptq w4g64 a8 by_role ragged``, ``rtn w4 + low_rank``."""
    words = [f"{columns['transforms']} +"] if columns["transforms"] else []
    words.append(columns["method"])
    if columns["method_options"]:
        words.append(f"({columns['method_options']})")
    if columns["group_size"] is not None:
        words.append(weights(columns))
    if columns["input"]:
        words.append(f"a{columns['input']}")
    if columns["kv"]:
        words.append(f"kv{columns['kv'].lstrip('w')}")
    if columns["policy"] is not None:
        words.append(columns["policy"])
    if columns["misfit"] not in (None, "error"):
        words.append(columns["misfit"])
    if columns["recover"]:
        words.append(f"+ {columns['recover']}")
    if columns.get("weights") == RANDOM:
        words.append("(random weights)")
    return " ".join(words)


def exported(columns: Mapping[str, Any], plan: str) -> dict[str, str]:
    """Of a checkpoint that came quantized, so that no method of the point did it: what it holds
    (``exported``: ``w4g64, w8``) and its ``label`` by that. Empty for any other.

    ``plan`` is a :meth:`Plan.summary`.
    """
    if columns["method"] != FULL_PRECISION or plan == UNTOUCHED:
        return {}
    held = re.sub(r" x\d+(?=,|$)", "", plan)
    label = str(columns["label"]).replace(FULL_PRECISION, f"exported {held}", 1)
    return {"exported": held, "label": label}


def weights(columns: Mapping[str, Any]) -> str:
    """The number format in a word: ``w4g64``, or ``w*g64`` where the policy chose the bits."""
    bits = columns["bits"]
    spec = QuantSpec(
        group_size=columns["group_size"],
        symmetric=bool(columns["symmetric"]),
        format=columns["format"] or "int",
        scale_dtype=columns["scale_dtype"] or "float16",
    )
    return spec.named("*" if bits is None else f"{bits:g}")


def changed_options(step: Any, preset: Any) -> str:
    """The options of ``step`` that differ from those of ``preset``: ``clip=mse``."""
    names = [item.name for item in fields(step)]
    changed = [name for name in names if getattr(step, name) != getattr(preset, name)]
    return " ".join(f"{name}={getattr(step, name)}" for name in changed)
