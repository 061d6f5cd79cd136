"""Checkpoints that are quantized already: ours come back as they left, and others like them.

``model.path=FOLDER method=full_precision`` measures one: no method touches it, its layers hold
exactly the codes of the file, its Plan is what its configuration says, and engines take it like any
quantized model. Any other method is refused: it would round what was rounded. Numbers are compared
with the full-precision checkpoint that ``bitsweep.json`` names, where that is still to be found
with the same content; with the checkpoint itself (ratio 1) where it is not, and a note says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from bitsweep.artifacts import Artifacts
from bitsweep.errors import UserError
from bitsweep.linear import quantized
from bitsweep.models import files
from bitsweep.models.files import Files
from bitsweep.models.shards import table
from bitsweep.models.source import MANIFEST, Layer, ModelSource
from bitsweep.spec import LayerSpec, Plan

if TYPE_CHECKING:
    from bitsweep.export import Container

KEY = "quantization_config"


def plan_of(found: Files, path: str, layers: Mapping[str, Layer]) -> Plan | None:
    """What the checkpoint ``found`` (``model.path``) says its layers are; None for full precision.

    Raises:
        UserError: it is quantized in a way that bitsweep does not read.
    """
    if KEY not in found.config:
        return None
    return _container(found, path, layers)[1]


def install(module: PreTrainedModel, found: Files, path: str, layers: Mapping[str, Layer]) -> None:
    """Put the codes of the file into ``module``, in place of the layers that it names.

    Raises:
        UserError: a tensor is missing, or is not what its configuration says.
    """
    container, plan = _container(found, path, layers)
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for file in found.weights(path):
            open_file = stack.enter_context(safe_open(file, "pt"))
            places |= dict.fromkeys(table(file), open_file)
        own: dict[str, list[str]] = {}
        for name in places:
            layer, _, key = name.rpartition(".")
            if layer in plan.layers and key != "bias":
                own.setdefault(layer, []).append(name)
        for layer, spec in plan.layers.items():
            tensors = {name: places[name].get_tensor(name) for name in own.get(layer, ())}
            _replace(module, container, layers[layer], spec, tensors, path)


def unfilled(missing: Iterable[str], plan: Plan | None) -> list[str]:
    """Of the tensors that transformers misses those that no quantized layer stands for."""
    held = set() if plan is None else {f"{name}.weight" for name in plan.layers}
    return sorted(set(missing) - held)


def base_of(source: ModelSource, artifacts: Artifacts) -> ModelSource | None:
    """The full-precision checkpoint that the exported ``source`` came from, or None.

    It is where ``bitsweep.json`` says, from this working directory, and has that content.
    """
    from bitsweep import models

    own = files.locate(source, False, artifacts)
    try:
        base = _manifest(own)["base"]
        found = replace(source, path=base["path"], revision=base["revision"], untie=False)
        skeleton = models.skeleton(found, artifacts)
    except (OSError, ValueError, LookupError, TypeError, UserError):
        return None
    return found if skeleton.checkpoint == base["sha256"] and skeleton.plan is None else None


def transforms_of(found: Files) -> tuple[str, ...]:
    """The transforms that were done to an exported checkpoint before it was quantized."""
    try:
        return tuple(map(str, _manifest(found)["transforms"]))
    except (OSError, ValueError, LookupError, TypeError):
        return ()


def _manifest(found: Files) -> Any:
    """What ``bitsweep.json`` says; whoever asks knows that it may be missing, or anything."""
    return json.loads((found.folder / MANIFEST).read_text(encoding="utf-8"))


def _container(found: Files, path: str, layers: Mapping[str, Layer]) -> tuple[Container, Plan]:
    from bitsweep.export import containers

    config = found.config[KEY]
    kinds = containers()
    name = config.get("quant_method") if isinstance(config, dict) else None
    if name not in kinds:
        raise UserError(
            f"model.path={path}: quantized already, with quant_method={name!r}, which bitsweep "
            f"does not read; it reads {', '.join(kinds)}, or give the full-precision checkpoint"
        )
    container = kinds[name]()
    try:
        return container, container.plan(config, layers)
    except UserError as reason:
        raise UserError(f"model.path={path}: quantized already; {reason}") from reason
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"model.path={path}: its {KEY} of {name} is not sound "
            f"({type(error).__name__}: {error}); give another export, or the full-precision one"
        ) from error


def _replace(
    module: PreTrainedModel,
    container: Container,
    layer: Layer,
    spec: LayerSpec,
    tensors: Mapping[str, Tensor],
    path: str,
) -> None:
    try:
        quant: Any = container.quant(layer.name, tensors, spec)
        shape = tuple(quant.shape)
    except (LookupError, ValueError, RuntimeError) as error:
        raise UserError(
            f"model.path={path}: {layer.name} is quantized to {spec}, and the file holds "
            f"{', '.join(sorted(tensors)) or 'nothing'} of it ({type(error).__name__}: {error})"
        ) from error
    if shape != layer.shape:
        raise UserError(
            f"model.path={path}: {layer.name} is {'x'.join(map(str, shape))} in the file and "
            f"{'x'.join(map(str, layer.shape))} in its configuration"
        )
    module.set_submodule(layer.name, quantized(quant, module.get_submodule(layer.name)))
