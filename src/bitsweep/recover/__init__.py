"""Recovery works on the quantized model: what rounding cost is won back, or more is taken away.

One algorithm per file, a frozen dataclass whose fields are its options, and a YAML of the same
defaults in ``conf/recover``. ``recover=[low_rank,distill]`` applies them in that order. The Plan
still holds afterwards: the audit checks it again.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from bitsweep.calibration import Calibration
from bitsweep.models import Model
from bitsweep.spec import Plan


class Recovery(Protocol):
    """What the story of a run asks of a recovery.

    ``version`` changes whenever its result does. ``calibrated`` says whether it looks at
    calibration text, ``seeded`` whether it draws random numbers, which it then takes from
    :func:`bitsweep.methods.seeded`; both may depend on its options. ``calibration.model`` is the
    full-precision model, transformed: the teacher.
    """

    version: ClassVar[int]

    @property
    def calibrated(self) -> bool: ...

    @property
    def seeded(self) -> bool: ...

    def skip(self, plan: Plan) -> str | None:
        """Why it cannot follow what ``plan`` makes (with the key to change), or None."""

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        """Mend ``model``, quantized and its own: modules are replaced, tensors never written."""
