"""The story of one run: a Point becomes a model, the model becomes a Record.

Read this first. :func:`bitsweep.prepared.prepare` decided without weights what the point is and
that it can exist, :func:`make` is the straight line, :func:`run` measures, :func:`execute` keeps
the answer.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitsweep import activations, kv, models, policies, provenance
from bitsweep.artifacts import Artifacts, digest, plain
from bitsweep.calibration import Calibration
from bitsweep.data import Reference
from bitsweep.errors import Refused, UserError
from bitsweep.models import Model
from bitsweep.point import Point
from bitsweep.prepared import KINDS, Prepared, prepare, probes_of, step_identity
from bitsweep.record import Kind, Record, Status
from bitsweep.store import Store

Progress = Callable[[str], None]
Details = list[dict[str, Any]]


def run(
    prepared: Prepared,
    artifacts: Artifacts,
    kinds: Sequence[Kind] = KINDS,
    progress: Progress | None = None,
) -> Iterator[tuple[Record, Details]]:
    """Quantize, then measure each of ``kinds``: yields a Record as soon as it is complete."""
    point = prepared.point
    stage = provenance.Stopwatch(progress)
    made = make(prepared, artifacts, stage)
    model, reference, calibration = made.model, made.reference, made.calibration
    for kind in kinds:
        record = begin(prepared, kind, made.source, model)
        details: Details = [{"plan": made.became}] if kind == "quality" else []
        for name, probe in probes_of(point, kind).items():
            with stage(name):
                measurement = probe(model, reference)
            record.add(measurement)
            details += [{"probe": name, **row} for row in measurement.details]
        if point.calibrated:
            trained = {"trained_tokens": calibration.trained_tokens}
            record.calibration = plain(calibration.identity) | trained
        record.timings = dict(stage.stages)
        yield record, details


@dataclass(frozen=True)
class Made:
    """A point's model; ``became`` says what each of its modules really is."""

    source: Model
    model: Model
    reference: Reference
    calibration: Calibration
    became: Mapping[str, str]


def make(prepared: Prepared, artifacts: Artifacts, stage: provenance.Stopwatch) -> Made:
    """The model of a point: loaded, transformed, quantized, recovered, audited."""
    point, plan = prepared.point, prepared.plan
    torch.manual_seed(point.seed)
    with stage("load"):
        load = models.skeleton if prepared.weightless else models.load
        source = load(prepared.source, artifacts)
        origin = models.base(prepared.source, artifacts) if source.plan is not None else None
        full = source if origin is None else models.load(origin, artifacts)
    reference = Reference(full, point.data, artifacts)
    calibration = Calibration(source, point.calibration, artifacts)
    with stage("transform"):
        model, calibration = transformed(point, source.copy(), calibration)
        comparable = source.plan is not None and not source.transformed
        reference.unrounded = full if comparable else calibration.model
    with stage("quantize"):
        model = point.method(model, plan, calibration)
        kv.install(model, plan)
        activations.install(model, plan, calibration)
    for name, step in point.recover.items():
        with stage(name):
            model = step(model, plan, calibration)
    return Made(source, model, reference, calibration, policies.audit(model, plan))


def execute(
    point: Point,
    artifacts: Artifacts,
    store: Store,
    force: bool = False,
    progress: Progress | None = None,
    prepared: Prepared | None = None,
) -> list[Record]:
    """Run what is missing of ``point`` and keep it; a point that fails or is refused is a row too.

    ``prepared`` is what :func:`prepare` made of it, where that is known already. Returns the
    point's Records, those found on disk included.

    Raises:
        UserError: what is wrong shows only with the weights at hand; the row is kept as failed.
    """
    try:
        prepared = prepared or prepare(point, artifacts)
    except Refused as reason:
        record = refused_record(point, str(reason))
        store.put(record, [])
        return [record]
    missing = [kind for kind, run_id in prepared.run_ids.items() if force or not store.done(run_id)]
    found = {kind: store.get(prepared.run_ids[kind]) for kind in prepared.run_ids}
    records = [record for kind, record in found.items() if record and kind not in missing]
    started = time.perf_counter()
    try:
        for record, details in run(prepared, artifacts, missing, progress) if missing else ():
            record.timings["total"] = {"wall_s": round(time.perf_counter() - started, 3)}
            store.put(record, details)
            records.append(record)
    except Exception as error:
        for kind in missing:
            if kind not in {record.kind for record in records}:
                record = _failed(prepared, kind, error)
                store.put(record, [])
                records.append(record)
        if isinstance(error, UserError):
            raise
    return records


def transformed(point: Point, model: Model, calibration: Calibration) -> tuple[Model, Calibration]:
    """``model`` after the point's transforms, and the calibration of what it became."""
    for name, transform in point.transforms.items():
        seen = calibration.identity if transform.calibrated else None
        drawn = point.seed if transform.seeded else None
        content = digest([model.content, step_identity(transform), seen, drawn])
        model = transform(model, calibration)
        model.content, model.transformed = content, (*model.transformed, name)
        calibration = calibration.of(model.copy())
    return model, calibration


def begin(prepared: Prepared, kind: Kind, source: Model, model: Model) -> Record:
    """A Record that says all but its numbers; ``source`` has become ``model``."""
    point, plan = prepared.point, prepared.plan
    return Record(
        run_id=prepared.run_ids[kind],
        point_id=prepared.point_id,
        kind=kind,
        experiment=point.experiment,
        status="ok",
        point=prepared.columns(),
        model={
            "path": point.model.path,
            "revision": point.model.revision,
            "sha256": source.checkpoint,
            "parameters": source.parameters,
            "tied": source.tied,
            **({"weights": "random"} if point.model.random_weights else {}),
        },
        plan={
            "digest": plan.digest(),
            "summary": plan.summary(),
            "untied": plan.untie or (source.tied and not model.tied),  # by a transform
            "misfits": dict(plan.misfits),
            **({"notes": dict(plan.notes)} if plan.notes else {}),
        },
        provenance=provenance.collect(point.command, point.seed, point.model.device),
    )


def refused_record(point: Point, reason: str) -> Record:
    """The row of a point that can not exist; it is named by its columns."""
    return _without_numbers(point, "refused", reason)


def _without_numbers(point: Point, status: Status, reason: str) -> Record:
    columns = point.columns()
    name = digest({"status": status, "point": columns})
    return Record(
        run_id=name,
        point_id=name,
        kind="quality",
        experiment=point.experiment,
        status=status,
        reason=reason,
        point=columns,
        provenance=provenance.collect(point.command, point.seed, point.model.device),
    )


def _failed(prepared: Prepared, kind: Kind, error: Exception) -> Record:
    record = _without_numbers(prepared.point, "failed", f"{type(error).__name__}: {error}"[:2000])
    record.point = prepared.columns()
    record.run_id, record.point_id, record.kind = prepared.run_ids[kind], prepared.point_id, kind
    trace = "".join(traceback.format_exception(error))
    record.provenance["traceback"] = trace[-6000:]
    return record
