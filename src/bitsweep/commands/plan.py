"""``plan``: what a sweep would launch, why not the rest, and about how long it takes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from bitsweep import cli
from bitsweep.commands.launch import check_paper, named, parser
from bitsweep.compose import CONFIG_NAME, experiment_overrides, hydra_app, normal, one_line_errors
from bitsweep.composer import Composer
from bitsweep.probes import needs
from bitsweep.progress import duration
from bitsweep.store import Store

if TYPE_CHECKING:
    from bitsweep.artifacts import Artifacts
    from bitsweep.record import Record
    from bitsweep.survey import Candidate

History = dict[tuple[str, str], list["Record"]]
"""Good Records by model and method."""

SECONDS_PER_MILLION = 2.5
"""Without history: what measuring costs per million parameters, from the reference on 2 cores."""


SECONDS_OF_TIMES = 20
SECONDS_OF_TIMES_PER_MILLION = 0.1
"""The same of a point whose quality is not asked: what loading, packing and timing it takes."""

SECONDS_OF_SIZE = 2.0
"""Of a point that needs no weights, whatever its size."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one point, and whether Records of its like say so."""

    wall_s: float
    known: bool


def plan(argv: list[str]) -> int:
    """``bitsweep plan NAME`` or ``bitsweep plan KEY=A,B``."""
    given = parser("plan").parse_intermixed_args(argv)
    overrides = list(given.overrides)
    if not overrides or "=" not in overrides[0]:
        name, rest = named(overrides, "plan")
        check_paper(name, rest)
        overrides = [*experiment_overrides(name), *rest]
    from bitsweep.artifacts import Artifacts, cache_root

    artifacts = Artifacts(cache_root())
    _print(_survey(overrides, given.config_dir, artifacts), artifacts)
    return cli.OK


def _survey(overrides: list[str], config_dir: str | None, artifacts: Artifacts) -> list[Candidate]:
    from hydra.types import RunMode

    from bitsweep.survey import survey

    overrides = normal(overrides)
    with hydra_app(overrides, config_dir) as hydra, one_line_errors():
        master = hydra.compose_config(
            config_name=CONFIG_NAME,
            overrides=[*overrides, "hydra.mode=MULTIRUN"],
            run_mode=RunMode.MULTIRUN,
        )
        return survey(Composer(hydra.config_loader), master, overrides, artifacts, config_dir)


def _print(candidates: Sequence[Candidate], artifacts: Artifacts) -> None:
    history = _history(candidates)
    total, rough = 0.0, False
    names = [f"{candidate.job.point.model.name} {candidate.name}" for candidate in candidates]
    width = max(map(len, names))
    for number, (candidate, name) in enumerate(zip(candidates, names, strict=True), 1):
        note = candidate.reason
        if candidate.fate == "run":
            cost = estimate(candidate, history, artifacts)
            total += cost.wall_s
            rough |= not cost.known
            note = f"about {duration(cost.wall_s)}"
        note = "; ".join(part for part in (note, slack(candidate)) if part)
        print(f"{number:>3}  {candidate.fate:<8}{name:<{width}}  {note}".rstrip())
    fates = Counter(candidate.fate for candidate in candidates)
    counts = [f"{fates['run']} to run"]
    counts += [f"{fates[fate]} {fate}" for fate in ("done", "refused", "merged") if fates[fate]]
    source = (
        "rough: by the number of parameters where no Record tells"
        if rough
        else "median of earlier Records"
    )
    tail = f"; about {duration(total)} ({source})" if fates["run"] else ""
    print(f"{len(candidates)} points: {', '.join(counts)}{tail}")


def slack(candidate: Candidate) -> str:
    """Of a budget: what its allocation stores, and what it leaves; empty for other policies."""
    notes = {} if candidate.prepared is None else candidate.prepared.plan.notes
    if "spent_bits" not in notes:
        return ""
    return f"{notes['spent_bits']:.4f} bits per weight, {notes['slack_bytes']} bytes to spare"


def _history(candidates: Iterable[Candidate]) -> History:
    """All Records below the results folders concerned; broken ones are the report's to name."""
    roots = {candidate.job.point.results_dir for candidate in candidates}
    folders = sorted({path.parent for root in roots for path in root.glob("*/records")})
    found: History = defaultdict(list)
    for folder in folders:
        for record in Store(folder).records(warn=lambda line: None):
            if record.status == "ok" and "total" in record.timings:
                found[record.point["model"], record.point["method"]].append(record)
    return found


def estimate(candidate: Candidate, history: History, artifacts: Artifacts) -> Estimate:
    """Median of Records with the same model and method, of the same experiment where there are.

    Without any, by the number of parameters: said to be rough.
    """
    from bitsweep import models

    point = candidate.job.point
    if candidate.prepared is not None and candidate.prepared.weightless:
        return Estimate(SECONDS_OF_SIZE, False)
    like = history.get((point.model.name, point.method_name), [])
    like = [record for record in like if record.experiment == point.experiment] or like
    if like:  # the later Record of a point has the time of both
        spent: dict[str, float] = {}
        for record in like:
            wall_s = record.timings["total"]["wall_s"]
            spent[record.point_id] = max(wall_s, spent.get(record.point_id, 0))
        return Estimate(median(spent.values()), True)
    parameters = models.skeleton(point.model, artifacts).parameters
    if all(needs(probe) != "training" for probe in point.probes.values()):
        return Estimate(SECONDS_OF_TIMES + SECONDS_OF_TIMES_PER_MILLION * parameters / 1e6, False)
    return Estimate(1 + SECONDS_PER_MILLION * parameters / 1e6, False)
