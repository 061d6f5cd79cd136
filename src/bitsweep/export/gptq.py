"""The GPTQ layout of AutoGPTQ and GPTQModel, which vLLM, SGLang and ExLlama know as well.

A linear layer ``(out, in)`` is four tensors, packed in the transposed orientation ``(in, out)``:

* ``qweight`` int32 ``(in * bits / 32, out)``: codes, a dense little-endian bitstream down each
  column. At 3 bits 32 codes fill three words and two codes of them lie across a seam;
* ``qzeros`` int32 ``(groups, out * bits / 32)``: zeros, the same stream along each row;
* ``scales`` float16 ``(groups, out)``;
* ``g_idx`` int32 ``(in,)``: the group of each column, which is how act_order is said. The order of
  columns *within* a group is not in it; no weight depends on it.

``weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o])``, ``g = g_idx[i]``: our convention, with
``zero = 2**(bits - 1)`` in symmetric layers.

**Two conventions of zeros.** ``checkpoint_format: gptq`` (the older) stores ``zero - 1`` and leaves
a zero of 0 to a borrow from the next field of the word, which loaders undo differently;
``gptq_v2`` stores ``zero``. A checkpoint whose layers are all symmetric is written as ``gptq``:
loaders have known it longest, and no zero is 0. One whose layers are all asymmetric is written as
``gptq_v2``: exact, at the price that loaders from before it read it wrongly (GPTQModel, and
transformers with optimum, look at the key). Reading takes both, the borrow included.

**Mixed plans** are GPTQModel's ``dynamic``: a regular expression a layer, ``+:`` with what differs
from the checkpoint's own bits and groups, ``-:`` for a layer left as it was. ``lm_head`` says
whether the head is quantized. transformers (through optimum) knows neither; a plan that quantizes
the same layers of every block alike and no head is what it can load, and
``modules_in_block_to_quantize`` says such a plan to it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitsweep import __version__
from bitsweep.errors import UserError
from bitsweep.export._words import WORD, codes, one_more, words
from bitsweep.models import Layer
from bitsweep.portable import RULES, Rules, gptq_zeros
from bitsweep.spec import InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

LOADING = """\
```python
# pip install gptqmodel          (with two cores or fewer also: export GPTQMODEL_CPU_WORKERS=2)
import torch
from gptqmodel import BACKEND, GPTQModel

model = GPTQModel.load(
    "FOLDER", device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH
)  # computes scale * (code - zero) in float16
```

With `optimum` there as well, transformers opens these files by
`AutoModelForCausalLM.from_pretrained("FOLDER")`, unless layers differ in bits or groups, or the
head is quantized (`"lm_head": true`): that one it leaves random, with a warning. bitsweep measures
them with `bitsweep run model.path=FOLDER method=full_precision`.
"""

PARTS = ("qweight", "qzeros", "scales", "g_idx")
FORMATS = ("gptq", "gptq_v2")

KNOWN: Mapping[str, tuple[str | None, ...]] = {
    "quant_method": ("gptq",),
    "checkpoint_format": (None, *FORMATS),
    "format": (None, *FORMATS),
    "pack_dtype": (None, "int32", "torch.int32"),
    "rotation": (None,),
    "adapter": (None,),
}
"""Of the keys that change what tensors mean, the values that are read; other keys only say how
codes were found."""


@dataclass
class Gptq:
    """A checkpoint in the GPTQ layout, written or read.

    ``checkpoint_format`` is ``gptq`` or ``gptq_v2`` once the first layer was written or
    :meth:`plan` has read it; ``desc_act`` whether some layer's groups are not contiguous, which
    only its tensors show.
    """

    checkpoint_format: str | None = None
    desc_act: bool = False

    name: ClassVar[str] = "gptq"
    rules: ClassVar[Rules] = RULES["gptq"]

    def tensors(
        self, layer: str, quant: QuantTensor, inputs: InputSpec | None = None
    ) -> dict[str, Tensor]:
        """See :class:`~bitsweep.export.Container`.

        Raises:
            UserError: weights were pruned; or symmetric and asymmetric layers are mixed.
        """
        permuted, masked = quant.permutation is not None, quant.mask is not None
        reason = self.rules.codes(layer, masked, permuted)
        if reason is not None:
            raise UserError(f"--to {self.name}: {reason}")
        bits, columns = int(quant.spec.bits), quant.shape[1]
        scale, zero = quant.params["scale"], quant.params.get("zero")
        if zero is None:
            zero = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.uint8)
        self._convention("gptq" if quant.spec.symmetric else "gptq_v2", layer)
        stored = zero - 1 if self.checkpoint_format == "gptq" else zero
        group = torch.arange(columns) // (columns // scale.shape[1])
        if quant.permutation is not None:
            self.desc_act = True
            group = torch.empty_like(group).index_copy_(0, quant.permutation.cpu(), group)
        return {
            f"{layer}.qweight": words(quant.codes, bits).T.contiguous(),
            f"{layer}.qzeros": words(stored.T, bits),
            f"{layer}.scales": scale.T.contiguous(),
            f"{layer}.g_idx": group.to(torch.int32),
        }

    def _convention(self, wanted: str, layer: str) -> None:
        if self.checkpoint_format not in (None, wanted):
            raise UserError(f"--to {self.name}: {gptq_zeros(wanted == 'gptq', layer)}")
        self.checkpoint_format = wanted

    def config(self, plan: Plan, layers: Mapping[str, Layer]) -> dict[str, Any]:
        """See :class:`~bitsweep.export.Container`.

        Raises:
            UserError: symmetric and asymmetric layers are mixed, or the cache is quantized.
        """
        if plan.kv is not None:
            raise UserError(f"--to gptq: kv.bits={plan.kv.bits:g}: not in these files; use 16")
        specs = {name: layer.weight for name, layer in plan.layers.items()}
        if not specs:
            raise UserError("--to gptq: nothing is quantized; use --to hf-dense")
        reason = self.rules.plan(plan.layers)
        if reason is not None:
            raise UserError(f"--to {self.name}: {reason}")
        base = Counter(specs.values()).most_common(1)[0][0]
        self._convention("gptq" if base.symmetric else "gptq_v2", next(iter(specs)))
        dynamic: dict[str, dict[str, Any]] = {}
        for name, layer in layers.items():
            if name in specs and specs[name] != base:
                own = {"bits": int(specs[name].bits), "group_size": specs[name].group_size}
                dynamic[f"+:{_exactly(name)}"] = own
            elif name not in specs and layer.block is not None:
                dynamic[f"-:{_exactly(name)}"] = {}
        suffixes = _suffixes(plan, layers)
        return {
            "quant_method": "gptq",
            "bits": int(base.bits),
            "group_size": base.group_size,
            "sym": base.symmetric,
            "desc_act": self.desc_act,
            "act_group_aware": False,
            "checkpoint_format": self.checkpoint_format,
            "format": self.checkpoint_format,
            "pack_dtype": "int32",
            "lm_head": any(layers[name].role == "head" for name in specs),
            **({"dynamic": dynamic} if dynamic else {}),
            **({"modules_in_block_to_quantize": [suffixes]} if dynamic and suffixes else {}),
            "meta": {"quantizer": [f"bitsweep:{__version__}"]},
        }

    def plan(self, config: Mapping[str, Any], layers: Mapping[str, Layer]) -> Plan:
        """See :class:`~bitsweep.export.Container`; keys that only say how codes were found pass.

        A head is quantized when ``lm_head`` says so, every linear layer of a block unless
        ``dynamic`` or ``modules_in_block_to_quantize`` says otherwise.
        """
        _check(config)
        self.checkpoint_format = config.get("checkpoint_format") or config.get("format") or "gptq"
        self.desc_act = bool(config.get("desc_act"))
        base = {key: config[key] for key in ("bits", "group_size")} | {
            "sym": config.get("sym", True)
        }
        only = [*itertools.chain(*(config.get("modules_in_block_to_quantize") or []))]
        found: dict[str, LayerSpec] = {}
        for name, layer in layers.items():
            own = _override(config.get("dynamic") or {}, name)
            outside = layer.block is None and not (layer.role == "head" and config.get("lm_head"))
            left = only and layer.block is not None and not name.endswith(tuple(only))
            if own is None or outside or (left and not own):
                continue
            merged = base | own
            spec = QuantSpec(
                bits=merged["bits"], group_size=merged["group_size"], symmetric=bool(merged["sym"])
            )
            reason = self.rules.layer(layer, LayerSpec(spec))
            if reason is not None:
                raise UserError(f"quantization_config: {reason}")
            found[name] = LayerSpec(spec)
        return Plan(found)

    def quant(self, layer: str, tensors: Mapping[str, Tensor], spec: LayerSpec) -> QuantTensor:
        """See :class:`~bitsweep.export.Container`.

        Raises:
            UserError: a tensor is missing, has another shape or dtype, or contradicts the plan.
        """
        missing = [part for part in PARTS if f"{layer}.{part}" not in tensors]
        if missing:
            raise UserError(f"{layer}: its files have no {missing[0]}")
        qweight, qzeros, scales, g_idx = (tensors[f"{layer}.{part}"] for part in PARTS)
        weight, bits = spec.weight, int(spec.weight.bits)
        (groups, rows), columns = scales.shape, len(g_idx)
        expected = {
            "qweight": (qweight, (-(-columns * bits // WORD), rows)),
            "qzeros": (qzeros, (groups, -(-rows * bits // WORD))),
            "scales": (scales, (weight.groups(columns), rows)),
        }
        for part, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise UserError(
                    f"{layer}.{part}: {tuple(tensor.shape)} is not {shape}, which bits={bits} "
                    f"group_size={weight.group_size} of {rows} x {columns} takes"
                )
        scale = scales.to(torch.float16)
        if not torch.equal(scale.to(scales.dtype), scales):
            raise UserError(f"{layer}.scales: {scales.dtype} holds what float16 can not")
        if self.checkpoint_format == "gptq":
            qzeros = one_more(qzeros, bits, rows)
        params = {"scale": scale.T.contiguous()}
        zero = codes(qzeros, bits, rows).T.contiguous()
        if not weight.symmetric:
            params["zero"] = zero
        elif not bool((zero == 2 ** (bits - 1)).all()):
            raise UserError(f"{layer}.qzeros: sym=true has zeros of {2 ** (bits - 1)} only")
        own = codes(qweight.T.contiguous(), bits, columns)
        return QuantTensor(own, params, weight, _order(g_idx, groups, layer))


def _order(g_idx: Tensor, groups: int, layer: str) -> Tensor | None:
    """The columns by group, in rising order within each; None where they lie so already.

    Raises:
        UserError: the groups are not of one size.
    """
    counts = torch.bincount(g_idx.long().clamp(min=0), minlength=groups)
    if len(counts) != groups or int(g_idx.min()) < 0 or len(counts.unique()) != 1:
        raise UserError(f"{layer}.g_idx: does not put equally many columns in {groups} groups")
    order = torch.argsort(g_idx, stable=True)
    return None if torch.equal(order, torch.arange(len(order))) else order


def _exactly(name: str) -> str:
    return re.escape(name) + "$"


def _override(dynamic: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    """What the first expression that matches ``name`` says; None for a layer left as it was."""
    for pattern, own in dynamic.items():
        if re.match(pattern.removeprefix("+:").removeprefix("-:"), name):
            if pattern.startswith("-:"):
                return None
            _known(own, f"quantization_config.dynamic.{pattern}")
            return {key: own[key] for key in ("bits", "group_size", "sym") if key in own}
    return {}


def _suffixes(plan: Plan, layers: Mapping[str, Layer]) -> list[str]:
    """Names within a block of the layers that are quantized in every block; [] where blocks differ.

    As transformers (optimum) takes them: ``self_attn.q_proj`` ends a layer's name.
    """
    blocks: dict[int, set[str]] = {}
    names = [name for name, layer in layers.items() if layer.block is not None]
    for name in names:
        block = layers[name].block
        assert block is not None
        within = name.split(f".{block}.", 1)[-1]
        own = blocks.setdefault(block, set())
        if name in plan.layers:
            own.add(within)
    different = {frozenset(own) for own in blocks.values()}
    specs = {spec for name, spec in plan.layers.items() if layers[name].block is not None}
    return sorted(different.pop()) if len(different) == 1 and len(specs) == 1 else []


def _check(config: Mapping[str, Any]) -> None:
    """Raises UserError for a key with which the tensors would be misread."""
    _known({"quant_method": None, **config}, "quantization_config")
    for key in ("bits", "group_size"):
        if not isinstance(config.get(key), int):
            raise UserError(f"quantization_config.{key}={config.get(key)}: must be a number")


def _known(values: Mapping[str, Any], where: str) -> None:
    for key, choices in KNOWN.items():
        if key in values and values[key] not in choices:
            shown = " or ".join(str(choice) for choice in choices if choice)
            raise UserError(f"{where}.{key}={values[key]}: bitsweep reads {shown or 'none'}")
