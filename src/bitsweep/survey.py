"""Which points a multirun really launches: every one composed, checked, prepared and compared.

Nothing is measured and nothing written: ``bitsweep plan`` asks no more than this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from bitsweep import config
from bitsweep.artifacts import Artifacts
from bitsweep.axes import AXES
from bitsweep.compose import check_choices, one_line_errors, typed
from bitsweep.config import Job, command_line
from bitsweep.errors import Refused, UserError
from bitsweep.grid import expand, literal
from bitsweep.policies.only import EACH, Only, targets
from bitsweep.store import Store, uncollected

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bitsweep.point import Point
    from bitsweep.prepared import Prepared

Fate = Literal["run", "done", "refused", "merged"]
EMBEDDED = "reference"
"""The package's own model, and the data that were made for it."""
ONLY_EACH = f"policy.only={EACH}"


@dataclass(frozen=True)
class Candidate:
    """One point of a grid and what becomes of it; ``reason`` says why it is not launched.

    ``apart``: what was typed in which it differs from others of its model and label.
    """

    overrides: list[str]
    job: Job
    fate: Fate
    reason: str = ""
    prepared: Prepared | None = None
    apart: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its label, told apart from others: ``gptq w4g32 uniform calibration.windows=16``."""
        return " ".join([self.label, *self.apart])

    @property
    def label(self) -> str:
        """In a few words: ``rtn w4g32 uniform``."""
        return str((self.prepared or self.job.point).columns()["label"])


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
        candidate = judge(overrides, job, artifacts, seen)
        if candidate.prepared is not None:
            seen.setdefault(_name(candidate.prepared), candidate)
        found.append(candidate)
    folders = sorted({str(candidate.job.point.folder) for candidate in found})
    if len(folders) > 1:
        raise UserError(
            f"experiment, results_dir: the Records of a sweep go to one folder, not to "
            f"{', '.join(folders)}; launch one after another"
        )
    return _told_apart(found)


def _told_apart(candidates: list[Candidate]) -> list[Candidate]:
    """Each with what was typed in which it differs from others of its model and label."""
    names = [(candidate.job.point.model.name, candidate.label) for candidate in candidates]
    common: dict[tuple[str, str], set[str]] = {}
    for name, candidate in zip(names, candidates, strict=True):
        common[name] = common.get(name, set(candidate.overrides)) & set(candidate.overrides)
    return [
        replace(candidate, apart=tuple(w for w in candidate.overrides if w not in common[name]))
        for name, candidate in zip(names, candidates, strict=True)
    ]


def unchosen_text(points: Iterable[Point], measured: bool = True) -> str | None:
    """A line for models of one's own that are calibrated, or ``measured``, on the embedded model's
    text: what stands where nobody chose ``data``."""
    from bitsweep.probes import needs

    names = {
        point.model.name
        for point in points
        if point.data.name == EMBEDDED
        and point.model.name != EMBEDDED
        and not point.model.random_weights
        and (
            point.calibrated
            or (measured and any(needs(probe) == "training" for probe in point.probes.values()))
        )
    }
    if not names:
        return None
    told = f"{', '.join(sorted(names))} on data={EMBEDDED}, the embedded model's text"
    return f"note: {told}; for your own: data=text data.path=FILE data.calibration_path=OTHER"


def _composed(
    overrides: list[str], config_loader: Any, master: DictConfig, config_dir: str | None = None
) -> Job:
    check_choices(overrides)  # those of grids
    with one_line_errors():
        composed = config_loader.load_sweep_config(master, overrides)
    return config.job(composed, command_of(overrides, config_dir))


def command_of(overrides: Sequence[str], config_dir: str | None) -> str:
    """What to type to have one point of a sweep again; ``config_dir`` as of :func:`survey`."""
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
    from bitsweep.prepared import reshaped

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


def judge(
    overrides: list[str], job: Job, artifacts: Artifacts, seen: dict[str, Candidate]
) -> Candidate:
    """What becomes of one point, after those in ``seen`` (by their names)."""
    from bitsweep.prepared import prepare

    try:
        with own_threads(job):
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
    if not differ and one.calibration != two.calibration:
        differ = ["calibration"]
    ignored = [axis for axis in differ if axis in one.method.ignores]
    if differ and ignored == differ:
        return f"{one.method_name} ignores {', '.join(differ)}"
    if differ:
        return f"{', '.join(differ)} makes no difference to this model's plan"
    return "listed twice"


def _axis(point: Any, axis: str) -> Any:
    return getattr(point.spec if hasattr(point.spec, axis) else point, axis)


@contextmanager
def own_threads(job: Job) -> Iterator[None]:
    """As many threads as the point asks for, for as long as this lasts: the next may ask none."""
    if job.threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
