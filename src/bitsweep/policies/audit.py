"""The audit: every Plan is checked against what the layers became."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitsweep.spec import Plan

if TYPE_CHECKING:
    from bitsweep.models import Model


def audit(model: Model, plan: Plan) -> dict[str, str]:
    """What each quantizable module of ``model`` really is now, by name; checked against ``plan``.

    Raises:
        RuntimeError: a planned layer was not quantized as planned, or another one was. That is a
            mistake in a method, never a user's, and no number of such a point is kept.
    """
    from bitsweep import kv
    from bitsweep.tensor import QuantTensor

    became: dict[str, str] = {}
    for name in model.layers:
        module = model.get(name)
        quant = getattr(module, "quant", None)
        spec = quant.spec if isinstance(quant, QuantTensor) else None
        planned = plan.layers.get(name)
        if (spec is None) != (planned is None):
            was = "left as it was" if spec is None else f"quantized to {spec}"
            raise RuntimeError(f"{name} was {was}, the plan says {planned or 'to keep it'}")
        if spec is None or planned is None:
            became[name] = str(module.weight.dtype)
            continue
        if spec != planned.weight:
            raise RuntimeError(f"{name} became {spec}, the plan says {planned.weight}")
        inputs = getattr(getattr(module, "input_quantizer", None), "spec", None)
        if inputs != planned.input:
            raise RuntimeError(f"{name} has inputs {inputs}, the plan says {planned.input}")
        if name in model.masks and not _gone(quant, model.masks[name]):
            raise RuntimeError(f"{name}: weights that were pruned came back")
        became[name] = str(planned)
    caches = kv.installed(model)
    for name in {**caches, **(kv.attentions(model) if plan.kv else {})}:
        if caches.get(name) != plan.kv:
            found = caches.get(name, "full precision")
            raise RuntimeError(f"{name} has a cache of {found}, the plan says {plan.kv}")
        became[f"{name} (cache)"] = str(plan.kv)
    return became


def _gone(quant: Any, mask: Any) -> bool:
    """Whether all that ``mask`` prunes is 0 in ``quant``."""
    return quant.mask is not None and not bool((quant.mask & ~mask.to(quant.mask.device)).any())
