"""What a point is, from its checkpoint's configuration alone: before a weight is loaded.

:func:`prepare` makes the Plan, names the point and its Records by what decides their numbers, and
refuses what can not exist. ``plan`` and a sweep ask no more; :mod:`bitsweep.run` goes on from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bitsweep import activations, formats, kv, models, policies, provenance
from bitsweep.artifacts import Artifacts, digest, plain
from bitsweep.axes import CHAINS
from bitsweep.calibration import Calibration
from bitsweep.errors import Refused
from bitsweep.methods import Particular
from bitsweep.methods.full_precision import FullPrecision
from bitsweep.models import Model, ModelSource
from bitsweep.point import Point, exported
from bitsweep.probes import Probe, needs
from bitsweep.record import Kind
from bitsweep.spec import FULL_BITS, LayerSpec, Plan

KINDS: tuple[Kind, ...] = ("quality", "timing")
ITSELF = "the checkpoint itself: its full-precision one is not found with the content it had"


@dataclass(frozen=True)
class Prepared:
    """A point that can exist: its plan, its identity, and the Records it will have."""

    point: Point
    source: ModelSource
    plan: Plan
    point_id: str
    run_ids: Mapping[Kind, str]

    def columns(self) -> dict[str, Any]:
        """The point's; a checkpoint that came quantized is called by what it holds."""
        columns = self.point.columns()
        told = exported(columns, self.plan.summary())
        return columns | {"label": told.get("label", columns["label"])}

    @property
    def weightless(self) -> bool:
        """Whether shapes alone are asked: the size of a shape, which needs no memory then.

        Steps that look at weights (a pruning mask), and libraries' layers, get some.
        """
        point = self.point
        plain_method = not isinstance(point.method, Particular)
        untouched = plain_method and not point.transforms and not point.recover
        asked = {needs(probe) for probe in point.probes.values()}
        return self.source.random_weights and untouched and asked == {"shapes"}


def prepare(point: Point, artifacts: Artifacts) -> Prepared:
    """Decide what ``point`` is, from the checkpoint's configuration alone.

    Raises:
        Refused: the point can not exist; the reason is a row of the report.
        UserError: the configuration is wrong whatever the other axes are.
    """
    skeleton = models.skeleton(point.model, artifacts)
    reason = untrained(point)
    if reason is not None:
        raise Refused(reason)
    plan = plan_for(point, reshaped(point, skeleton), artifacts)
    source = dataclasses.replace(point.model, untie=point.model.untie or plan.untie)
    # of the checkpoint: a skeleton that model.untie=true has untied does not tell
    tied = models.skeleton(dataclasses.replace(source, untie=False), artifacts).tied
    identity = {
        "checkpoint": skeleton.checkpoint,
        "dtype": source.dtype,
        "untie": source.untie and tied,
        "method": step_identity(point.method),
        "plan": plan.digest(),
        "calibration": calibration_identity(point, skeleton, artifacts),
        "seed": point.seed if point.seeded else None,
    }
    if skeleton.plan is not None:  # its numbers are compared with another checkpoint's
        base = models.base(source, artifacts)
        identity["reference"] = base and models.skeleton(base, artifacts).checkpoint
        if base is None:
            plan = dataclasses.replace(plan, notes={**plan.notes, "reference": ITSELF})
    for name in CHAINS:
        chain = getattr(point, name)
        if chain:
            identity[name] = [step_identity(step) for step in chain.values()]
    point_id = digest(identity)
    run_ids = {
        kind: digest({"point": point_id, "kind": kind, "how": protocol(point, kind, artifacts)})
        for kind in KINDS
        if probes_of(point, kind)
    }
    return Prepared(point, source, plan, point_id, run_ids)


def untrained(point: Point) -> str | None:
    """What the point asks that random weights can not answer, with the keys to change; or None."""
    if not point.model.random_weights:
        return None
    name = point.model.name
    probes = [f"probes.{key}" for key, probe in point.probes.items() if needs(probe) == "training"]
    if probes:
        return (
            f"{', '.join(probes)}: model={name} has random weights, whose quality means nothing; "
            "use probes=latency or probes=size, or a trained model"
        )
    steps = {f"method={point.method_name}": point.method}
    for group in CHAINS:
        steps |= {f"{group}=[{key}]": step for key, step in getattr(point, group).items()}
    reading = [key for key, step in steps.items() if step.calibrated]
    if point.calibrated and not reading and point.input is not None:
        reading = [f"input.range={point.input.range}"]
    if reading:
        return (
            f"{', '.join(reading)}: looks at calibration text, which means nothing to the random "
            f"weights of model={name}; use method=rtn or hqq, and input.range=dynamic"
        )
    return None


def reshaped(point: Point, skeleton: Model) -> Model:
    """``skeleton`` as the point's transforms will leave it.

    Raises:
        Refused: one of them can not be done to this model, or not after the others.
    """
    if not point.transforms:
        return skeleton
    model = skeleton.copy()
    for name, transform in point.transforms.items():
        reason = transform.skip(model)
        if reason is not None:
            raise Refused(f"transforms=[{name}]: {reason}")
        transform.reshape(model)
        model.transformed = (*model.transformed, name)
    return model


def plan_for(point: Point, model: Model, artifacts: Artifacts | None = None) -> Plan:
    """The Plan of this point for ``model`` (a skeleton will do), each spec as the method stores it.

    Raises:
        Refused: the method or a format can not make what the policy asks for, or a recovery can
            not follow it.
    """
    plan = Plan()
    if model.plan is not None:
        reason = _beyond_codes(point)
        if reason is not None:
            raise Refused(f"model.path={point.model.path}: quantized already; {reason}")
        plan = model.plan
    elif "policy" not in point.method.ignores:
        plan = policies.make(
            point.policy,
            model,
            point.spec,
            point.misfit,
            point.input,
            resolve=point.method.resolve,
            columns=point.columns(),
            command=point.command,
            judged=any(needs(probe) == "training" for probe in point.probes.values()),
            artifacts=artifacts,
        )
        layers = {}
        for name, layer in plan.layers.items():
            spec = point.method.resolve(layer.weight)
            layers[name] = LayerSpec(spec, layer.input)
            family, width = formats.get(spec.format), model.layers[name].shape[1]
            reason = family.skip(spec) or point.method.skip(spec)
            if reason is None and isinstance(point.method, Particular):
                reason = _beyond_library(point) or point.method.skip_layer(
                    model.layers[name], layers[name]
                )
            if reason is None and width % family.vector(spec):
                reason = (
                    f"format={spec.format}: codes of {family.vector(spec)} weights do not divide "
                    f"in_features={width} of {name}; try format=codebook"
                )
            if reason is not None:
                own = layer.weight != formats.resolve(point.spec)
                whose = f"policy={point.policy.name}, {name}: " if own else ""
                if spec.bits >= FULL_BITS:
                    reason += "; method=full_precision leaves weights as they are"
                raise Refused(f"method={point.method_name}: {whose}{reason}")
        plan = dataclasses.replace(plan, layers=layers)
    plan = dataclasses.replace(plan, kv=point.kv)
    reason = activations.skip(plan, model) or kv.skip(plan, model)
    if reason is not None:
        raise Refused(reason)
    for name, step in point.recover.items():
        reason = step.skip(plan)
        if reason is not None:
            raise Refused(f"recover=[{name}]: {reason}")
    return plan


def _beyond_codes(point: Point) -> str | None:
    """What the point would do to a checkpoint that is quantized already, and what works."""
    if not isinstance(point.method, FullPrecision):
        return (
            f"method={point.method_name} rounds full precision: give such a checkpoint, or measure "
            "this one with method=full_precision"
        )
    if point.method.dtype != point.model.dtype:
        return f"method.dtype={point.method.dtype} casts; give model.dtype={point.method.dtype} too"
    for group in CHAINS:
        for name in getattr(point, group):
            return f"{group}=[{name}] changes full precision; leave it out"
    return None


def _beyond_library(point: Point) -> str | None:
    """What a library's own layers can not take of this point: masks, corrections, training."""
    for group, steps in (
        ("transforms", {"prune"} & {*point.transforms}),
        ("recover", point.recover),
    ):
        for name in steps:
            return f"{group}=[{name}]: a library's own layers take none; use one of our methods"
    return None


def probes_of(point: Point, kind: Kind) -> dict[str, Probe]:
    """The probes of this point that measure ``kind``, by name."""
    return {name: probe for name, probe in point.probes.items() if probe.kind == kind}


def step_identity(step: Any) -> dict[str, Any]:
    """Class, version and options: what of a method, transform or recovery decides the result.

    An option that came later, ``field(default=..., metadata={"later": True})``, is left out at its
    default: what was measured before it existed keeps its id.
    """
    target = f"{type(step).__module__}.{type(step).__qualname__}"
    later = {
        item.name
        for item in dataclasses.fields(step)
        if item.metadata.get("later") and getattr(step, item.name) == item.default
    }
    options = {name: value for name, value in plain(step).items() if name not in later}
    return {"target": target, "version": step.version, "options": options}


def calibration_identity(point: Point, model: Model, artifacts: Artifacts) -> dict[str, Any] | None:
    """What of the calibration decides the codes; None for a point that looks at no text."""
    if not point.calibrated:
        return None
    return Calibration(model, point.calibration, artifacts).identity


def protocol(point: Point, kind: Kind, artifacts: Artifacts) -> dict[str, Any]:
    """What decides a Record's numbers beyond its point: the probes, and for times the machine."""
    probes = {
        name: {"version": probe.version, **probe.identity(point.data, artifacts)}
        for name, probe in probes_of(point, kind).items()
    }
    if kind == "quality":
        return probes
    machine = {
        "engine": point.engine,
        "threads": torch.get_num_threads(),
        "device": provenance.device_name(point.model.device),
    }
    return {**probes, "machine": machine}
