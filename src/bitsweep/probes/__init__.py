"""Probes: one measurement a file. A probe looks at a finished model and never changes it.

``conf/probes/*.yaml`` is a dict from a name to a probe's ``_target_`` and options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from bitsweep.errors import UserError
from bitsweep.record import Kind, Measurement

if TYPE_CHECKING:
    from bitsweep.artifacts import Artifacts
    from bitsweep.data import Data, Reference
    from bitsweep.models import Model


Needs = Literal["shapes", "weights", "training"]
"""What a probe needs of a model: the shapes of its tensors, any weights, or trained ones."""


class Probe(Protocol):
    """A frozen dataclass whose fields are its options.

    ``version`` grows with every change that moves a number; ``kind`` says into which Record the
    metrics go: ``quality``, or ``timing`` for what depends on the machine. A ``timing``
    probe takes any weights, a ``quality`` one trained ones, unless it says otherwise by ``needs``,
    a ClassVar of :data:`Needs`.
    """

    version: ClassVar[int]
    kind: ClassVar[Kind]

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        """What besides the model and ``version`` decides the numbers: part of the run_id."""
        ...

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        """Measure ``model``, and what differs from the full-precision model of ``reference``."""
        ...


def check_counts(key: str, probe: Any, *options: str) -> None:
    """Raises UserError for one of ``options`` of ``probes.<key>`` below 1; None asks for all."""
    for name in options:
        value = getattr(probe, name)
        if value is not None and value < 1:
            raise UserError(f"probes.{key}.{name}={value}: give at least 1")


def needs(probe: Probe) -> Needs:
    """What ``probe`` needs of a model."""
    usual: Needs = "weights" if probe.kind == "timing" else "training"
    found: Needs = getattr(probe, "needs", usual)
    return found
