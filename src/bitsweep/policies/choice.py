"""What a policy is asked and what it answers; groups that do not divide a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bitsweep.artifacts import Artifacts
from bitsweep.errors import Refused
from bitsweep.spec import PER_CHANNEL, QuantSpec

if TYPE_CHECKING:
    from bitsweep.models import Model


def itself(spec: QuantSpec) -> QuantSpec:
    """A method that stores just what it is asked for."""
    return spec


@dataclass(frozen=True)
class Asked:
    """What a point asks of its policy.

    ``axes`` are the sweep's, for whatever the policy leaves open; ``misfit`` as in the
    configuration. ``resolve`` says what the method stores when asked for a spec, ``columns`` are
    the point's, to find Records of its like, and ``command`` makes it; ``judged`` says whether its
    probes look at quality. ``artifacts`` keep what was read for one point for the next.
    """

    axes: QuantSpec
    misfit: str = "error"
    resolve: Callable[[QuantSpec], QuantSpec] = itself
    columns: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    judged: bool = True
    artifacts: Artifacts = field(default_factory=lambda: Artifacts(None))


@dataclass(frozen=True)
class Choice:
    """What a policy wants of each layer, by name; a layer that is absent stays as it is.

    ``input_bits`` is the width of a layer's inputs where the policy has its own. ``notes`` are
    what the Record says of how the Plan was found; they decide nothing.
    """

    specs: Mapping[str, QuantSpec]
    input_bits: Mapping[str, float | None] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Chooser(Protocol):
    """What :func:`bitsweep.policies.make` asks of a policy.

    ``name`` is what a table calls it. ``decides`` names the axes that it chooses itself, so that
    the point's own say nothing. ``untie`` gives a tied head its own matrix.
    """

    @property
    def name(self) -> str: ...

    @property
    def untie(self) -> bool: ...

    @property
    def decides(self) -> frozenset[str]: ...

    def choose(self, model: Model, asked: Asked) -> Choice:
        """What becomes of each layer of ``model`` (a skeleton will do)."""
        ...


def fit(
    chosen: Mapping[str, QuantSpec], model: Model, misfit: str
) -> tuple[dict[str, QuantSpec], dict[str, str]]:
    """Apply ``misfit`` to each layer whose row the group does not divide; also which these are.

    Raises:
        Refused: there is one and ``misfit=error``.
    """
    fitted, misfits = dict(chosen), {}
    wrong = [name for name in chosen if not chosen[name].fits(model.layers[name].shape[1])]
    if wrong and misfit == "error":
        raise Refused(_misfit_reason(wrong, chosen, model))
    for name in wrong:
        misfits[name] = misfit
        change: dict[str, Any] = (
            {"group_size": PER_CHANNEL} if misfit == "per_channel" else {"ragged": True}
        )
        fitted[name] = dataclasses.replace(chosen[name], **change)
    return fitted, misfits


def _misfit_reason(wrong: list[str], chosen: Mapping[str, QuantSpec], model: Model) -> str:
    first, group = wrong[0], chosen[wrong[0]].group_size
    widths = sorted({model.layers[name].shape[1] for name in wrong})
    others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    fits = fitting_groups(model.layers[name].shape[1] for name in chosen)
    advice = f"try {', '.join(map(str, fits))}, " if fits else "try "
    return (
        f"group_size={group} does not divide in_features={','.join(map(str, widths))} of "
        f"{first}{others}; {advice}-1 (per channel), or misfit=per_channel|ragged"
    )


def fitting_groups(widths: Iterable[int]) -> list[int]:
    """The usual group sizes that divide every one of ``widths``, largest three of them."""
    rows = list(widths)
    usual = (256, 128, 64, 32, 16, 8, 4, 2)
    return [g for g in usual if all(width % g == 0 for width in rows)][:3]
