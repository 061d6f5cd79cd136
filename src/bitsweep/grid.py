"""Grids of an experiment and sweeps of the command line become lists of Hydra overrides.

``grids: [{method: [rtn, gptq], bits: [2, 3, 4]}, {...}]`` is a union of products; the command line
narrows it or adds to it. Text in, text out: what a key means is decided when a point is composed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bitsweep.compose import MERGED, one_line_errors
from bitsweep.errors import UserError

BARE = re.compile(r"(?:\.{0,2}/|[A-Za-z_])[\w./+-]*")
"""Text that Hydra's override grammar reads as itself, without quotes."""

Axes = dict[str, list[str]]
"""Overrides by key; the overrides of one key are alternatives."""


def expand(grids: Any, arguments: Sequence[str], config_loader: Any = None) -> list[list[str]]:
    """The overrides of every point: those of ``arguments`` first, then one per axis of its grid.

    An axis that the command line gives too: where a grid lists one of the given values, each grid
    keeps those of them that it lists, and grids that list others fall away (``method=gptq`` leaves
    out the full-precision row); where none does, the given values replace it in every grid that
    has it. An axis that no grid has is swept in all of them.

    Raises:
        UserError: ``grids`` is no list of mappings, or the command line left none of them.
    """
    boxes = [_axes(index, grid) for index, grid in enumerate(_grids(grids))]
    given = _given(arguments, config_loader)
    listed = {
        key for key, values in given.items() for box in boxes if {*values} & {*box.get(key, ())}
    }
    points: list[list[str]] = []
    for box in boxes:
        if any(key in box and not {*given[key]} & {*box[key]} for key in listed):
            continue
        mine = {
            key: [v for v in values if v in box[key]] if key in listed and key in box else values
            for key, values in given.items()
            if key in box or len(values) == 1 or not any(key in other for other in boxes)
        }
        rest = {key: values for key, values in box.items() if key not in mine}
        points += [list(point) for point in itertools.product(*mine.values(), *rest.values())]
    if not points:
        raise UserError(f"{_said(arguments)}: no grid of the experiment has all of these values")
    return points


def _said(arguments: Sequence[str]) -> str:
    """The arguments as they are typed behind a verb: an experiment by its name alone."""
    names = [item.removeprefix(MERGED) for item in arguments if item.startswith(MERGED)]
    behind = [
        item
        for item in arguments
        if not item.startswith((MERGED, "hydra"))
        and item not in [f"experiment={name}" for name in names]
    ]
    return " ".join([*names, *behind])


def literal(value: Any) -> str:
    """A YAML value in the syntax of an override, such that Hydra reads the same value back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(literal, value)) + "]"
    text = str(value)
    if BARE.fullmatch(text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    # Hydra unescapes a backslash only in front of a quote.
    body = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text)
    return f"'{body}'"


def _grids(grids: Any) -> list[Mapping[str, Any]]:
    if grids is None:
        return [{}]
    if not isinstance(grids, list) or not grids or not all(isinstance(g, Mapping) for g in grids):
        raise UserError("grids: takes a list of mappings like {method: [rtn, gptq], bits: [3, 4]}")
    return grids


def _axes(index: int, grid: Mapping[str, Any]) -> Axes:
    for key, value in grid.items():
        if value == []:
            raise UserError(f"grids[{index}].{key}: has no values; give one or leave the key out")
    return {
        str(key): [f"{key}={literal(v)}" for v in (value if isinstance(value, list) else [value])]
        for key, value in grid.items()
    }


def _given(arguments: Sequence[str], config_loader: Any) -> Axes:
    """The command line by key, the last of a key wins, each sweep spelt out."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given: Axes = {}
    with one_line_errors():
        for override in OverridesParser.create(config_loader).parse_overrides(list(arguments)):
            key = override.get_key_element()
            line = str(override.input_line)
            if not override.is_sweep_override():
                given[key] = [line]
            elif override.is_discrete_sweep():
                try:
                    given[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
                except ValueError as error:  # range(2,5,0)
                    raise UserError(f"{line}: {error}") from error
                if not given[key]:  # glob(x*), range(5,2)
                    raise UserError(f"{line}: stands for no value")
            else:
                raise UserError(f"{line}: takes a list of values; an interval has no end of them")
    return given
