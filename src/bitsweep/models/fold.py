"""Moves a factor per channel across the edge from a norm or linear layer to those that read it.

With ``y = x diag(1/s)`` and ``W' = W diag(s)`` no output changes: ``W' y = W x`` (SmoothQuant's
equation 3, AWQ's equation 4). The ``1/s`` is folded into what makes ``x``, so nothing is left to
compute at run time; ``model.folded`` keeps what each weight was multiplied with. Parameters are
replaced, never written into: other copies keep theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitsweep.models import Model
from bitsweep.models.norms import norm_offset
from bitsweep.models.trace import is_norm


def readers(model: Model) -> dict[str, list[str]]:
    """Every norm or linear layer whose output is read by layers alone, and those layers."""
    found: dict[str, list[str]] = {}
    for layer in model.layers.values():
        if layer.source is not None:
            found.setdefault(layer.source, []).append(layer.name)
    return found


def edges(model: Model) -> dict[str, list[str]]:
    """Every source across whose outputs a factor can be folded, and the layers that read it.

    Left out are a linear source with another number of channels than its readers (grouped heads,
    whose values are repeated; a fused query, key and value), and a head that is one tensor with
    the embedding.
    """
    every = readers(model).items()
    return {source: names for source, names in every if _foldable(model, source, names)}


def _foldable(model: Model, source: str, names: list[str]) -> bool:
    if model.tied and any(model.layers[name].role == "head" for name in names):
        return False
    if source in model.layers:
        channels = model.layers[source].shape[0]
    else:
        channels = model.get(source).get_parameter("weight").numel()
    return all(model.layers[name].shape[1] == channels for name in names)


@torch.no_grad()
def fold(model: Model, source: str, factor: Tensor) -> None:
    """Divide ``source``'s outputs by ``factor`` ``(channels,)``, multiply its readers' columns.

    ``source`` is one of :func:`edges`; it and all its readers are in full precision.
    """
    for name in edges(model)[source]:
        layer = model.get(name)
        columns = factor.view(-1, 1) if model.layers[name].kind == "conv1d" else factor.view(1, -1)
        _set(layer, "weight", layer.get_parameter("weight").float() * columns.to(_device(layer)))
        rows, known = _folded(model, name)
        model.folded[name] = (rows, known * factor.cpu())
    feeder = model.get(source)
    weight = feeder.get_parameter("weight").float()
    inverse = 1 / factor.to(weight.device)
    if source in model.layers:
        rows, known = _folded(model, source)
        model.folded[source] = (rows / factor.cpu(), known)
    if is_norm(feeder):
        offset = norm_offset(feeder)
        _set(feeder, "weight", (weight + offset) * inverse - offset)
    elif model.layers[source].kind == "conv1d":
        _set(feeder, "weight", weight * inverse.view(1, -1))
    else:
        _set(feeder, "weight", weight * inverse.view(-1, 1))
    if feeder._parameters.get("bias") is not None:
        _set(feeder, "bias", feeder.get_parameter("bias").float() * inverse)


def factors_since(before: Model, after: Model, name: str) -> tuple[Tensor, Tensor]:
    """Of rows ``(out,)``, bias included, and columns ``(in,)`` of a layer on its way to ``after``:

    what folding has multiplied them with.
    """
    (rows, columns), (old_rows, old_columns) = _folded(after, name), _folded(before, name)
    return rows / old_rows, columns / old_columns


def factor_since(before: Model, after: Model, name: str) -> Tensor:
    """The same of each weight ``(out, in)``."""
    return torch.outer(*factors_since(before, after, name))


def _folded(model: Model, name: str) -> tuple[Tensor, Tensor]:
    out_features, in_features = model.layers[name].shape
    return model.folded.get(name, (torch.ones(out_features), torch.ones(in_features)))


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    dtype = module.get_parameter(name).dtype
    setattr(module, name, nn.Parameter(value.to(dtype), requires_grad=False))


def _device(module: nn.Module) -> torch.device:
    return module.get_parameter("weight").device
