"""So many stored bits a weight, given where they help most: exact mixed precision from scores.

The scores are Records of ``policy=only`` points, one for each layer and option; a new budget costs
no new ones. Each layer takes the option that makes the sum of scores least under the budget
(:mod:`bitsweep.policies.allocation`). That losses add up is an assumption: the Record keeps the
sum, so that it stands beside what was measured.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bitsweep.errors import Refused, UserError
from bitsweep.policies.allocation import allocate
from bitsweep.policies.choice import Asked, Choice, fit
from bitsweep.policies.only import EACH, KINDS, short, targets
from bitsweep.policies.rules import ALL_LINEAR, ROLES, Rule
from bitsweep.policies.sensitivity import LOSS, Scores, scores
from bitsweep.record import Record
from bitsweep.spec import PER_TENSOR, QuantSpec
from bitsweep.store import Store

if TYPE_CHECKING:
    from bitsweep.artifacts import Artifacts
    from bitsweep.models import Model

PREDICTED = (LOSS, "kl_mean")
"""Kinds of scores whose sum the Record keeps."""

Unit = tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """``average_bits`` a weight of the covered layers, scales and zeros included, at most.

    ``options``: widths that a layer may take; group size, format and all else are the sweep's.
    ``roles``: the layers that share the budget, ``linear`` being those of the blocks; others stay
    as they are. ``by``: what takes one width together, a layer, role or block. ``scores``: folder
    of an experiment whose Records score them. ``score``: what is minimised, ``loss`` (nats a
    token), ``kl_mean`` or any metric of those Records; without a text's name, of the first text.

    Scores of the text that the point is measured on have seen what they are judged by. For a number
    to quote, score on another text: ``data=text data.path=FILE`` in the sweep of ``policy=only``.

    What a method stores beyond its format (GPTQ's order of columns without static groups, masks of
    a pruned layer) is not in ``average_bits``; the row's ``bits_per_weight`` has it.
    """

    average_bits: float
    options: tuple[float, ...] = (2, 3, 4, 8)
    roles: tuple[str, ...] = (ALL_LINEAR,)
    by: str = "layer"
    score: str = "kl_mean"
    scores: str = "results/sensitivity"

    untie: ClassVar[bool] = False
    decides: ClassVar[frozenset[str]] = frozenset({"bits"})

    def __post_init__(self) -> None:
        if not 0 < self.average_bits <= 16:
            raise UserError(f"policy.average_bits={self.average_bits:g}: takes over 0 and up to 16")
        if not self.options or len(set(self.options)) < len(self.options):
            raise UserError(f"policy.options=[{self._options}]: takes different widths in bits")
        if self.by not in KINDS:
            raise UserError(f"policy.by={self.by}: takes {', '.join(KINDS)}")
        for role in self.roles:
            if role not in (*ROLES, ALL_LINEAR):
                raise UserError(
                    f"policy.roles=[{role}]: no such role; {', '.join((ALL_LINEAR, *ROLES))}"
                )

    @property
    def _options(self) -> str:
        return ",".join(f"{bits:g}" for bits in self.options)

    @property
    def name(self) -> str:
        more = "" if self.roles == (ALL_LINEAR,) else f" {'+'.join(self.roles)}"
        more += "" if self.by == "layer" else f" by {self.by}"
        more += "" if self.score == Budget.score else f" {self.score}"
        return f"budget {self.average_bits:g} of {self._options}{more}"

    def choose(self, model: Model, asked: Asked) -> Choice:
        """The widths with the least sum of scores.

        Raises:
            Refused: scores are missing (the message has the command that makes them), or the
                narrowest option of every layer is over the budget.
        """
        units = list(self._units(model))
        specs = [
            [dict.fromkeys(unit, _with(asked.axes, bits)) for bits in self.options]
            for unit in units
        ]
        stored = [[_stored(each, model, asked) for each in options] for options in specs]
        known = scores(self._records(asked.artifacts), asked.columns, model.checkpoint)
        name, values = self._scored(known, units, asked)
        weights = sum(self._weights(unit, model) for unit in units)
        budget = int(self.average_bits * weights)
        chosen = allocate(stored, values, budget)
        if chosen is None:
            least = sum(map(min, stored)) / weights
            raise Refused(
                f"policy.average_bits={self.average_bits:g}: options=[{self._options}] store at "
                f"least {least:.4f} bits a weight, scales and zeros included; raise "
                "policy.average_bits or group_size, or give policy.options a narrower width"
            )
        spent = sum(options[k] for options, k in zip(stored, chosen, strict=True))
        picks = [(frozenset(u), self.options[k]) for u, k in zip(units, chosen, strict=True)]
        return Choice(
            specs={
                layer: spec
                for options, k in zip(specs, chosen, strict=True)
                for layer, spec in options[k].items()
            },
            notes={
                "average_bits": self.average_bits,
                "spent_bits": round(spent / weights, 6),
                "slack_bytes": (budget - spent) // 8,
                "score": name,
                "predicted": {
                    kind: sum(known.values[pick][kind] for pick in picks)
                    for kind in known.names
                    if kind.partition("/")[0] in PREDICTED
                },
            },
        )

    def _units(self, model: Model) -> Iterator[Unit]:
        """The covered layers of each target, in order of execution; a tied pair together."""
        rules = [Rule(role=role) for role in self.roles]
        count = len(model.blocks)
        for names in targets(model, self.by).values():
            covered = {
                name for name in names if any(r.matches(model.layers[name], count) for r in rules)
            }
            pair = {name for name in names if model.tied and model.layers[name].block is None}
            if covered & pair:
                covered |= pair
            if covered:
                yield tuple(name for name in names if name in covered)

    def _weights(self, unit: Unit, model: Model) -> int:
        return sum(_count(model, name) for name in _once(unit, model))

    def _records(self, artifacts: Artifacts) -> list[Record]:
        """Those of ``scores``, read again only where a file of them has changed."""
        folder = Path(self.scores, "records").absolute()
        if not folder.is_dir():
            return []
        files = [(path.name, path.stat()) for path in sorted(folder.glob("*.json"))]
        state = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
        key = {"folder": folder, "files": state}
        return artifacts.remember("scores", key, Store(self.scores).records)

    def _scored(
        self, known: Scores, units: list[Unit], asked: Asked
    ) -> tuple[str, list[list[float]]]:
        """The full name of the score, and its values by unit and option."""
        wanted = [(frozenset(unit), bits) for unit in units for bits in self.options]
        missing = [key for key in wanted if key not in known.values]
        if missing:
            part, bits = missing[0]
            first = next(unit for unit in units if frozenset(unit) == part)
            raise Refused(
                f"policy=budget: {self.scores} has no score of {len(missing)} of {len(wanted)} "
                f"{self.by}s × bits, first {short(first[0])} at {bits:g} bits; measure them once: "
                f"{self._command(asked)}"
            )
        name = known.name(self.score)
        if name is None:
            raise Refused(
                f"policy.score={self.score}: the Records in {self.scores} do not all have it; "
                f"they have {', '.join(known.names) or 'no metric in common'}"
            )
        if len(known.protocols[name]) > 1:
            raise Refused(
                f"policy.scores={self.scores}: {name} was measured under "
                f"{len(known.protocols[name])} protocols there; give each an experiment of its own"
            )
        rows = [[known.values[frozenset(u), bits][name] for bits in self.options] for u in units]
        return name, rows

    def _command(self, asked: Asked) -> str:
        """The sweep that makes the scores, as the point's own command with another policy.

        Its probes are the point's, unless those (size, latency) score nothing.
        """
        ours = ["policy", "bits", "experiment", "results_dir", "force"]
        ours += ["probes"] * (not asked.judged)
        rest = [
            word
            for word in shlex.split(asked.command)[2:]
            if word.partition("=")[0].partition(".")[0].lstrip("+~") not in ours
        ]
        sweep = ["policy=only", f"policy.only={EACH}{self.by}", f"bits={self._options}"]
        folder = Path(self.scores)
        place = [f"experiment={folder.name}"]
        place += [f"results_dir={folder.parent}"] * (folder.parent != Path("results"))
        own = any(word.startswith(("probes", "+experiments=")) for word in rest)
        if not (own and asked.judged):
            sweep.append("probes=sensitivity")
        return shlex.join(["bitsweep", "run", "-m", *rest, *sweep, *place])


def _with(axes: QuantSpec, bits: float) -> QuantSpec:
    return dataclasses.replace(axes, bits=int(bits) if bits == int(bits) else bits)


def _count(model: Model, name: str) -> int:
    rows, columns = model.layers[name].shape
    return rows * columns


def _once(unit: Unit, model: Model) -> list[str]:
    """The layers of ``unit`` that are tensors of their own: a tied head is not."""
    return [name for name in unit if not (model.tied and model.layers[name].role == "head")]


def _stored(specs: Mapping[str, QuantSpec], model: Model, asked: Asked) -> int:
    """Bits that the layers of ``specs`` take, each as the method stores it."""
    fitted, _ = fit(specs, model, asked.misfit)
    return sum(
        stored_bits(model.layers[name].shape, asked.resolve(fitted[name]))
        for name in _once(tuple(specs), model)
    )


@functools.cache
def stored_bits(shape: tuple[int, int], spec: QuantSpec) -> int:
    """Bits of a weight ``(out, in)`` in ``spec``: codes, scales, zeros, codebooks, in whole bytes.

    What ``QuantTensor.nbytes`` says of it, from the parameters that one row would have.
    """
    import torch

    from bitsweep import formats
    from bitsweep.packing import packed_bytes

    family = formats.get(spec.format)
    reason = family.skip(spec)
    if reason is not None:
        raise Refused(f"policy.options: {reason}")
    rows, columns = shape
    row = torch.linspace(-1, 1, columns).unsqueeze(0)
    shared = family.shared(row, spec)
    repeats = 1 if spec.group_size == PER_TENSOR else rows
    width = family.params_bits(spec)
    total = family.packed_bytes(rows * columns // family.vector(spec), spec)
    for name, value in formats.fit(row, spec).items():
        total += packed_bytes(value.numel() * (1 if name in shared else repeats), width[name])
    return 8 * total
