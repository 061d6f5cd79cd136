"""Checkpoints: where they come from, how they are loaded, what their parts are called.

``load`` reads a checkpoint; ``skeleton`` makes the same model without weights from its
configuration alone, to decide plans and names of points before anything heavy is read. Neither
import costs torch until it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitsweep.models.source import Layer, ModelSource

if TYPE_CHECKING:
    from bitsweep.artifacts import Artifacts
    from bitsweep.models.model import Model

__all__ = ["Layer", "Model", "ModelSource", "base", "load", "skeleton"]


def load(source: ModelSource, artifacts: Artifacts) -> Model:
    """The checkpoint of ``source``, read once for all who ask; treat it as read-only, or copy it.

    Raises:
        UserError: ``model.path``, ``model.dtype``, ``model.device``, ``model.revision`` or
            ``model.trust_remote_code`` cannot be followed; one line.
    """
    from bitsweep.models import loading

    return loading.load(source, artifacts)


def skeleton(source: ModelSource, artifacts: Artifacts) -> Model:
    """The same model on the meta device, from its configuration: layers, roles, tying, identity.

    A hub checkpoint that is not here yet is not downloaded for it: only its small files are.

    Raises:
        UserError: as :func:`load`, as far as it shows without weights.
    """
    from bitsweep.models import loading

    return loading.skeleton(source, artifacts)


def base(source: ModelSource, artifacts: Artifacts) -> ModelSource | None:
    """The full-precision checkpoint that a quantized one was made of, where it is still there."""
    from bitsweep.models import quantized

    return quantized.base_of(source, artifacts)


def __getattr__(name: str) -> Any:
    if name == "Model":
        from bitsweep.models.model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
