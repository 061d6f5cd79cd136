"""A Point: one resolved, validated configuration as plain values, and how it is named.

``config.py`` makes it from Hydra's config; everything below it takes the Point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep.spec import QuantSpec

if TYPE_CHECKING:
    from bitsweep.calibration import CalibrationSpec
    from bitsweep.data import Data
    from bitsweep.methods import Method
    from bitsweep.models import ModelSource
    from bitsweep.policies import Policy
    from bitsweep.probes import Probe


@dataclass(frozen=True)
class Point:
    """One point of a sweep. ``spec`` holds the axes bits, group_size, symmetric, format, scale.

    ``method_options`` are the options that differ from those of the method's YAML. ``command``
    makes this point again when typed; both name the point to people and identify nothing.
    """

    experiment: str
    results_dir: Path
    model: ModelSource
    data: Data
    method_name: str
    method: Method
    spec: QuantSpec
    policy: Policy
    calibration: CalibrationSpec
    probes: Mapping[str, Probe] = field(default_factory=dict)
    misfit: str = "error"
    engine: str = "auto"
    seed: int = 0
    method_options: str = ""
    command: str = ""

    @property
    def folder(self) -> Path:
        return self.results_dir / self.experiment

    def columns(self) -> dict[str, Any]:
        """The flat config columns of the Record; an axis that the method ignores is None."""
        columns: dict[str, Any] = {
            "model": self.model.name,
            "method": self.method_name,
            "method_options": self.method_options,
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
            "transforms": "",
            "recover": "",
        }
        for axis in self.method.ignores:
            columns[axis] = None
        columns["label"] = label(columns)
        return columns


def label(columns: Mapping[str, Any]) -> str:
    """A point in a few words: ``gptq w4g64 by_role``, with ``ragged`` where that was asked."""
    words = [columns["method"]]
    if columns["method_options"]:
        words.append(f"({columns['method_options']})")
    if columns["bits"] is not None:
        words.append(
            str(
                QuantSpec(
                    bits=columns["bits"],
                    group_size=columns["group_size"],
                    symmetric=bool(columns["symmetric"]),
                    format=columns["format"],
                    scale_dtype=columns["scale_dtype"] or "float16",
                )
            )
        )
    if columns["policy"] is not None:
        words.append(columns["policy"])
    if columns["misfit"] not in (None, "error"):
        words.append(columns["misfit"])
    return " ".join(words)


def options(method: Method, preset: Method) -> str:
    """The options of ``method`` that differ from those of ``preset``: ``clip=mse``."""
    names = [item.name for item in fields(method)]  # type: ignore[arg-type]
    changed = [name for name in names if getattr(method, name) != getattr(preset, name)]
    return " ".join(f"{name}={getattr(method, name)}" for name in changed)
