"""Hydra's configuration becomes a Job: one validated Point and what its run does beside it.

The only reader of configuration. Whatever is wrong here is one line for the user, before a model
is loaded; what can only be seen with the model at hand (a group that does not divide a row)
is ``prepared.prepare``'s to say.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep.axes import AXES, CHAINS, KNOWN, RUN_KEYS, axis_choices
from bitsweep.compose import choices as choices_text
from bitsweep.compose import compose, conf_dir, group_files, nearest, plain_config
from bitsweep.errors import UserError
from bitsweep.point import Point, changed_options
from bitsweep.spec import FULL_BITS, PER_CHANNEL, PER_TENSOR, InputSpec, QuantSpec
from bitsweep.typed import build, fit, show, target

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bitsweep.artifacts import Artifacts
    from bitsweep.calibration import CalibrationSpec
    from bitsweep.data import Data
    from bitsweep.models import ModelSource
    from bitsweep.record import Record
    from bitsweep.tracking import Tracker


@dataclass(frozen=True)
class Job:
    """A Point, and what its run does that changes none of its numbers."""

    point: Point
    trackers: tuple[Tracker, ...] = ()
    force: bool = False
    threads: int | None = None


def job(config: DictConfig, command: str = "") -> Job:
    """The Job of one composed configuration (with Hydra's own node in it)."""
    return parse(*plain_config(config), command=command)


def parse(values: Mapping[str, Any], taken: Mapping[str, str], command: str = "") -> Job:
    """The Job of plain configuration values; ``taken`` says which choice each group took.

    Raises:
        UserError: an unknown key, a wrong type, an unknown choice; one line that names the key.
    """
    for key in values:
        if key not in KNOWN:
            raise UserError(f"{key}={show(values[key])}: no such key{nearest(key, KNOWN)}")
    run = {key: fit(key, values.get(key), hint) for key, hint in RUN_KEYS.items()}
    axes = {key: _axis(key, values.get(key), hint) for key, hint in AXES.items()}
    _check_axes(axes, run)
    if not run["results_dir"]:
        raise UserError("results_dir=: takes a folder; write results_dir=. for this one")
    data = _data(taken["data"], _mapping("data", values))
    plugins = run["plugins"]
    method = target("method", values["method"], plugins)
    transforms = _chain("transforms", values, plugins)
    recover = _chain("recover", values, plugins)
    options = {taken["method"]: _options("method", taken["method"], method, plugins)}
    for group, chain in (("transforms", transforms), ("recover", recover)):
        options |= {
            f"{group}.{name}": _options(group, name, step, plugins) for name, step in chain.items()
        }
    point = Point(
        experiment=_folder_name(run["experiment"]),
        results_dir=Path(run["results_dir"]),
        model=_model(taken["model"], _mapping("model", values)),
        data=data,
        method_name=taken["method"],
        method=method,
        spec=_spec(axes),
        policy=_policy(taken["policy"], _mapping("policy", values), plugins),
        calibration=_calibration(taken["calibration"], _mapping("calibration", values), data),
        probes={
            name: target(f"probes.{name}", probe, plugins)
            for name, probe in _mapping("probes", values).items()
            if probe is not None  # probes.NAME=null leaves one out
        },
        transforms=transforms,
        recover=recover,
        input=_input(_mapping("input", values)),
        kv=_kv(_mapping("kv", values)),
        misfit=axes["misfit"],
        engine=axes["engine"],
        seed=axes["seed"],
        options=options,
        command=command,
    )
    return Job(point, trackers(values, plugins), run["force"], run["threads"])


def trackers(values: Mapping[str, Any], plugins: Sequence[str] = ()) -> tuple[Tracker, ...]:
    """Where Records are mirrored: ``tracker=wandb``, several of them as ``tracker=[wandb,mlflow]``.

    Raises:
        UserError: an unknown key, or a tracker whose package is missing.
    """
    if "_target_" in (values.get("tracker") or {}):
        raise UserError("tracker._target_: stands below the tracker's name, NAME: {_target_: ...}")
    return tuple(_chain("tracker", values, plugins).values())


def check(job: Job, artifacts: Artifacts) -> None:
    """What needs a look at the machine: device, folder, texts. Loads no model, writes nothing.

    Raises:
        UserError: no such GPU, no place for results, a missing text, or calibration on the
            measured one.
    """
    from bitsweep.calibration import RandomTokens
    from bitsweep.data import check_calibration

    point = job.point
    check_device(point.model.device)
    check_folder(point.results_dir, "results_dir")
    if artifacts.root is not None:
        check_folder(artifacts.root, "BITSWEEP_CACHE")
    point.data.check()
    if point.calibrated:
        if point.calibration.source.path == "":
            raise UserError(
                f"calibration: data={point.data.name} has no text of its own to calibrate "
                f"{point.columns()['label']} on; give data.calibration_path=FILE"
            )
        if not isinstance(point.calibration.source, RandomTokens):
            point.calibration.source.check()
            check_calibration(point.calibration.source, point.data, artifacts)


def check_folder(folder: Path, key: str) -> None:
    """Raises UserError where no folder can be made. Makes none: ``plan`` asks this as well."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(
            f"{key}={folder}: can not write there; choose another folder with {key}=PATH"
        )


def check_device(device: str) -> None:
    """Raises UserError unless torch can compute on ``device`` here."""
    import torch

    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return
    if kind != "cuda" or (index and not index.isdigit()):
        raise UserError(f"model.device={device}: takes cpu, cuda or cuda:INDEX")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count <= int(index or 0):
        found = f"{count} GPU{'s' * (count != 1)}" if count else "no GPU"
        raise UserError(f"model.device={device}: torch finds {found} here; use model.device=cpu")


def run(*overrides: str) -> list[Record]:
    """Measure one point and keep its Records (``bitsweep.run``).

    Raises:
        UserError: a mistake in ``overrides``, or a point that can not exist.
    """
    from bitsweep.sweep import Session

    session = Session()
    return session.single(session.settle(job(compose(overrides), command_line("run", overrides))))


def command_line(verb: str, overrides: Sequence[str]) -> str:
    """What to type to have this again."""
    import shlex

    return shlex.join(["bitsweep", verb, *overrides])


def _axis(key: str, value: Any, hint: Any) -> Any:
    """One value of one axis; a list is what grids take."""
    if isinstance(value, list):
        several = ",".join(map(show, value))
        raise UserError(
            f"{key}=[{several}]: takes one value; several are a sweep: "
            f"bitsweep run -m {key}={several}"
        )
    return fit(key, value, hint)


def _check_axes(axes: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    for key, known in axis_choices().items():
        if axes[key] not in known:
            raise UserError(
                f"{key}={axes[key]}: no such {key}{nearest(axes[key], known)}{choices_text(known)}"
            )
    if not 0 < axes["bits"] <= 16:
        raise UserError(f"bits={axes['bits']:g}: takes a number over 0 and up to 16")
    if axes["group_size"] < -1:
        raise UserError(
            f"group_size={axes['group_size']}: takes a number of weights, "
            "-1 (per output channel) or 0 (per tensor)"
        )
    _check_seed("seed", axes["seed"])
    if run["threads"] is not None and run["threads"] < 1:
        raise UserError(f"threads={run['threads']}: takes a whole number from 1, or null")


def _check_seed(key: str, seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise UserError(f"{key}={seed}: takes a whole number from 0 to {2**63 - 1}")


def _mapping(key: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    value = values.get(key)
    if not isinstance(value, Mapping):
        raise UserError(f"{key}={show(value)}: takes one of {', '.join(group_files(key))}")
    return value


def _spec(axes: Mapping[str, Any]) -> QuantSpec:
    """The axes as the format takes them: ``mxfp4`` has its own groups and scales, and says so."""
    from bitsweep import formats

    return formats.resolve(
        QuantSpec(
            bits=_whole(axes["bits"]),
            group_size=axes["group_size"],
            symmetric=axes["symmetric"],
            format=axes["format"],
            scale_dtype=axes["scale_dtype"],
        )
    )


def _whole(bits: float) -> float:
    return int(bits) if bits == int(bits) else bits


def _folder_name(experiment: str) -> str:
    if not experiment or Path(experiment).name != experiment or experiment.startswith("."):
        raise UserError(f"experiment={experiment}: takes a name of one folder below results_dir")
    return experiment


def _model(choice: str, value: Mapping[str, Any]) -> ModelSource:
    """The checkpoint; one that took another path than its YAML's is named after that path."""
    from bitsweep.models import shapes
    from bitsweep.models.source import SHAPE, ModelSource

    source = build(ModelSource, "model", {"name": choice, **value})
    if source.random_weights:
        shapes.find(source.path)
    if source.name == choice and source.path != _yaml_path(choice, source.path):
        name = source.path.rstrip("/").rpartition("/")[2].replace(SHAPE, "shape/")
        source = dataclasses.replace(source, name=name or source.path)
    return source


def _yaml_path(choice: str, otherwise: str) -> str:
    """``path`` in ``conf/model/<choice>.yaml``; ``otherwise`` for a file of the user's own."""
    return str(_shipped("model", choice).get("path", otherwise))


def _chain(group: str, values: Mapping[str, Any], plugins: Sequence[str]) -> dict[str, Any]:
    """The choices of a group that takes several, by name, in the order in which they were asked."""
    chosen = values.get(group) or {}
    if not isinstance(chosen, Mapping):
        raise UserError(f"{group}={show(chosen)}: takes a list of {', '.join(group_files(group))}")
    return {
        str(name): target(f"{group}.{name}", step, plugins)
        for name, step in chosen.items()
        if step is not None  # transforms.NAME=null leaves one out
    }


def _options(group: str, choice: str, step: Any, plugins: Sequence[str]) -> str:
    """What differs from the YAML; from the class's own defaults, for a YAML of the user's own."""
    values = _shipped(group, choice)
    if group in CHAINS:
        values = values.get(choice, {})
    return changed_options(step, target(group, values, plugins) if values else type(step)())


def _input(value: Mapping[str, Any]) -> InputSpec | None:
    """How inputs are quantized; None at 16 bits. Options that change nothing are left out.

    Raises:
        UserError: an unknown key, a wrong type, a value that is never right.
    """
    names = {item.name for item in dataclasses.fields(QuantSpec)}
    quant = _codes("input", {k: v for k, v in value.items() if k in names})
    rest = {k: v for k, v in value.items() if k not in names}
    spec = dataclasses.replace(build(InputSpec, "input", {**rest, "quant": {}}), quant=quant)
    if spec.range != "percentile":
        spec = dataclasses.replace(spec, percentile=InputSpec.percentile)
    if spec.adaptive:
        return dataclasses.replace(spec, quant=dataclasses.replace(quant, bits=spec.adaptive[0]))
    return None if quant.bits >= FULL_BITS else spec.at(quant.bits)


def _kv(value: Mapping[str, Any]) -> QuantSpec | None:
    """The number format of keys and values in the cache; None at 16 bits."""
    spec = _codes("kv", value)
    if spec.group_size == PER_TENSOR or spec.group_size < PER_CHANNEL:
        raise UserError(
            f"kv.group_size={spec.group_size}: takes a number of a head's numbers, "
            "or -1 for all of them"
        )
    return None if spec.bits >= FULL_BITS else spec


def _codes(group: str, value: Mapping[str, Any]) -> QuantSpec:
    """The number format of ``input`` or ``kv``."""
    from bitsweep import formats

    spec = build(QuantSpec, group, value)
    choices = axis_choices()
    for key in ("format", "scale_dtype"):
        item, known = getattr(spec, key), choices[key]
        if item not in known:
            raise UserError(
                f"{group}.{key}={item}: no such {key}{nearest(item, known)}{choices_text(known)}"
            )
    if not 0 < spec.bits <= FULL_BITS:
        raise UserError(f"{group}.bits={spec.bits:g}: takes a number over 0 and up to {FULL_BITS}")
    return formats.resolve(dataclasses.replace(spec, bits=_whole(spec.bits)))


@functools.cache
def _shipped(group: str, choice: str) -> dict[str, Any]:
    """What ``conf/<group>/<choice>.yaml`` says; empty for a file of the user's own."""
    import yaml

    file = conf_dir() / group / f"{choice}.yaml"
    return dict(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _data(name: str, value: Mapping[str, Any]) -> Data:
    from bitsweep import data

    return data.make(name, value)


def _policy(name: str, value: Mapping[str, Any], plugins: Sequence[str]) -> Any:
    """Ordered rules, or for a policy that computes, the object of its ``_target_``."""
    if "_target_" in value:
        return target("policy", value, plugins)
    from bitsweep.policies import Policy

    return Policy.from_config(name, value)


def _calibration(name: str, value: Mapping[str, Any], data: Data) -> CalibrationSpec:
    from bitsweep.calibration import CalibrationSpec, RandomTokens
    from bitsweep.calibration.windows import CHOICES
    from bitsweep.data import Keys, TextSource, make_text

    known = ("source", "windows", "window", "seed", "choice")
    for key in value:
        if key not in known:
            raise UserError(f"calibration.{key}: no such key{nearest(key, known)}")
    given = value.get("source")
    source: TextSource | RandomTokens
    if given == RandomTokens.name:
        source = RandomTokens()
    elif given is not None:
        if not isinstance(given, Mapping):
            raise UserError(
                f"calibration.source={show(given)}: takes {RandomTokens.name}, or a text: "
                "calibration=text calibration.source.path=FILE"
            )
        source = make_text(name, given, Keys("calibration.source"))
    else:
        source = data.calibration or TextSource("none", path="")  # check() asks who needs one
    rest = {key: item for key, item in value.items() if key != "source"}
    windows = fit("calibration.windows", rest.get("windows", CalibrationSpec.windows), int)
    window = fit("calibration.window", rest.get("window"), int | None)
    seed = fit("calibration.seed", rest.get("seed", CalibrationSpec.seed), int)
    if windows < 1:
        raise UserError(f"calibration.windows={windows}: takes a whole number from 1")
    if window is not None and window < 2:
        key = "data.window" if window == data.window else "calibration.window"
        raise UserError(f"{key}={window}: takes 2 tokens or more")
    _check_seed("calibration.seed", seed)
    choice = fit("calibration.choice", rest.get("choice", CalibrationSpec.choice), str)
    if choice not in CHOICES:
        raise UserError(
            f"calibration.choice={choice}: no such choice{nearest(choice, CHOICES)}"
            f"{choices_text(CHOICES)}"
        )
    if choice != "random" and isinstance(source, RandomTokens):
        raise UserError(f"calibration.choice={choice}: random tokens have no documents; use random")
    return CalibrationSpec(source, windows, window, seed, choice)
