"""QuaRot (Ashkboos et al., 2024) and SpinQuant (Liu et al., 2024): rotations folded into weights.

An RMS norm without weight commutes with every orthogonal R: ``n(x R) = n(x) R``. So after its
weight has moved into the layers that read it, the residual stream may be kept as ``x R``: what
writes to it becomes ``R^T W``, what reads it ``W R``, and no output changes (QuaRot, section 4;
SpinQuant's R1). A rotation spreads outliers over all channels, which rounding likes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bitsweep.calibration import Calibration
from bitsweep.errors import Refused, UserError
from bitsweep.methods import seeded
from bitsweep.models import Model
from bitsweep.models.model import untie
from bitsweep.models.norms import norm_kind
from bitsweep.transforms._channels import channels
from bitsweep.transforms._folding import (
    bias_of,
    check_unchanged,
    put,
    put_weight,
    sample_logits,
    weight_of,
)
from bitsweep.transforms._hadamard import Rotation, random_rotation
from bitsweep.transforms._residual import Stream, find

MATRICES = ("hadamard", "orthogonal")


@dataclass(frozen=True)
class Rotate:
    """Rotate the residual stream and, with ``heads``, what each attention head passes on.

    ``matrix``: a ``hadamard`` matrix with random signs, or a uniformly random ``orthogonal`` one;
    the latter also where no Hadamard matrix of the width is known (Sylvester's and Paley's
    constructions and their products are: 2^k, 12, 20, 28, 36, 60 ... times 2^k).
    ``heads``: a rotation of ``head_dim`` channels between value and attention.out, one for all
    heads of a block (SpinQuant's R2); where no factor passes from one to the other it is left out.

    LayerNorms are made RMS norms first: their mean moves into what writes to the stream, their bias
    into the biases of what reads them (which get one where they had none). A head tied to the
    embedding gets its own matrix, since only one of the two takes the norm's weight, and the size
    counts both. The norms keep a weight, of ones, so that ``smooth`` finds a place for its factors.

    Where implementations differ: QuaRot also rotates *online*, in front of ffn.down, of
    attention.out across heads, and queries and keys behind the rotary embedding; that changes the
    model's operations, and is left out here. With weights alone quantized it matters little; at
    W4A4 and a 4-bit cache it does. QuaRot's head rotation is the same matrix in every block.
    """

    matrix: str = "hadamard"
    heads: bool = True

    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    calibrated: ClassVar[bool] = False
    seeded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.matrix not in MATRICES:
            raise UserError(f"transforms.rotate.matrix={self.matrix}: use {' or '.join(MATRICES)}")

    def skip(self, model: Model) -> str | None:
        if model.masks or "prune" in model.transformed:
            return (
                "a rotation mixes pruned weights with kept ones, so nothing stays pruned; "
                "put rotate before prune"
            )
        try:
            find(model)
        except Refused as reason:
            return str(reason)
        return None

    def reshape(self, model: Model) -> None:
        _rotate_stream(model, find(model), lambda weight: weight)

    @torch.no_grad()
    def __call__(self, model: Model, calibration: Calibration) -> Model:
        reason = self.skip(model)
        if reason is not None:
            raise Refused(f"transforms=[rotate]: {reason}")
        before = sample_logits(model)
        generator = seeded()
        stream = find(model)
        _rotate_stream(model, stream, random_rotation(stream.width, self.matrix, generator))
        if self.heads:
            self._rotate_heads(model, generator)
        check_unchanged(model, before, "rotate")
        return model

    def _rotate_heads(self, model: Model, generator: torch.Generator) -> None:
        outs = {
            layer.name: layer.source
            for layer in model.layers.values()
            if layer.role == "attention.out" and layer.source in model.layers
        }
        maps = channels(model, [source for source in outs.values() if source is not None])
        for name, source in outs.items():
            rows = _heads(model, maps[name]) if name in maps else None
            if rows is not None and source is not None:
                rotation = random_rotation(rows.shape[1], self.matrix, generator)
                _rotate_head(model.get(source), model.get(name), rows, rotation)


def _rotate_stream(
    model: Model, stream: Stream, rotate: Rotation | Callable[[Tensor], Tensor]
) -> None:
    """Rewrite all that ``stream`` names; ``rotate`` maps float64 ``(..., width)``."""
    untie(model.module)
    model.tied = False
    for norm, embedding in stream.embedded.items():
        table = copy.deepcopy(model.get(norm)).double()(weight_of(model.get(embedding)))
        put_weight(model.get(embedding), table)
        model.replace(norm, nn.Identity())
    norm_of = {name: norm for norm, names in stream.norms.items() for name in names}
    readers = {*norm_of, *stream.direct}
    for name in dict.fromkeys([*norm_of, *stream.direct, *stream.writers]):
        module = model.get(name)
        weight, bias = weight_of(module), bias_of(module)
        if name in norm_of:
            weight, bias = _with_norm(weight, bias, model.get(norm_of[name]))
        if name in readers:
            weight = rotate(weight)
        if name in stream.writers:
            rows = weight if isinstance(module, nn.Embedding) else weight.t()
            rows = rotate(_centred(rows) if stream.centred else rows)
            weight = rows if isinstance(module, nn.Embedding) else rows.t()
            if bias is not None:
                bias = rotate(_centred(bias) if stream.centred else bias)
        put_weight(module, weight)
        if bias is not None:
            put(module, "bias", bias)
    for norm in stream.norms:
        _without_weight(model, norm)


def _with_norm(
    weight: Tensor, bias: Tensor | None, norm: nn.Module
) -> tuple[Tensor, Tensor | None]:
    """A reader's weight and bias with those of the norm in front of it taken in."""
    kind, gain, shift = norm_kind(norm), norm.get_parameter("weight").double(), bias_of(norm)
    assert kind is not None
    if shift is not None:
        added = weight @ shift
        bias = added if bias is None else bias + added
    return weight * (gain + kind.offset), bias


def _without_weight(model: Model, name: str) -> None:
    """Leave of a norm what commutes with a rotation: an RMS norm whose weight changes nothing."""
    norm = model.get(name)
    kind, weight = norm_kind(norm), norm.get_parameter("weight")
    assert kind is not None
    if kind.centres or norm._parameters.get("bias") is not None:
        bare = nn.RMSNorm(len(weight), kind.eps, device=weight.device, dtype=weight.dtype)
        model.replace(name, bare.requires_grad_(False).train(norm.training))
    else:
        put(norm, "weight", torch.full_like(weight, 1 - kind.offset))


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def _heads(model: Model, channel: Tensor) -> Tensor | None:
    """The value's output channels of each head, int64 ``(heads, head_dim)``, equal or disjoint.

    ``channel`` ``(in,)`` maps attention.out's inputs to them. None where heads do not come out.
    """
    config = model.module.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", 0)
    if not heads or len(channel) % heads:
        return None
    rows = channel.view(heads, -1)
    distinct = rows.unique(dim=0)
    return rows if distinct.numel() == distinct.unique().numel() else None


def _rotate_head(value: nn.Module, out: nn.Module, rows: Tensor, rotation: Rotation) -> None:
    """``W_v`` becomes ``R^T W_v`` in each head's rows, ``W_o`` becomes ``W_o R`` in its columns."""
    weight = weight_of(out)
    put_weight(out, rotation(weight.reshape(len(weight), *rows.shape)).reshape(weight.shape))
    weight, bias = weight_of(value).clone(), bias_of(value)
    for head in rows.unique(dim=0):
        weight[head] = rotation(weight[head].t()).t()
        if bias is not None:
            bias = bias.index_copy(0, head.to(bias.device), rotation(bias[head]))
    put_weight(value, weight)
    if bias is not None:
        put(value, "bias", bias)
