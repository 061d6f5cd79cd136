"""Which points a multirun really launches, and what its points share while it lasts.

:func:`survey` composes, validates and prepares every point before the first one starts.
A :class:`Session` is Hydra's task function: it holds the artifacts, runs a point, says how it went.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bitsweep import config, pace, tracking
from bitsweep.artifacts import Artifacts, cache_root
from bitsweep.axes import AXES
from bitsweep.compose import (
    CONFIG_NAME,
    check_choices,
    hydra_app,
    normal,
    one_line_errors,
    typed,
)
from bitsweep.config import Job, command_line
from bitsweep.errors import Refused, UserError
from bitsweep.grid import expand, literal
from bitsweep.policies.only import EACH, Only, targets
from bitsweep.progress import Progress
from bitsweep.record import Record
from bitsweep.store import Store, uncollected

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bitsweep.run import Prepared

Fate = Literal["run", "done", "refused", "merged"]
ONLY_EACH = f"policy.only={EACH}"


@dataclass(frozen=True)
class Candidate:
    """One point of a grid and what becomes of it; ``reason`` says why it is not launched."""

    overrides: list[str]
    job: Job
    fate: Fate
    reason: str = ""
    prepared: Prepared | None = None

    @property
    def label(self) -> str:
        """In a few words: ``rtn w4g32 uniform``."""
        return str((self.prepared or self.job.point).columns()["label"])


@dataclass(frozen=True)
class Outcome:
    """What a launched point ended in; it travels back from whatever launcher ran it."""

    label: str
    records: list[Record]
    wall_s: float
    error: str | None = None

    @property
    def failed(self) -> bool:
        return self.error is not None or any(r.status == "failed" for r in self.records)


@uncollected()
def survey(
    config_loader: Any,
    master: DictConfig,
    arguments: Sequence[str],
    artifacts: Artifacts,
    config_dir: str | None = None,
) -> list[Candidate]:
    """Every point of the sweep with its fate. Nothing is measured and nothing written.

    ``config_dir`` is the user's own folder of groups, a part of each point's command.

    Raises:
        UserError: a point's configuration is wrong; the first one found.
    """
    from omegaconf import OmegaConf

    grids = OmegaConf.to_container(master, resolve=False).get("grids")  # type: ignore[union-attr]
    seen: dict[str, Candidate] = {}
    checked: set[str] = set()
    found = []
    points = [
        overrides
        for given in expand(grids, arguments, config_loader)
        for overrides in _each(given, config_loader, master, artifacts)
    ]
    for overrides in points:
        job = _composed(overrides, config_loader, master, config_dir)
        _check_once(job, artifacts, checked)
        candidate = _judge(overrides, job, artifacts, seen)
        if candidate.prepared is not None:
            seen.setdefault(_name(candidate.prepared), candidate)
        found.append(candidate)
    folders = sorted({str(candidate.job.point.folder) for candidate in found})
    if len(folders) > 1:
        raise UserError(
            f"experiment, results_dir: the Records of a sweep go to one folder, not to "
            f"{', '.join(folders)}; launch one after another"
        )
    return found


def _composed(
    overrides: list[str], config_loader: Any, master: DictConfig, config_dir: str | None = None
) -> Job:
    check_choices(overrides)  # those of grids
    with one_line_errors():
        composed = config_loader.load_sweep_config(master, overrides)
    return config.job(composed, _command(overrides, config_dir))


def _command(overrides: Sequence[str], config_dir: str | None) -> str:
    """What to type to have one point of a sweep again."""
    own = [] if config_dir is None else ["--config-dir", config_dir]
    return command_line("run", [*typed(overrides), *own])


def _each(
    overrides: list[str], config_loader: Any, master: DictConfig, artifacts: Artifacts
) -> list[list[str]]:
    """``policy.only=each:layer`` spelt out: the overrides of one point for each of them."""
    key, _, _ = ONLY_EACH.partition(EACH)
    plain = [re.sub(r"['\\]", "", item) for item in overrides]  # Hydra quotes and escapes colons
    here = [i for i, item in enumerate(plain) if item.startswith(ONLY_EACH)]
    if not here:
        return [overrides]
    from bitsweep import models
    from bitsweep.run import reshaped

    point = _composed(overrides, config_loader, master).point
    if not isinstance(point.policy, Only) or point.policy.each is None:
        return [overrides]
    try:
        model = reshaped(point, models.skeleton(point.model, artifacts))
    except Refused:
        return [overrides]  # one refused point says it for all
    names = targets(model, point.policy.each)
    before, after = overrides[: here[-1]], overrides[here[-1] + 1 :]
    return [[*before, f"{key}{literal(name)}", *after] for name in names]


def _check_once(job: Job, artifacts: Artifacts, checked: set[str]) -> None:
    """Look at the machine once for all points that ask it the same questions."""
    point = job.point
    read = point.calibration if point.calibrated else None
    key = repr((point.model.device, point.data, point.folder, read))
    if key not in checked:
        config.check(job, artifacts)
        checked.add(key)


def _judge(
    overrides: list[str], job: Job, artifacts: Artifacts, seen: dict[str, Candidate]
) -> Candidate:
    from bitsweep.run import prepare

    _set_threads(job)
    try:
        prepared = prepare(job.point, artifacts)
    except Refused as refusal:
        return Candidate(overrides, job, "refused", str(refusal))
    twin = seen.get(_name(prepared))
    if twin is not None:
        reason = f"same point as {twin.label}: {_difference(job, twin.job)}"
        return Candidate(overrides, job, "merged", reason, prepared)
    store = Store(job.point.folder)
    done = all(store.done(run_id) for run_id in prepared.run_ids.values()) and not job.force
    return Candidate(overrides, job, "done" if done else "run", "", prepared)


def _name(prepared: Prepared) -> str:
    return " ".join([prepared.point_id, *prepared.run_ids.values()])


def _difference(job: Job, other: Job) -> str:
    """Why two configurations are one point: ``hqq ignores symmetric``."""
    one, two = job.point, other.point
    differ = [axis for axis in AXES if _axis(one, axis) != _axis(two, axis)]
    differ += ["policy"] * (one.policy.name != two.policy.name)
    ignored = [axis for axis in differ if axis in one.method.ignores]
    if differ and ignored == differ:
        return f"{one.method_name} ignores {', '.join(differ)}"
    if differ:
        return f"{', '.join(differ)} makes no difference to this model's plan"
    return "listed twice"


def _axis(point: Any, axis: str) -> Any:
    return getattr(point.spec if hasattr(point.spec, axis) else point, axis)


def _set_threads(job: Job) -> None:
    if job.threads is not None:
        import torch

        torch.set_num_threads(job.threads)


class Halt(BaseException):
    """Ends a launch now: after an Exception a launcher goes on with the next point."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


@dataclass
class Session:
    """What the points of one launch share. Calling it runs one point (Hydra's task function)."""

    artifacts: Artifacts = field(default_factory=lambda: Artifacts(cache_root()))
    progress: Progress = field(default_factory=Progress)
    candidates: list[Candidate] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    config_dir: str | None = None
    _mirrors: dict[str, tracking.Mirrors] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """A launcher that starts processes gives each its own artifacts over the same cache."""
        return {**self.__dict__, "artifacts": Artifacts(self.artifacts.root), "_mirrors": {}}

    def choose(
        self, config_loader: Any, master: DictConfig, arguments: Sequence[str]
    ) -> list[list[str]]:
        """The overrides of the points to launch; refused ones become rows now."""
        from bitsweep.run import refused_record

        started = time.perf_counter()
        self.candidates = survey(config_loader, master, arguments, self.artifacts, self.config_dir)
        store = Store(self.candidates[0].job.point.folder)
        store.prepare()
        for candidate in self.candidates:
            if candidate.fate == "refused":
                record = refused_record(candidate.job.point, candidate.reason)
                known = store.get(record.run_id)
                if known is None or known.reason != record.reason:
                    store.put(record, [])
        todo = [candidate for candidate in self.candidates if candidate.fate == "run"]
        self.progress.begin(self.candidates, time.perf_counter() - started)
        return [candidate.overrides for candidate in todo]

    def __call__(self, task_config: DictConfig) -> Outcome:
        """Run one composed point; whatever goes wrong is its Outcome's, the sweep goes on.

        Raises:
            Halt: its Record could not be written, and the next one's could not either.
        """
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        hydra = HydraConfig.get()
        overrides = [str(item) for item in hydra.overrides.task]
        number = 0
        for candidate in self.candidates:
            number += candidate.fate == "run"
            if candidate.overrides == overrides:
                return self._or_halt(candidate, number)
        values = OmegaConf.to_container(task_config, resolve=True)
        taken = {str(key): str(value) for key, value in hydra.runtime.choices.items()}
        assert isinstance(values, dict)
        plain = {str(key): value for key, value in values.items()}
        job = config.parse(plain, taken, _command(overrides, self.config_dir))
        candidate = Candidate(overrides, job, "run")  # another sweeper's: not surveyed
        return self._or_halt(candidate, None)

    def _or_halt(self, candidate: Candidate, number: int | None) -> Outcome:
        try:
            return self.execute(candidate, number)
        except OSError as error:
            raise Halt(error) from error

    def execute(self, candidate: Candidate, number: int | None = 1, alone: bool = False) -> Outcome:
        """Run the missing Records of one valid point, mirror them, print its line.

        ``number`` of those that are launched, if that is known. ``alone``: what went wrong by the
        user's mistake is the caller's to say.
        """
        from bitsweep.run import execute

        job, label = candidate.job, candidate.label
        _set_threads(job)
        store = Store(job.point.folder)
        prepared = candidate.prepared or self._prepared(job)
        run_ids = () if prepared is None else prepared.run_ids.values()
        new = {run_id for run_id in run_ids if job.force or not store.done(run_id)}
        started = time.perf_counter()
        self.progress.start(label, number)
        try:
            with pace.heard(self.progress.step):
                records = execute(
                    job.point, self.artifacts, store, job.force, self.progress.stage, prepared
                )
            outcome = Outcome(label, records, time.perf_counter() - started)
        except UserError as mistake:
            outcome = Outcome(label, [], time.perf_counter() - started, str(mistake))
        self.outcomes.append(outcome)  # before it is mirrored: what is stopped now is kept
        mirror = self._mirror(job)
        for record in outcome.records:
            if record.run_id in new:
                mirror.log(record)
        if alone and outcome.error is not None:
            self.progress.close()
        else:
            self.progress.end(outcome, time.perf_counter() - started)
        return outcome

    def single(self, candidate: Candidate) -> list[Record]:
        """One point by itself, as :meth:`settle` found it: its Records.

        Raises:
            UserError: also for a point that can not exist, of which nothing is written.
        """
        if candidate.fate == "refused":
            raise UserError(candidate.reason)
        Store(candidate.job.point.folder).prepare()
        outcome = self.execute(candidate, alone=True)
        if outcome.error is not None:
            raise UserError(outcome.error)
        return outcome.records

    @uncollected()
    def settle(self, job: Job) -> Candidate:
        """Check one point and say what becomes of it."""
        config.check(job, self.artifacts)
        candidate = _judge([], job, self.artifacts, {})
        self.candidates = [candidate]
        return candidate

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Take in outcomes that came back from another process."""
        known = {id(outcome) for outcome in self.outcomes}
        self.outcomes += [outcome for outcome in outcomes if id(outcome) not in known]

    def mirror_report(self, report: Any) -> None:
        """Show the trackers what the sweep ended in."""
        if self.candidates:
            self._mirror(self.candidates[0].job).report(report)

    @property
    def finished(self) -> int:
        """Points of this launch that have ended; a launcher's processes tell when all have, so
        until then the Records on disk do."""
        if self.outcomes:
            return len(self.outcomes)
        launched = [c for c in self.candidates if c.fate == "run" and not c.job.force]
        return sum(
            all(Store(c.job.point.folder).done(run_id) for run_id in c.prepared.run_ids.values())
            for c in launched
            if c.prepared is not None
        )

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.failed]

    def _prepared(self, job: Job) -> Prepared | None:
        from bitsweep.run import prepare

        try:
            return prepare(job.point, self.artifacts)
        except (Refused, UserError):
            return None  # execute says what is wrong

    def _mirror(self, job: Job) -> tracking.Mirrors:
        folder = job.point.folder
        key = f"{job.trackers!r} {folder}"
        if key not in self._mirrors:
            self._mirrors[key] = tracking.open(job.trackers, Store(folder), self.progress.warn)
        return self._mirrors[key]


def launch(overrides: Sequence[str], session: Session, extra_dir: str | None = None) -> Session:
    """Sweep: compose, choose, launch, through the configured Hydra sweeper and launcher.

    Raises:
        UserError: a mistake in any point, before the first one starts.
        OSError: a Record can not be written.
    """
    session.config_dir = extra_dir
    lines = [*normal(overrides), "hydra.mode=MULTIRUN"]
    try:
        with hydra_app(lines, extra_dir) as hydra, one_line_errors():
            hydra.multirun(config_name=CONFIG_NAME, task_function=session, overrides=lines)
    except Halt as halt:
        raise halt.error from None
    return session
