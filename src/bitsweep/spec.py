"""The number format of one tensor, of one layer, of one model: pure values, no torch.

A :class:`QuantSpec` says what the codes of one tensor mean, a :class:`LayerSpec` what one layer
becomes, a :class:`Plan` what a policy decided for one model.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bitsweep.artifacts import digest
from bitsweep.errors import UserError

PER_CHANNEL = -1
"""``group_size`` that gives every output channel (row of the weight) one scale."""

PER_TENSOR = 0
"""``group_size`` that gives the whole tensor one scale."""

FULL_BITS = 16
"""Of an input or of the cache: left as it is."""

UNTOUCHED = "nothing quantized"
"""The summary of a Plan without layers."""

SCALE_DTYPES = ("float16", "float32", "power_of_two", "e4m3")
ZEROS = ("integer", "real")
INPUT_PER = ("token", "tensor", "channel")
INPUT_RANGES = ("dynamic", "minmax", "percentile", "mse")
MISFITS = ("error", "per_channel", "ragged")

SCALES_IN_NAMES = {"float32": "-fp32scale", "power_of_two": "-pow2", "e4m3": "-e4m3"}
WEIGHT_NAME = re.compile(
    r"(?P<format>[a-z]\w*\d(?=-)|[a-z_]+)-?(?P<bits>\d[\d.]*)(?:a(?P<inputs>\d+))?"
    r"(?P<group>g\d+|t|)(?P<symmetric>-sym|)(?P<scale>-fp32scale|-pow2|-e4m3|)"
)
INPUT_NAME = re.compile(
    r"(?P<format>[a-z]\w*\d(?=-)|[a-z_]*)-?(?P<bits>\d[\d.~]*)(?P<group>g\d+|)(?P<per>[tc]|)"
    r"(?:@(?P<threshold>[^-]+))?(?P<symmetric>-sym|)(?:-(?P<range>minmax|mse|p[\d.]+))?"
    r"(?:-(?P<scale>\w+))?"
)
"""What ``str`` of a LayerSpec's weight and of its inputs looks like."""


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
        return self.named(f"{self.bits:g}")

    def named(self, bits: str) -> str:
        """The short name with another word for the bits: ``w*g64`` where a policy chose them."""
        letter = "w" if self.format == "int" else self.format
        if letter[-1].isdigit():
            letter += "-"  # mxfp4-4g32
        group = {PER_CHANNEL: "", PER_TENSOR: "t"}.get(self.group_size, f"g{self.group_size}")
        short_scale = SCALES_IN_NAMES.get(self.scale_dtype, "")
        return f"{letter}{bits}{group}{'-sym' * self.symmetric}{short_scale}"

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
class InputSpec:
    """How a layer's input ``(tokens, in)`` is quantized before it is multiplied.

    ``quant`` is the number format of the rows. ``per`` says which numbers share a scale:
    ``token`` (``quant.group_size`` of each row; -1 the whole row), ``tensor`` (all of them) or
    ``channel`` (each of the ``in`` columns has its own, of all tokens). ``range`` says where it
    comes from: ``dynamic`` (the numbers themselves, as they come by) or, when static, from
    calibration text: ``minmax``, ``percentile`` (of ``percentile`` per cent) or ``mse``.
    ``adaptive`` is empty, or the widths among which each token chooses, ``quant.bits`` being the
    narrowest: it takes the first whose relative squared error is at most ``threshold``.
    """

    quant: QuantSpec
    per: str = "token"
    range: str = "dynamic"
    percentile: float = 99.9
    adaptive: tuple[float, ...] = ()
    threshold: float = 0.0

    def __post_init__(self) -> None:
        """Raises UserError for values that no other axis could make right (``input.*``)."""
        for key, known in (("per", INPUT_PER), ("range", INPUT_RANGES)):
            if getattr(self, key) not in known:
                raise UserError(f"input.{key}={getattr(self, key)}: use {' or '.join(known)}")
        if not 50 < self.percentile <= 100:
            raise UserError(f"input.percentile={self.percentile:g}: takes 100 down to over 50")
        rising = all(a < b for a, b in itertools.pairwise((0, *self.adaptive)))
        if not rising or len(self.adaptive) == 1:
            shown = ", ".join(f"{bits:g}" for bits in self.adaptive)
            raise UserError(f"input.adaptive=[{shown}]: takes rising widths, as [4, 6, 8]")
        if not 0 <= self.threshold < math.inf:
            raise UserError(f"input.threshold={self.threshold:g}: takes a number from 0")
        if self.quant.group_size == PER_TENSOR or self.quant.group_size < PER_CHANNEL:
            raise UserError(
                f"input.group_size={self.quant.group_size}: takes a number of a token's numbers, "
                "or -1 for all of them; one scale per tensor is input.per=tensor"
            )

    @property
    def bits(self) -> float:
        return self.quant.bits

    def at(self, bits: float) -> InputSpec:
        """The same at one width for all; a single bit is ``binary``, as ``int`` begins at two."""
        single = bits == 1 and self.quant.format == "int"
        format = "binary" if single else self.quant.format
        quant = replace(self.quant, bits=bits, format=format)
        return replace(self, quant=quant, adaptive=(), threshold=0.0)

    def __str__(self) -> str:
        """``8``, ``log4``, ``4g64``, ``4~6~8@0.01`` (adaptive), ``8t`` (per tensor, dynamic),
        ``8t-minmax``, ``8c-sym-p99.9`` (per channel), ``8-sym``."""
        widths = "~".join(f"{bits:g}" for bits in self.adaptive) or f"{self.bits:g}"
        limit = f"@{self.threshold:g}" if self.adaptive else ""
        scale = "" if self.quant.scale_dtype == "float32" else f"-{self.quant.scale_dtype}"
        known = replace(self.quant, symmetric=False, scale_dtype="float16")
        name = known.named(widths).removeprefix("w")
        per = {"token": "", "tensor": "t", "channel": "c"}[self.per]
        source = f"p{self.percentile:g}" if self.range == "percentile" else self.range
        tail = "" if self.range == "dynamic" else f"-{source}"
        return f"{name}{per}{limit}{'-sym' * self.quant.symmetric}{tail}{scale}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> InputSpec:
        rest = {**value, "adaptive": tuple(value["adaptive"])}
        return cls(**{**rest, "quant": QuantSpec.from_json(value["quant"])})


@dataclass(frozen=True)
class LayerSpec:
    """What one layer becomes: its weight, and its input when that is quantized as well."""

    weight: QuantSpec
    input: InputSpec | None = None

    def __str__(self) -> str:
        """``w4g128``, or with inputs ``w4a8g128``, ``w4g128 a8t-minmax``."""
        if self.input is None:
            return str(self.weight)
        inputs = str(self.input)
        if inputs.isdigit():
            return self.weight.named(f"{self.weight.bits:g}a{inputs}")
        return f"{self.weight} a{inputs}"

    @classmethod
    def read(cls, name: str) -> LayerSpec:
        """The inverse of ``str``, as far as names tell: zeros are integers and groups whole.

        Raises:
            ValueError: ``name`` is none of ours.
        """
        weight, _, inputs = name.partition(" a")
        found = WEIGHT_NAME.fullmatch(weight)
        if found is None:
            raise ValueError(f"{name}: no name of a quantized layer")
        scales = {short: dtype for dtype, short in SCALES_IN_NAMES.items()}
        group = found["group"]
        spec = QuantSpec(
            bits=_number(found["bits"]),
            group_size=PER_TENSOR if group == "t" else int(group[1:] or PER_CHANNEL),
            symmetric=bool(found["symmetric"]),
            format="int" if found["format"] == "w" else found["format"],
            scale_dtype=scales.get(found["scale"], "float16"),
        )
        inputs = inputs or found["inputs"] or ""
        return cls(spec, _read_input(inputs) if inputs else None)


def _read_input(name: str) -> InputSpec:
    found = INPUT_NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"a{name}: no name of quantized inputs")
    widths = tuple(map(_number, found["bits"].split("~")))
    quant = QuantSpec(
        bits=widths[0],
        group_size=int(found["group"][1:] or PER_CHANNEL),
        symmetric=bool(found["symmetric"]),
        format=found["format"] or "int",
        scale_dtype=found["scale"] or "float32",
    )
    source = found["range"] or "dynamic"
    percentile = {"percentile": float(source[1:])} if source[1:2].isdigit() else {}
    return InputSpec(
        quant,
        per={"": "token", "t": "tensor", "c": "channel"}[found["per"]],
        range="percentile" if percentile else source,
        adaptive=widths if len(widths) > 1 else (),
        threshold=float(found["threshold"] or 0),
        **percentile,
    )


def _number(text: str) -> float:
    """As YAML reads it: ``4`` is an int."""
    return float(text) if "." in text else int(text)


@dataclass(frozen=True)
class Plan:
    """What a policy decided for one model.

    ``layers`` maps a module's name to its spec; a layer that is absent stays as it was.
    ``misfits`` says for which layers the group did not divide the row, and what was done instead.
    ``notes`` are what the policy says of how it decided; like misfits they change no weight.
    ``untie`` says that the head has a matrix of its own although the checkpoint tied it.
    """

    layers: Mapping[str, LayerSpec] = field(default_factory=dict)
    kv: QuantSpec | None = None
    untie: bool = False
    misfits: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 of what the plan does to the model: two policies of equal effect agree here."""
        return digest({"layers": self.layers, "kv": self.kv, "untie": self.untie})

    def summary(self) -> str:
        """The plan in a few words, most frequent spec first: ``w4g64 x24, w8 x5``."""
        counts = Counter(str(spec) for spec in self.layers.values())
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{name} x{count}" for name, count in ordered) or UNTOUCHED

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        def layer(spec: Mapping[str, Any]) -> LayerSpec:
            inputs = spec["input"] and InputSpec.from_json(spec["input"])
            return LayerSpec(QuantSpec.from_json(spec["weight"]), inputs)

        return cls(
            layers={name: layer(spec) for name, spec in value["layers"].items()},
            kv=value["kv"] and QuantSpec.from_json(value["kv"]),
            untie=value["untie"],
            misfits=dict(value["misfits"]),
            notes=dict(value["notes"]),
        )
