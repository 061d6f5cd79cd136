"""A model at rest as its engine takes it: packed codes, and all else in the engine's dtype.

One safetensors file: each code tensor as :meth:`QuantTensor.pack` has it under ``codes:LAYER:part``
(a tied pair once), static ranges of inputs under ``inputs:LAYER:part``, buffers under ``buffer:``,
parameters under their names; and ``model.json``, which says the rest. The structure of the model
is that of its checkpoint, which the reader builds without weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bitsweep import models
from bitsweep.activations import InputQuantizer
from bitsweep.artifacts import Artifacts
from bitsweep.engines import quantized_layers
from bitsweep.export.checkpoint import Shards
from bitsweep.export.streaming import Reader
from bitsweep.linear import Quantized, QuantLinear, quantized
from bitsweep.models import Model
from bitsweep.spec import InputSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

FILE, ABOUT = "model.safetensors", "model.json"


def refuses(model: Model, artifacts: Artifacts) -> str | None:
    """Why a reader could not build ``model`` from its checkpoint's configuration, or None."""
    bare = dict(models.skeleton(model.source, artifacts).module.named_modules())
    for name, module in model.module.named_modules():
        layer = name.removesuffix(".input_quantizer")
        if layer not in bare or not isinstance(
            module, type(bare[layer]) | Quantized | InputQuantizer
        ):
            return f"{name} is not what its checkpoint has there"
    return None


def write(model: Model, folder: Path, compute: torch.dtype | None) -> None:
    """``model`` into the empty ``folder``; ``compute`` is the dtype of what is not quantized.

    None leaves that as it is.
    """
    shards = Shards(folder, limit=2**62)
    layers, owner = dict[str, dict[str, Any]](), dict[int, str]()
    for name, layer in quantized_layers(model).items():
        quant = layer.quant
        first = owner.setdefault(id(quant), name)
        if first == name:
            for key, value in quant.pack().items():
                shards.add(f"codes:{name}:{key}", value)
        quantizer = getattr(layer, "input_quantizer", None)
        for key, value in quantizer.params.items() if quantizer else ():
            shards.add(f"inputs:{name}:{key}", value)
        layers[name] = {
            "codes": first,
            "spec": quant.spec.to_json(),
            "shape": list(quant.shape),
            "input": quantizer and quantizer.spec.to_json(),
        }
    for name, parameter in model.module.named_parameters():
        floating = compute is not None and parameter.is_floating_point()
        shards.add(name, parameter.detach().to(compute) if floating else parameter)
    for name, buffer in model.module.named_buffers():
        if ".input_quantizer." not in name:
            shards.add(f"buffer:{name}", buffer)
    shards.close()
    about = {
        "source": asdict(model.source),
        "tied": model.tied,
        "attention": model.module.config._attn_implementation,
        "plan": None if model.plan is None else model.plan.to_json(),
        "layers": layers,
    }
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def bare(folder: Path, artifacts: Artifacts) -> Model:
    """The model of ``folder`` without anything in it, on the meta device."""
    about = _about(folder)
    model = models.skeleton(models.ModelSource(**about["source"]), artifacts).copy()
    model.plan = about["plan"] and Plan.from_json(about["plan"])
    model.tied = about["tied"]
    model.module.set_attn_implementation(about["attention"])
    return model


def fill(model: Model, folder: Path) -> None:
    """Put everything that ``folder`` has into ``model`` (:func:`bare`), a tensor at a time."""
    reader = Reader([folder / FILE])
    quants: dict[str, QuantTensor] = {}
    for name, layer in _about(folder)["layers"].items():
        if layer["codes"] not in quants:
            spec, shape = QuantSpec.from_json(layer["spec"]), tuple(layer["shape"])
            parts = _parts(reader, f"codes:{name}:")
            quants[name] = QuantTensor.unpack(parts, spec, cast("tuple[int, int]", shape))
        module = quantized(quants[layer["codes"]], model.get(name))
        if layer["input"] is not None:
            ranges = _parts(reader, f"inputs:{name}:")
            quantizer = InputQuantizer(InputSpec.from_json(layer["input"]), ranges)
            cast(QuantLinear, module).input_quantizer = quantizer
        model.replace(name, module)
    seen: dict[int, nn.Parameter] = {}
    for name, parameter in [*model.module.named_parameters(remove_duplicate=False)]:
        module, key = _home(model, name)
        if id(parameter) not in seen:
            seen[id(parameter)] = nn.Parameter(reader.tensor(name), requires_grad=False)
        module._parameters[key] = seen[id(parameter)]
    for name in reader.places:
        if name.startswith("buffer:"):
            module, key = _home(model, name.removeprefix("buffer:"))
            module._buffers[key] = reader.tensor(name)


def _parts(reader: Reader, prefix: str) -> dict[str, Tensor]:
    own = [name for name in reader.places if name.startswith(prefix)]
    return {name.removeprefix(prefix): reader.tensor(name) for name in own}


def _home(model: Model, name: str) -> tuple[nn.Module, str]:
    """The module that has the tensor ``name``, and what it calls it."""
    module, _, key = name.rpartition(".")
    return model.get(module), key


def _about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return found
