"""The number format of one tensor, of one layer, of one model: pure values, no torch.

A :class:`QuantSpec` says what the codes of one tensor mean, a :class:`LayerSpec` what one layer
becomes, a :class:`Plan` what a policy decided for one model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bitsweep.artifacts import digest

PER_CHANNEL = -1
"""``group_size`` that gives every output channel (row of the weight) one scale."""

PER_TENSOR = 0
"""``group_size`` that gives the whole tensor one scale."""

SCALE_DTYPES = ("float16", "float32", "power_of_two")
ZEROS = ("integer", "real")
MISFITS = ("error", "per_channel", "ragged")


@dataclass(frozen=True)
class QuantSpec:
    """The number format of one tensor of shape ``(out, in)``, grouped along ``in``.

    ``bits`` per code may be fractional for formats that share codes between weights.
    ``scale_dtype`` is how the scales are stored, and codes are chosen against the stored scale.
    ``zero`` is ``integer`` (a code, stored in ``bits`` bits) or ``real`` (a stored float16 number,
    for methods that optimise it). ``ragged`` lets the last group of a row be smaller.
    """

    bits: float = 4
    group_size: int = PER_CHANNEL
    symmetric: bool = False
    format: str = "int"
    scale_dtype: str = "float16"
    zero: str = "integer"
    ragged: bool = False

    def __str__(self) -> str:
        """The short name of the field: ``w4g128``, ``w4g128-sym``, ``nf4g64``, ``w8``, ``w8t``."""
        letter = "w" if self.format == "int" else self.format
        group = {PER_CHANNEL: "", PER_TENSOR: "t"}.get(self.group_size, f"g{self.group_size}")
        short_scale = {"float32": "-fp32scale", "power_of_two": "-pow2"}.get(self.scale_dtype, "")
        return f"{letter}{self.bits:g}{group}{'-sym' * self.symmetric}{short_scale}"

    def groups(self, in_features: int) -> int:
        """How many groups a row of ``in_features`` weights has (1 for a whole row or tensor)."""
        if self.group_size in (PER_CHANNEL, PER_TENSOR):
            return 1
        return math.ceil(in_features / self.group_size)

    def fits(self, in_features: int) -> bool:
        """Whether every group of a row of ``in_features`` weights is full."""
        return self.group_size <= 0 or in_features % self.group_size == 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> QuantSpec:
        return cls(**value)


@dataclass(frozen=True)
class LayerSpec:
    """What one layer becomes: its weight, and its input when that is quantized as well."""

    weight: QuantSpec
    input: QuantSpec | None = None

    def __str__(self) -> str:
        if self.input is None:
            return str(self.weight)
        weight = str(self.weight)
        head, group, tail = weight.partition("g")
        return f"{head}a{self.input.bits:g}{group}{tail}"


@dataclass(frozen=True)
class Plan:
    """What a policy decided for one model.

    ``layers`` maps a module's name to its spec; a layer that is absent stays as it was.
    ``misfits`` says for which layers the group did not divide the row, and what was done instead.
    ``untie`` says that the head has a matrix of its own although the checkpoint tied it.
    """

    layers: Mapping[str, LayerSpec] = field(default_factory=dict)
    kv: QuantSpec | None = None
    untie: bool = False
    misfits: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 of what the plan does to the model: two policies of equal effect agree here."""
        return digest({"layers": self.layers, "kv": self.kv, "untie": self.untie})

    def summary(self) -> str:
        """The plan in a few words, most frequent spec first: ``w4g64 x24, w8 x5``."""
        counts = Counter(str(spec) for spec in self.layers.values())
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{name} x{count}" for name, count in ordered) or "nothing quantized"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        def quant(spec: Mapping[str, Any] | None) -> QuantSpec | None:
            return None if spec is None else QuantSpec.from_json(spec)

        return cls(
            layers={
                name: LayerSpec(QuantSpec.from_json(spec["weight"]), quant(spec["input"]))
                for name, spec in value["layers"].items()
            },
            kv=quant(value["kv"]),
            untie=value["untie"],
            misfits=dict(value["misfits"]),
        )
