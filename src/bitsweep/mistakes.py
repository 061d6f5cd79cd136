"""What Hydra, OmegaConf and PyYAML complain of, in one line that says what to type instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bitsweep.axes import AXES, CHAINS, GROUPS, KNOWN
from bitsweep.compose import (
    EXPERIMENTS,
    LISTED,
    choices,
    experiments,
    group_files,
    is_checkpoint,
    nearest,
)

LAUNCHERS = ("joblib", "ray", "rq", "submitit")
"""Hydra's own plugins, a package each: ``hydra-joblib-launcher``."""
OWN_TEXTS = {
    "data.path": ("data=text", "data.path"),
    "data.calibration_path": ("calibration=text", "calibration.source.path"),
}
"""Keys that ``data=text`` alone has, and what says the same of any other."""


def explain(error: Exception) -> str:
    """One line for an error of Hydra's, with the nearest names where a name is unknown."""
    import yaml
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return _no_override(str(error.override))
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not sound YAML: {error.problem}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_choice(error.missing_cfg_file, error.options or ())
    text = str(error)
    if match := re.search(r"Could not override '(.+?)'", text):
        given = re.search(r"To append to your config use \+(.*)", text)
        return _no_such_key(match[1], given[1] if given else match[1], error.__cause__)
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return _several(match[1])
    if match := re.search(r"Override (\S+) looks like a config group", text):
        return f"{match[1]}: there is no such group"
    if match := re.search(r"Could not delete from config. '(.+?)' does not exist", text):
        return f"~{match[1]}: no such key{nearest(match[1], KNOWN)}"
    if match := re.search(r"Could not append to config. An item is already at '(.+?)'", text):
        return f"+{match[1]}: is there already; write {match[1]}=VALUE without the +"
    first = _first_line(error)
    resolving = re.fullmatch(r"\w+ raised while resolving interpolation: \"?(.+?)\"?", first)
    line = resolving[1] if resolving else first
    key = getattr(error, "full_key", None)
    if key and str(key) not in first:
        line = f"{key}: {line}"
    cause = error.__cause__
    return f"{line}: {_first_line(cause)}" if cause is not None and str(cause) else line


def _no_override(given: str) -> str:
    """Of text, mostly a path, which letters Hydra's grammar has uses of its own for."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if given in experiments():
        return f"{given}: is an experiment; write bitsweep sweep {given}"
    key, _, value = given.partition("=")
    plain = f"{given}: not an override; write key=value"
    if key in (*GROUPS, *AXES) or not value or value[0] in "[{(=":
        return plain
    if value.startswith("~"):
        return f"{given}: a ~ behind = stays a ~; write $HOME"
    quoted = f'{key}="{value}"'
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return plain
    return f"{given}: Hydra reads some of these letters its own way; write {shlex.quote(quoted)}"


def _several(given: str) -> str:
    """Of values with commas: a sweep, or where a group takes several at once, their list."""
    key, _, values = given.partition("=")
    at_once = shlex.quote(f"{key}=[{values}]")
    if key == "tracker":
        return f"{given}: several trackers are a list; write {at_once}"
    both = f", or {at_once} for all of them at once" if key in LISTED else ""
    return f"{given}: several values are a sweep; use bitsweep run -m{both}"


def _no_such_choice(path: str, options: Sequence[str]) -> str:
    group, _, choice = path.partition("/")
    if group == EXPERIMENTS and "/" in choice:
        group, _, choice = choice.partition("/")
        return f"{group}: {choice}: in an experiment's defaults write override /{group}: {choice}"
    if is_checkpoint(path):
        return f"{group}={choice}: a folder or a hub id is a path; write model.path={choice}"
    if group not in GROUPS:  # Hydra's own: hydra/launcher
        group, _, choice = path.rpartition("/")
        if group == "hydra/launcher" and choice.partition("_")[0] in LAUNCHERS:
            package = f"hydra-{choice.partition('_')[0]}-launcher"
            return f"{group}={choice}: is not installed here; pip install {package}"
    # Hydra names none for a list of choices, and none that lie in a folder of the group.
    options = list(dict.fromkeys([*options, *group_files(group)]))
    return f"{group}={choice}: no such {group}{nearest(choice, options)}{choices(options)}"


def _no_such_key(key: str, given: str, cause: BaseException | None) -> str:
    """``cause`` knows how far the key led, and what is there."""
    parent: Any = getattr(cause, "parent_node", None)
    here = {} if parent is None else {str(k): v for k, v in parent.items_ex(resolve=False)}
    where = "" if parent is None else str(parent._get_full_key(None))
    prefix = f"{where}." if where else ""
    missing = key.removeprefix(prefix).partition(".")[0]
    group, _, inside = key.partition(".")
    if key in OWN_TEXTS:
        chosen, own = OWN_TEXTS[key]
        written = shlex.join([chosen, f"{own}={given.partition('=')[2]}"])
        return f"{given}: this data set has no such key; write {written}"
    step = inside.partition(".")[0]
    if group in (*CHAINS, "tracker") and where in ("", group) and step not in here:
        asked = [*(here if where else ()), step]
        if step in group_files(group):
            return f"{given}: {step} is not asked for; write {group}=[{','.join(asked)}] as well"
        if group in CHAINS:
            known = list(group_files(group))
            return f"{given}: no such {group}{nearest(step, known)}{choices(known)}"
    if where and not here and group in GROUPS:
        return f"{given}: {where} is null in this {group}{choices([*group_files(group)])}"
    below = [f"{prefix}{name}.{missing}" for name, item in here.items() if _has(item, missing)]
    siblings = [f"{prefix}{name}" for name in here if name not in ("hydra", "_target_")]
    near = below or siblings or ([] if where else [*KNOWN])
    guess = nearest(f"{prefix}{missing}", near) or (choices(near) if where else "")
    return f"{given}: no such key{guess}"


def _has(item: Any, name: str) -> bool:
    return isinstance(item, Mapping) and name in item


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
