"""What of a model goes into a checkpoint's files, and what of it no checkpoint can say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from bitsweep import kv
from bitsweep.export import Container
from bitsweep.export.checkpoint import kept
from bitsweep.library import LibraryLinear
from bitsweep.linear import Quantized
from bitsweep.models import Model
from bitsweep.spec import LayerSpec, Plan

Hold = Callable[[str, Quantized], dict[str, Tensor]]
"""The tensors, by full name, that hold the weight of a quantized layer."""


def tensors(model: Model, stored: torch.dtype, hold: Hold) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of the checkpoint that ``model`` becomes, by name; a tied one once.

    What is not quantized is as :func:`checkpoint.kept` says, ``stored`` being the dtype of the
    checkpoint that the model comes from.
    """
    tied = _head(model) if _is_tied(model) else None
    rename = _on_disk(model)
    for name, module in model.module.named_modules():
        if name != tied and isinstance(module, Quantized):
            yield from hold(name, module).items()
        for key, value in _own(module):
            if name != tied or key != "weight":
                yield rename(f"{name}.{key}".lstrip(".")), kept(value, stored)


def held_by(container: Container, plan: Plan) -> Hold:
    """How ``container`` holds a layer."""

    def hold(name: str, module: Quantized) -> dict[str, Tensor]:
        return container.tensors(name, module.quant, plan.layers[name].input)

    return hold


def unsaid(model: Model, plain: Model) -> str | None:
    """What of ``model`` no checkpoint of its architecture has a place for, naming it, or None.

    ``plain`` is the same checkpoint before anything was done to it; a skeleton will do.
    """
    if kv.installed(model):
        return "kv: a quantized cache is nothing of a checkpoint; kv.bits=16 can leave"
    before = dict(plain.module.named_modules())
    for name, module in model.module.named_modules():
        if isinstance(module, LibraryLinear):
            return f"{name} is another library's layer; save it with that library"
        if getattr(module, "correction", None) is not None:
            return f"{name} has a correction of low rank, for which no checkpoint has a place"
        if isinstance(module, Quantized) and name in before:
            continue
        if type(before.get(name)) is not type(module) and not _inside_quantized(name, model):
            kind = type(plain.module).__name__
            return f"{name or 'the model'} became {type(module).__name__}, not what {kind} has"
    return _odd_parameters(model, plain)


def refused(model: Model, container: Container, plan: Plan) -> str | None:
    """What of ``plan`` ``container`` can not say, as its rules say it, or None.

    ``model`` may be a skeleton.
    """
    reason = container.rules.refuse(model.layers, plan.layers)
    if reason is not None:
        return reason
    if model.tied and _both_ends(model, plan.layers):
        return (
            f"embedding and {_head(model)} are one quantized tensor, and {container.name} ties "
            "none; model.untie=true gives each its own"
        )
    return None


def _on_disk(model: Model) -> Callable[[str], str]:
    """From a tensor's name in the model to the one that files of its architecture have.

    transformers renames when it reads (GPT-NeoX's head is ``embed_out`` in files).
    """
    conversions = getattr(model.module, "_weight_conversions", None) or ()
    back = [
        conversion.reverse_transform()
        for conversion in conversions
        if type(conversion).__name__ == "WeightRenaming"
    ]

    def rename(name: str) -> str:
        for conversion in back:
            name = conversion.rename_source_key(name)[0]
        return name

    return rename


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers that are saved, of ``module`` itself."""
    for key, value in [*module._parameters.items(), *module._buffers.items()]:
        if value is not None and key not in module._non_persistent_buffers_set:
            yield key, value.detach()


def _odd_parameters(model: Model, plain: Model) -> str | None:
    expected = {name: value.shape for name, value in plain.module.named_parameters()}
    for name, module in model.module.named_modules():
        for key, value in _own(module) if not name.endswith("input_quantizer") else ():
            full = f"{name}.{key}".lstrip(".")
            known = expected.get(full)
            if key in module._parameters and known is None and not _tied_name(plain, full):
                return f"{full} is new, and {type(plain.module).__name__} has no such tensor"
            if known is not None and known != value.shape:
                shapes = ["x".join(map(str, shape)) for shape in (known, value.shape)]
                return f"{full} is {shapes[1]}, and {shapes[0]} in its configuration"
    return None


def _tied_name(plain: Model, name: str) -> bool:
    """Whether ``name`` is the head that ``plain`` ties: its weight is its own after untying."""
    return plain.tied and name == f"{_head(plain)}.weight"


def _inside_quantized(name: str, model: Model) -> bool:
    """Whether ``name`` is a part of a quantized layer: its input quantizer."""
    parent = name.rpartition(".")[0]
    return bool(parent) and isinstance(model.get(parent), Quantized)


def _is_tied(model: Model) -> bool:
    """Whether embedding and head are one tensor now, in full precision or as codes."""
    head, embedding = model.module.get_output_embeddings(), model.module.get_input_embeddings()
    if isinstance(head, Quantized) and isinstance(embedding, Quantized):
        return head.quant is embedding.quant
    return not isinstance(head, Quantized) and head.weight is embedding.weight


def _head(model: Model) -> str:
    return next(layer.name for layer in model.layers.values() if layer.role == "head")


def _both_ends(model: Model, layers: Mapping[str, LayerSpec]) -> bool:
    ends = [layer.name for layer in model.layers.values() if layer.role in ("embedding", "head")]
    return all(name in layers for name in ends)
