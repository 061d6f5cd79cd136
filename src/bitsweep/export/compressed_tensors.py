"""Checkpoints of compressed-tensors, the library behind llm-compressor and vLLM.

Codes are integers of 2 to 8 bits, symmetric or with an integer zero, per channel, in whole groups
or per tensor; tensors of a layer ``x``:

* ``pack-quantized``: ``x.weight_packed`` int32 ``(out, ceil(in * bits / 32))``, each row the dense
  little-endian stream of its unsigned codes; ``x.weight_scale`` ``(out, groups)``;
  ``x.weight_zero_point`` int32 ``(ceil(out * bits / 32), groups)``, packed down the columns;
  ``x.weight_shape`` int64 ``(2,)``.
* ``int-quantized``, for 8 bits with quantized inputs, which is where vLLM looks for it:
  ``x.weight`` int8 ``(out, in)``, ``x.weight_zero_point`` int8 ``(out, groups)``.

Per tensor, scale and zero are ``(1,)`` and the zero is int8 in both.

The codes are ours bit for bit (one convention, see ``formats/int.py``). The library multiplies
``(code - zero) * scale`` in the dtype that the model is loaded in, so float32 gives our weights to
the last bit and 16 bits round them once more. Since its version 0.20 a column has no group of its
own any more (``actorder=group``, ``weight_g_idx``); what remains are groups of neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bitsweep.errors import UserError
from bitsweep.export._words import codes as codes_of
from bitsweep.export._words import words
from bitsweep.models import Layer
from bitsweep.portable import BYTES, PACKED, RULES, UNITS, compression
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

SNIPPET = """\
```python
# pip install torch {versions}
from transformers import AutoModelForCausalLM, AutoTokenizer{also}

model = AutoModelForCausalLM.from_pretrained({call})
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

{said}
bitsweep measures these files with `bitsweep run model.path=FOLDER method=full_precision`.
"""

PLAIN = {
    "versions": "transformers compressed-tensors",
    "also": "",
    "call": '"FOLDER"',
    "said": "The weights are unpacked at the first forward pass.",
}
INPUTS = PLAIN | {
    "said": f"{PLAIN['said']} `dequantize=True` would drop the\nquantized inputs without a word.",
}
ZEROS = PLAIN | {
    "also": ", CompressedTensorsConfig",
    "call": '\n    "FOLDER", quantization_config=CompressedTensorsConfig(dequantize=True)\n',
    "said": "Weights become floats on the grid, computed in the dtype of their scales. Without\n"
    "`dequantize=True` compressed-tensors 0.20 under transformers 5.23 stops at packed zeros\n"
    '(`"symmetric": false`): size mismatch of `weight_zero_point`; 0.19 opens them packed.',
}
ZEROS_AND_INPUTS = PLAIN | {
    "versions": "'transformers<5.18' 'compressed-tensors<0.20'",
    "said": "Tried with transformers 5.17 and compressed-tensors 0.19. Under 5.23, 0.20 stops at\n"
    "packed zeros (size mismatch of `weight_zero_point`), and `dequantize=True` would drop the\n"
    "quantized inputs without a word. It opens points with `symmetric=true`.",
}
"""How transformers opens files, by what is in them; no way is right for all."""

MIXED = "mixed-precision"
SCALES = {"float16": torch.float16, "float32": torch.float32}


def loading(plan: Plan) -> str:
    """For the model card of ``plan``: what opens its files and keeps all that they say."""
    inputs = any(spec.input is not None for spec in plan.layers.values())
    if any(_packed_zeros(spec) for spec in plan.layers.values()):
        return SNIPPET.format(**(ZEROS_AND_INPUTS if inputs else ZEROS))
    return SNIPPET.format(**(INPUTS if inputs else PLAIN))


class CompressedTensors:
    """One checkpoint of compressed-tensors."""

    name = "compressed-tensors"

    rules = RULES["compressed-tensors"]

    def tensors(
        self, layer: str, quant: QuantTensor, inputs: InputSpec | None = None
    ) -> dict[str, Tensor]:
        """See the module.

        Raises:
            UserError: the codes come with a permutation or a mask.
        """
        permuted, masked = quant.permutation is not None, quant.mask is not None
        reason = self.rules.codes(layer, masked, permuted)
        if reason is not None:
            raise UserError(f"--to {self.name}: {reason}")
        bits, whole = int(quant.spec.bits), quant.spec.group_size == PER_TENSOR
        scale, zero = quant.params["scale"], quant.params.get("zero")
        found = {"weight_scale": scale.reshape(1) if whole else scale}
        if compression(bits, inputs) == BYTES:
            found["weight"] = _signed(quant.codes, bits)
        else:
            found["weight_packed"] = words(quant.codes, bits)
            found["weight_shape"] = torch.tensor(quant.shape)
        if zero is not None and whole:
            found["weight_zero_point"] = _signed(zero, bits).reshape(1)
        elif zero is not None and compression(bits, inputs) == BYTES:
            found["weight_zero_point"] = _signed(zero, bits)
        elif zero is not None:
            found["weight_zero_point"] = words(zero.t(), bits).t().contiguous()
        return {f"{layer}.{key}": value for key, value in found.items()}

    def quant(self, layer: str, tensors: Mapping[str, Tensor], spec: LayerSpec) -> QuantTensor:
        own = {key.removeprefix(f"{layer}."): value for key, value in tensors.items()}
        weight, bits = spec.weight, int(spec.weight.bits)
        whole = weight.group_size == PER_TENSOR
        scale, zero = own["weight_scale"], own.get("weight_zero_point")
        if scale.dtype != SCALES[weight.scale_dtype]:
            raise UserError(
                f"{layer}.weight_scale is {scale.dtype}; bitsweep reads scales in "
                f"{weight.scale_dtype} here"
            )
        if "weight" in own:
            codes = _unsigned(own["weight"], bits)
        else:
            _, columns = own["weight_shape"].tolist()
            codes = codes_of(own["weight_packed"], bits, columns)
        params = {"scale": scale.view(1, 1) if whole else scale}
        if zero is not None and zero.dtype == torch.int32:
            params["zero"] = codes_of(zero.t(), bits, len(codes)).t().contiguous()
        elif zero is not None:
            params["zero"] = _unsigned(zero, bits).view(params["scale"].shape)
        return QuantTensor(codes, params, weight)

    def config(self, plan: Plan, layers: Mapping[str, Layer]) -> dict[str, Any]:
        alike: dict[LayerSpec, list[str]] = {}
        for name, spec in plan.layers.items():
            alike.setdefault(spec, []).append(name)
        reason = self.rules.plan(plan.layers)
        if reason is not None:
            raise UserError(f"--to {self.name}: {reason}")
        groups, ours = {}, {}
        for number, (spec, names) in enumerate(alike.items()):
            groups[f"group_{number}"] = {
                "targets": names,
                "weights": _arguments(spec.weight),
                "input_activations": None if spec.input is None else _input(spec.input),
                "output_activations": None,
                "format": compression(spec.weight.bits, spec.input),
            }
            if spec.weight.scale_dtype != "float16":
                ours[f"group_{number}"] = {"scale_dtype": spec.weight.scale_dtype}
        formats = {group["format"] for group in groups.values()}
        config = {
            "quant_method": self.name,
            "format": formats.pop() if len(formats) == 1 else MIXED,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": [name for name in layers if name not in plan.layers],
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }
        return config | ({"bitsweep": ours} if ours else {})

    def plan(self, config: Mapping[str, Any], layers: Mapping[str, Layer]) -> Plan:
        _check(config)
        ours = config.get("bitsweep", {})
        schemes = [
            (group["targets"], _spec(name, group, ours.get(name, {})))
            for name, group in config["config_groups"].items()
        ]
        found = {}
        for name, layer in layers.items():
            if _matches(layer, config.get("ignore") or ()):
                continue
            spec = next((spec for targets, spec in schemes if _matches(layer, targets)), None)
            if spec is not None:
                found[name] = spec
        return Plan(layers=found)


def _packed_zeros(spec: LayerSpec) -> bool:
    """Whether the zeros of a layer lie in words: the one of a whole tensor lies in a byte."""
    packed = compression(spec.weight.bits, spec.input) == PACKED
    return packed and not spec.weight.symmetric and spec.weight.group_size != PER_TENSOR


def _signed(codes: Tensor, bits: int) -> Tensor:
    return (codes - 2 ** (bits - 1)).view(torch.int8)  # uint8 wraps: what int8 calls negative


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    return codes.contiguous().view(torch.uint8) + 2 ** (bits - 1)


def _arguments(spec: QuantSpec) -> dict[str, Any]:
    """``QuantizationArgs`` of a weight."""
    strategy, group = {
        PER_CHANNEL: ("channel", None),
        PER_TENSOR: ("tensor", None),
    }.get(spec.group_size, ("group", spec.group_size))
    return {
        "num_bits": int(spec.bits),
        "type": "int",
        "symmetric": spec.symmetric,
        "strategy": strategy,
        "group_size": group,
        "dynamic": False,
    }


def _input(spec: InputSpec) -> dict[str, Any]:
    """``QuantizationArgs`` of an input: of a token, in groups if asked, or of all numbers."""
    arguments = _arguments(spec.quant) | {"dynamic": True}
    if arguments["strategy"] == "channel":
        arguments["strategy"] = spec.per
    return arguments


def _check(config: Mapping[str, Any]) -> None:
    """Raises UserError for what a plan of ours can not hold."""
    beyond = {
        "kv_cache_scheme": None,
        "sparsity_config": None,
        "transform_config": None,
    }
    for key in beyond:
        if config.get(key):
            raise UserError(f"quantization_config.{key} is set, which bitsweep does not read")
    if config.get("quantization_status", "compressed") != "compressed":
        raise UserError(
            f"quantization_config.quantization_status={config['quantization_status']}: its weights "
            "are not packed; bitsweep reads compressed ones"
        )


def _spec(name: str, group: Mapping[str, Any], ours: Mapping[str, Any]) -> LayerSpec:
    def unknown(what: str) -> UserError:
        return UserError(
            f"quantization_config.config_groups.{name}.{what} is not what bitsweep "
            "reads: integers of 2 to 8 bits, per group, channel or tensor, inputs dynamic"
        )

    weights, inputs = group.get("weights"), group.get("input_activations")
    if group.get("format") not in (PACKED, BYTES, None):
        raise unknown(f"format={group['format']}")
    if group.get("output_activations"):
        raise unknown("output_activations")
    if not weights or weights.get("type", "int") != "int":
        raise unknown("weights.type")
    if weights.get("actorder") in ("group", "dynamic", True):
        raise unknown(f"weights.actorder={weights['actorder']}")
    size = _group_size(weights)
    if size is None or weights.get("dynamic"):
        raise unknown("weights.strategy")
    weight = QuantSpec(
        bits=weights.get("num_bits", 8),
        group_size=size,
        symmetric=weights.get("symmetric", True),
        scale_dtype=ours.get("scale_dtype", "float16"),
    )
    if not inputs:
        return LayerSpec(weight)
    per = inputs.get("strategy")
    grouped = _group_size(inputs) if per == "group" else PER_CHANNEL
    if inputs.get("type", "int") != "int" or inputs.get("dynamic") is not True or grouped is None:
        raise unknown("input_activations")
    if per not in ("token", "tensor", "group"):
        raise unknown(f"input_activations.strategy={per}")
    quant = QuantSpec(
        bits=inputs.get("num_bits", 8),
        group_size=grouped,
        symmetric=inputs.get("symmetric", True),
        scale_dtype="float32",
    )
    return LayerSpec(weight, InputSpec(quant, per="tensor" if per == "tensor" else "token"))


def _group_size(arguments: Mapping[str, Any]) -> int | None:
    size = arguments.get("group_size")
    strategy = arguments.get("strategy")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == PER_CHANNEL else "group"
    return {"channel": PER_CHANNEL, "tensor": PER_TENSOR, "group": size}.get(strategy)


def _matches(layer: Layer, targets: Sequence[str]) -> bool:
    """Whether one of ``targets`` is the layer's name, its class, or ``re:`` of its name."""

    def each() -> Iterator[bool]:
        for target in targets:
            if target.startswith("re:"):
                yield re.match(target.removeprefix("re:"), layer.name) is not None
            else:
                yield target in (layer.name, UNITS.get(layer.kind))

    return any(each())
