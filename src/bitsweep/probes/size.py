"""Size by what is stored, not by nominal bits: a group's scales and zeros are weights' bytes too.

The rule (design.md section 6): codes packed without a gap, scales, zeros, codebooks and
permutations as their format keeps them, every other tensor at the width it needs, a tied pair once.
MiB is 2**20 bytes.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bitsweep.activations import InputQuantizer
from bitsweep.artifacts import Artifacts
from bitsweep.data import Data, Reference
from bitsweep.linear import QuantEmbedding, QuantLinear
from bitsweep.models import ModelSource, files
from bitsweep.record import Delta, Kind, Measurement, Metric
from bitsweep.tensor import QuantTensor

if TYPE_CHECKING:
    from bitsweep.models import Model

MIB = 2**20
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of the float types of a safetensors file."""


@dataclass(frozen=True)
class Size:
    """``file_mib``, ``bits_per_weight`` and ``resident_mib``.

    - ``file_mib``: all stored tensors. An untouched one counts at the narrower of the checkpoint's
      dtype and the compute dtype, which hold it exactly: computing a 16-bit checkpoint in float32
      does not inflate it, and rounding a float32 one to bfloat16 halves it.
    - ``bits_per_weight``: bytes of the quantized layers over their weights, all overhead in; of
      the layers that could be quantized where none is.
    - ``resident_mib``: the same tensors as a packed engine holds them at work, the untouched ones
      in the compute dtype, with the buffers. Activations and KV cache are not in it.
    """

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quality"

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        return {}

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        stored = stored_bytes(reference.model.source, reference.artifacts)
        sizes = measure(model, stored)
        full = measure(reference.model, stored)
        rule = "packed+scales+zeros+untouched|tied:once|MiB:2^20"
        metrics = [
            Metric(
                name,
                sizes[name],
                unit,
                "lower",
                f"{name}|{rule}|v{self.version}",
                delta=_ratio(sizes[name], full[name]),
            )
            for name, unit in (("file_mib", "MiB"), ("bits_per_weight", "bit"))
        ]
        signature = f"resident_mib|{rule}|untouched:{model.module.dtype}|v{self.version}"
        ratio = _ratio(sizes["resident_mib"], full["resident_mib"])
        metrics.append(
            Metric("resident_mib", sizes["resident_mib"], "MiB", "lower", signature, delta=ratio)
        )
        return Measurement(metrics, [{"metric": "file_mib", "bytes": parts(model, stored)}])


def measure(model: Model, stored: int) -> dict[str, float]:
    """The three sizes of ``model``; ``stored`` bytes has one number of the checkpoint."""
    quantized = quant_tensors(model.module)
    packed = sum(sum(tensor.nbytes().values()) for tensor in quantized)
    untouched = list(model.module.parameters())  # a tied parameter comes once
    buffers = list(model.module.buffers())
    if quantized:
        weights = sum(tensor.codes.numel() for tensor in quantized)
        bits = 8 * packed / weights
    else:
        layers = {id(weight): weight for weight in map(model.weight, model.layers)}
        sizes = [(tensor.numel(), _width(tensor, stored)) for tensor in layers.values()]
        bits = 8 * sum(count * width for count, width in sizes) / sum(count for count, _ in sizes)
    kept = sum(tensor.numel() * _width(tensor, stored) for tensor in untouched)
    ranges = sum(quantizer.nbytes() for quantizer in input_quantizers(model.module))
    return {
        "file_mib": (packed + kept + ranges) / MIB,
        "bits_per_weight": bits,
        "resident_mib": (packed + sum(tensor.nbytes for tensor in [*untouched, *buffers])) / MIB,
    }


def parts(model: Model, stored: int) -> dict[str, int]:
    """Bytes of the file by part: codes, scale, zero ... of all quantized layers, and the rest."""
    found: Counter[str] = Counter()
    for tensor in quant_tensors(model.module):
        found.update(tensor.nbytes())
    found["untouched"] = sum(
        parameter.numel() * _width(parameter, stored) for parameter in model.module.parameters()
    )
    ranges = sum(quantizer.nbytes() for quantizer in input_quantizers(model.module))
    if ranges:
        found["input_ranges"] = ranges
    return dict(found)


def input_quantizers(module: nn.Module) -> list[InputQuantizer]:
    """What quantizes the inputs of layers; its static ranges are stored beside the weights."""
    return [child for child in module.modules() if isinstance(child, InputQuantizer)]


def quant_tensors(module: nn.Module) -> list[QuantTensor]:
    """Quantized weights, a tied pair's common tensor once."""
    found = {
        id(child.quant): child.quant
        for child in module.modules()
        if isinstance(child, QuantLinear | QuantEmbedding)
    }
    return list(found.values())


def stored_bytes(source: ModelSource, artifacts: Artifacts) -> int:
    """Bytes in which the checkpoint stores a number: of the dtype that most of them have."""

    def make() -> int:
        counts: Counter[int] = Counter()
        for path in files.locate(source, True, artifacts).weights(source.path):
            for entry in _header(path).values():
                if entry.get("dtype") in WIDTHS:
                    counts[WIDTHS[entry["dtype"]]] += int(torch.Size(entry["shape"]).numel())
        return counts.most_common(1)[0][0]

    key = {"path": source.path, "revision": source.revision}
    return artifacts.remember("stored_bytes", key, make)


def _header(path: Path) -> dict[str, Any]:
    """The table of a safetensors file: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        table: dict[str, Any] = json.loads(file.read(length))
    table.pop("__metadata__", None)
    return table


def _width(tensor: Tensor, stored: int) -> int:
    return min(tensor.element_size(), stored)


def _ratio(value: float, full: float) -> Delta:
    """Sizes are exact: the interval has no width."""
    return Delta("ratio", value / full, value / full, value / full)
