"""Size by what is stored, not by nominal bits: a group's scales and zeros are weights' bytes too.

The rule: codes packed without a gap; scales, zeros, codebooks and permutations as their format
keeps them; every other tensor at the width it needs; a tied pair once. MiB is 2**20 bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bitsweep.activations import InputQuantizer
from bitsweep.artifacts import Artifacts
from bitsweep.data import Data, Reference
from bitsweep.linear import Quantized, QuantLinear
from bitsweep.models import ModelSource, files, shapes, shards
from bitsweep.probes import Needs
from bitsweep.record import Delta, Kind, Measurement, Metric
from bitsweep.tensor import QuantTensor, mask_bytes

if TYPE_CHECKING:
    from bitsweep.models import Model

MIB = 2**20


@dataclass(frozen=True)
class Size:
    """``file_mib``, ``bits_per_weight`` and ``resident_mib``.

    - ``file_mib``: all stored tensors. An untouched one counts at the narrower of the checkpoint's
      dtype and the compute dtype, which hold it exactly: computing a 16-bit checkpoint in float32
      does not inflate it, and rounding a float32 one to bfloat16 halves it. A pruned one counts
      as its mask and the weights that are left, where that is less than all of them.
    - ``bits_per_weight``: bytes of the quantized layers over their weights, all overhead (masks,
      corrections of low rank) in, pruned weights counted as weights; of the layers that could be
      quantized where none is. Factors of low rank are layers of their own.
    - ``resident_mib``: the same tensors as a packed engine holds them at work, the untouched ones
      in the compute dtype, with the buffers. Activations and KV cache are not in it.
    """

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quality"
    needs: ClassVar[Needs] = "shapes"

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
    masks = _pruned(model)
    untouched = list(model.module.parameters())  # a tied parameter comes once
    buffers = list(model.module.buffers())
    if quantized:
        weights = sum(tensor.shape.numel() for tensor in quantized)
        added = sum(_bytes(tensor, stored, masks) for tensor in corrections(model.module))
        bits = 8 * (packed + added) / weights
    else:
        weight = [model.get(name).get_parameter("weight") for name in model.layers]
        layers = list({id(tensor): tensor for tensor in weight}.values())  # a tied one once
        sizes = [_bytes(tensor, stored, masks) for tensor in layers]
        bits = 8 * sum(sizes) / sum(tensor.numel() for tensor in layers)
    kept = sum(_bytes(tensor, stored, masks) for tensor in untouched)
    ranges = sum(quantizer.nbytes() for quantizer in input_quantizers(model.module))
    resident = sum(_bytes(tensor, tensor.element_size(), masks) for tensor in untouched)
    return {
        "file_mib": (packed + kept + ranges) / MIB,
        "bits_per_weight": bits,
        "resident_mib": (packed + resident + sum(tensor.nbytes for tensor in buffers)) / MIB,
    }


def parts(model: Model, stored: int) -> dict[str, int]:
    """Bytes of the file by part: codes, scale, zero ... of all quantized layers, and the rest."""
    found: Counter[str] = Counter()
    for tensor in quant_tensors(model.module):
        found.update(tensor.nbytes())
    masks = _pruned(model)
    found["untouched"] = sum(_bytes(tensor, stored, masks) for tensor in model.module.parameters())
    added = sum(_bytes(tensor, stored, masks) for tensor in corrections(model.module))
    if added:
        found["untouched"] -= added
        found["correction"] = added
    ranges = sum(quantizer.nbytes() for quantizer in input_quantizers(model.module))
    if ranges:
        found["input_ranges"] = ranges
    return dict(found)


def corrections(module: nn.Module) -> list[nn.Parameter]:
    """What is added to the outputs of quantized layers."""
    added = (child.correction for child in module.modules() if isinstance(child, QuantLinear))
    return [tensor for correction in added if correction for tensor in correction.parameters()]


def _pruned(model: Model) -> dict[int, Tensor]:
    """Masks of pruned weights that were not quantized, by the id of the parameter."""
    layers = {name: model.get(name) for name in model.masks}
    return {
        id(layer.weight): model.masks[name]
        for name, layer in layers.items()
        if not isinstance(layer, QuantLinear)
    }


def _bytes(tensor: Tensor, stored: int, masks: Mapping[int, Tensor]) -> int:
    """Bytes of a full-precision tensor; a pruned one's mask and rest, where that is less."""
    width = _width(tensor, stored)
    dense = tensor.numel() * width
    mask = masks.get(id(tensor))
    return dense if mask is None else min(dense, mask_bytes(mask) + int(mask.sum()) * width)


def input_quantizers(module: nn.Module) -> list[InputQuantizer]:
    """What quantizes the inputs of layers; its static ranges are stored beside the weights."""
    return [child for child in module.modules() if isinstance(child, InputQuantizer)]


def quant_tensors(module: nn.Module) -> list[QuantTensor]:
    """Quantized weights, a tied pair's common tensor once."""
    found = {
        id(child.quant): child.quant for child in module.modules() if isinstance(child, Quantized)
    }
    return list(found.values())


def stored_bytes(source: ModelSource, artifacts: Artifacts) -> int:
    """Bytes in which the checkpoint stores a number: of the dtype that most of them have."""
    if source.random_weights:
        return shapes.find(source.path).stored_bytes

    def make() -> int:
        counts: Counter[int] = Counter()
        found = files.locate(source, True, artifacts).weights(source.path)
        for dtype, numbers in shards.floats(found).items():
            counts[dtype.itemsize] += numbers
        return counts.most_common(1)[0][0]

    key = {"path": source.path, "revision": source.revision}
    return artifacts.remember("stored_bytes", key, make)


def _width(tensor: Tensor, stored: int) -> int:
    return min(tensor.element_size(), stored)


def _ratio(value: float, full: float) -> Delta:
    """Sizes are exact: the interval has no width."""
    return Delta("ratio", value / full, value / full, value / full)
