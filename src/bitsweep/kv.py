"""The cache of keys and values, quantized as attention keeps it.

Keys and values are quantized inside an attention function that is registered with transformers,
just before they are multiplied: keys after the rotary embedding, each head's numbers of each token
by themselves (``kv.group_size`` along the head). Since no token's codes depend on another's, text
scored in full windows sees exactly what decoding with a quantized cache would: a key is quantized
once, the same whenever it is read, also by its own token.

Rivals: KIVI (Liu et al. 2024, arXiv 2402.02750) gives keys one scale per *channel* and 32 tokens,
and leaves the last 128 tokens in full precision; KVQuant (Hooper et al. 2024, arXiv 2401.18079)
quantizes keys before the rotary embedding. Keys have outlier channels, so at 2 bits both are better
than a scale per token; but groups of tokens make a full window see other numbers than decoding
does. QuaRot (arXiv 2404.00456) rotates the outliers away and keeps a scale per token and head, as
here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from bitsweep import formats
from bitsweep.activations import learned, shares
from bitsweep.activations.quantizer import quantized_rows, restored
from bitsweep.models import Model
from bitsweep.spec import Plan, QuantSpec

PREFIX = "bitsweep_kv_"
"""Of our attention functions' names; what follows is the one that they call."""


class KVQuantizer(nn.Module):
    """Keys or values ``(batch, heads, tokens, head)`` to what their codes stand for."""

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        return quantized_rows(x, partial(restored, quant=self.spec))

    def extra_repr(self) -> str:
        return str(self.spec)


def attentions(model: Model) -> dict[str, nn.Module]:
    """The module of each block that holds its query, key and value layers, by name."""
    names = [n.rpartition(".")[0] for n, x in model.layers.items() if x.role == "attention.qkv"]
    return {name: model.get(name) for name in dict.fromkeys(names)}


def skip(plan: Plan, model: Model) -> str | None:
    """Why the cache that ``plan`` asks for cannot be made (with the key to change), or None."""
    spec = plan.kv
    if spec is None:
        return None
    reason = formats.get(spec.format).skip(spec)
    if reason is not None:
        return f"kv.{reason}"
    if learned(spec) or shares(spec):
        return f"kv.format={spec.format}: is fitted to a whole tensor, and a cache grows by tokens"
    for name, attention in attentions(model).items():
        if "ALL_ATTENTION_FUNCTIONS" not in inspect.getsource(type(attention)):
            return (
                f"kv.bits={spec.bits:g}: {name} ({type(attention).__name__}) does not take its "
                "attention function from transformers' registry; only kv.bits=16 can be measured"
            )
        width = getattr(attention, "head_dim", None)
        if isinstance(width, int) and not spec.fits(width):
            return (
                f"kv.group_size={spec.group_size} does not divide the head of {width} numbers of "
                f"{name}; use -1 (the whole head) or a divisor"
            )
    return None


def install(model: Model, plan: Plan) -> None:
    """Make attention in ``model`` keep keys and values as ``plan.kv`` says.

    The configuration of ``model``, its own as that of every copy, names our attention function.
    """
    if plan.kv is None:
        return
    model.plan = plan
    for attention in attentions(model).values():
        attention.kv_quantizer = KVQuantizer(plan.kv)
        config: Any = attention.config
        if not config._attn_implementation.startswith(PREFIX):
            config._attn_implementation = _registered(config._attn_implementation)


def installed(model: Model) -> dict[str, QuantSpec]:
    """What each attention module of ``model`` keeps its cache as, by name; those that do."""
    found = {}
    for name, module in model.module.named_modules():
        if isinstance(module, KVQuantizer):
            owner = name.rpartition(".")[0]
            config: Any = model.get(owner).config
            if config._attn_implementation.startswith(PREFIX):
                found[owner] = module.spec
    return found


def _registered(inner: str) -> str:
    """The name of our attention function that calls ``inner``, known to transformers."""
    name = PREFIX + inner
    AttentionInterface.register(name, partial(_attention, inner))
    AttentionMaskInterface.register(name, AttentionMaskInterface()[inner])
    return name


def _attention(
    inner: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *rest: Any,
    **more: Any,
) -> Any:
    """The attention function ``inner`` on quantized ``key`` and ``value``."""
    quantize: Any = module.kv_quantizer
    own = sys.modules[type(module).__module__]
    eager: Callable[..., Any] | None = getattr(own, "eager_attention_forward", None)
    attend: Any = AttentionInterface().get_interface(inner, eager)
    return attend(module, query, quantize(key), quantize(value), *rest, **more)
