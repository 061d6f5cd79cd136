"""One launch: what its points share while it lasts, and what becomes of each.

A :class:`Session` is Hydra's task function: it holds the artifacts, lets
:mod:`bitsweep.survey` choose the points, runs one at a time, says how it went.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bitsweep import config, pace, tracking
from bitsweep.artifacts import Artifacts, cache_root
from bitsweep.compose import CONFIG_NAME, hydra_app, normal, one_line_errors
from bitsweep.config import Job
from bitsweep.errors import Refused, UserError
from bitsweep.launching import Parcels
from bitsweep.progress import Progress
from bitsweep.record import Record
from bitsweep.store import Store, uncollected
from bitsweep.survey import Candidate, command_of, judge, own_threads, survey, unchosen_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bitsweep.prepared import Prepared


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
    _parcels: Parcels | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A launcher that starts processes gives each its own artifacts over the same cache; it
        sends all this with every point, so the points themselves go another way."""
        if self.candidates and self._parcels is None:
            launched = (each for each in self.candidates if each.fate == "run")
            self._parcels = Parcels.of(launched, self.artifacts.root)
        own = {
            "artifacts": Artifacts(self.artifacts.root),
            "candidates": [],
            "outcomes": [],
            "_mirrors": {},
        }
        return self.__dict__ | own

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
        self._say_whose_text(todo)
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
        known = self._chosen(overrides)
        if known is not None:
            return self._or_halt(*known)
        values = OmegaConf.to_container(task_config, resolve=True)
        taken = {str(key): str(value) for key, value in hydra.runtime.choices.items()}
        assert isinstance(values, dict)
        plain = {str(key): value for key, value in values.items()}
        job = config.parse(plain, taken, command_of(overrides, self.config_dir))
        candidate = Candidate(overrides, job, "run")  # another sweeper's: not surveyed
        return self._or_halt(candidate, None)

    def _chosen(self, overrides: list[str]) -> tuple[Candidate, int] | None:
        """The surveyed point of these overrides, and its number among those that are launched."""
        number = 0
        for candidate in self.candidates:
            number += candidate.fate == "run"
            if candidate.overrides == overrides:
                return candidate, number
        return None if self._parcels is None else self._parcels.take(overrides)

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

        job, label = candidate.job, self.progress.called(candidate)
        store = Store(job.point.folder)
        prepared = candidate.prepared or self._prepared(job)
        run_ids = () if prepared is None else prepared.run_ids.values()
        new = {run_id for run_id in run_ids if job.force or not store.done(run_id)}
        started = time.perf_counter()
        self.progress.start(label, number)
        try:
            with own_threads(job), pace.heard(self.progress.step):
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
        self._say_whose_text([candidate] if candidate.fate == "run" else [])
        outcome = self.execute(candidate, alone=True)
        if outcome.error is not None:
            raise UserError(outcome.error)
        return outcome.records

    def _say_whose_text(self, launched: Sequence[Candidate]) -> None:
        line = unchosen_text(candidate.job.point for candidate in launched)
        if line is not None:
            self.progress.warn(line)

    @uncollected()
    def settle(self, job: Job) -> Candidate:
        """Check one point and say what becomes of it."""
        config.check(job, self.artifacts)
        candidate = judge([], job, self.artifacts, {})
        self.candidates = [candidate]
        return candidate

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Take in outcomes that came back from another process."""
        known = {id(outcome) for outcome in self.outcomes}
        self.outcomes += [outcome for outcome in outcomes if id(outcome) not in known]

    def clear(self) -> None:
        """Nothing is launched any more."""
        if self._parcels is not None:
            self._parcels.remove()
            self._parcels = None

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
        from bitsweep.prepared import prepare

        try:
            with own_threads(job):
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
    finally:
        session.clear()
    return session
