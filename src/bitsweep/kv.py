"""The cache of keys and values, quantized as attention keeps it."""

from __future__ import annotations

from bitsweep.models import Model
from bitsweep.spec import Plan


def skip(plan: Plan, model: Model) -> str | None:
    """Why the cache that ``plan`` asks for cannot be made (with the key to change), or None."""
    return None if plan.kv is None else "kv.bits: the cache stays at 16 bits for now"


def install(model: Model, plan: Plan) -> None:
    """Make attention in ``model`` keep keys and values as ``plan.kv`` says."""
