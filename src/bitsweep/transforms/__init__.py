"""Transforms change the full-precision model before rounding and leave one that still runs.

One algorithm per file, a frozen dataclass whose fields are its options, and a YAML of the same
defaults in ``conf/transforms``. ``transforms=[rotate,smooth]`` applies them in that order. A
transform chooses no codes; the Plan is made for the model that it leaves.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from bitsweep.calibration import Calibration
from bitsweep.models import Model


class Transform(Protocol):
    """What the story of a run asks of a transform.

    ``version`` changes whenever its result does. ``exact`` promises that the full-precision model
    computes the same function afterwards (logits to 1e-4 of their range in float32). ``calibrated``
    says whether it looks at calibration text, ``seeded`` whether it draws random numbers, which it
    then takes from :func:`bitsweep.methods.seeded`; both may depend on its options.
    """

    version: ClassVar[int]
    exact: ClassVar[bool]

    @property
    def calibrated(self) -> bool: ...

    @property
    def seeded(self) -> bool: ...

    def skip(self, model: Model) -> str | None:
        """Why it cannot be done to ``model`` (with the key to change), or None.

        ``model`` may be a skeleton; it has the structure that the transforms before left, and
        their names in ``model.transformed``.
        """

    def reshape(self, model: Model) -> None:
        """Do to the *structure* of ``model``, a skeleton's copy, what the transform does to it.

        Which layers there are, their shapes, whether embedding and head are tied. No weight is
        looked at: the Plan is made from this before any is read.
        """

    def __call__(self, model: Model, calibration: Calibration) -> Model:
        """Transform ``model``, a copy of its own: parameters are replaced, never written into.

        ``calibration`` is that of ``model`` as it comes in.
        """
