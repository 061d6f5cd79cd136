"""What a row is called in a table, a figure and a legend."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import compress
from typing import Any

import pandas as pd

from bitsweep.point import RANDOM
from bitsweep.report.frame import HARDWARE, REFERENCE, is_reference, references
from bitsweep.report.sheet import DIRTY
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, QuantSpec

Row = Mapping[str, Any]

SPELLED_OUT = {
    "model", "method", "method_options", "bits", "group_size", "policy", "misfit", "label",
}  # fmt: skip
"""Axes that have a column or a place of their own; the others are named where they vary."""

UNSAID = {"seed": 0, "calibration.seed": 0, "calibration.choice": "random"}
"""What stands where nobody chose."""

LEGEND_CAP = 22
OPTIONS = re.compile(r" \([^)]*\)")
IN_WEIGHTS = {"format", "symmetric", "scale_dtype"}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def missing(value: Any) -> bool:
    return value is None or value is pd.NA or value != value


class Cells(Mapping[str, Any]):
    """One row of a frame, None where a cell is empty; a column is read when it is first asked for.

    A report looks at a few of some hundred columns, some dozen times.
    """

    __slots__ = ("_columns", "_place")

    def __init__(self, columns: _Columns, place: int) -> None:
        self._columns, self._place = columns, place

    def __getitem__(self, name: str) -> Any:
        return self._columns[name][self._place]

    def get(self, name: str, default: Any = None) -> Any:
        columns = self._columns
        return columns[name][self._place] if name in columns.names else default

    def __contains__(self, name: object) -> bool:
        return name in self._columns.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __len__(self) -> int:
        return len(self._columns.names)


class _Columns(dict[str, list[Any]]):
    """Columns of a frame as lists of what Python has for their cells, made when asked for."""

    def __init__(self, frame: pd.DataFrame) -> None:
        super().__init__()
        self.names = dict.fromkeys(frame.columns)
        self._frame = frame

    def __missing__(self, name: str) -> list[Any]:
        if name not in self.names:
            raise KeyError(name)
        cells = self[name] = [
            None if cell is pd.NA or cell != cell else cell for cell in self._frame[name].tolist()
        ]
        return cells


class Rows(list[Cells]):
    """All rows of a frame."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.columns = _Columns(frame)
        super().__init__(Cells(self.columns, place) for place in range(len(frame)))

    def values(self, names: Sequence[str]) -> tuple[tuple[Any, ...], ...]:
        """The cells of these columns, a tuple for each row."""
        return tuple(zip(*(self.columns[name] for name in names), strict=True))


def rows(frame: pd.DataFrame) -> Rows:
    """The frame's rows, None where a cell is empty."""
    return Rows(frame)


def varying(frame: pd.DataFrame) -> list[str]:
    """Axes that take several values among one model's quantized points, beside the usual ones."""
    names = list(frame.columns)
    axes = names[names.index("model") : names.index("point_id")] if "point_id" in names else []
    if not axes:
        return []
    taking = (~references(frame)).tolist()
    beside = {*SPELLED_OUT, *IN_WEIGHTS, *HARDWARE} - {"model"}
    cells = {a: [*compress(frame[a].tolist(), taking)] for a in axes if a not in beside}
    models = cells.pop("model")
    found = [axis for axis in cells if _several(models, cells[axis])]
    once = _alike(cells, "calibration.seed", "seed")
    return [axis for axis in found if not (once and axis == "calibration.seed")]


def _several(models: Sequence[Any], values: Sequence[Any]) -> bool:
    """Whether one of the models has several values, by how they are written."""
    kinds = {*map(type, values)} - {type(None), type(pd.NA)}
    if len({*values} - {None, pd.NA}) < 2 and len(kinds) < 2:  # True and 1 are equal
        return False
    found: dict[Any, Any] = {}
    for model, value in zip(models, values, strict=True):
        if not missing(value):
            first = found.setdefault(model, value)
            if first is not value and str(first) != str(value):
                return True
    return False


def _alike(cells: Mapping[str, Sequence[Any]], axis: str, other: str) -> bool:
    """Whether ``axis`` says nothing that ``other`` does not."""
    if axis not in cells or other not in cells:
        return True
    both = zip(cells[axis], cells[other], strict=True)
    return all(missing(one) or str(one) == str(two) for one, two in both)


def method(row: Row, axes: Sequence[str] = ()) -> str:
    """``gptq``, ``gptq (prefix=full_precision)``, ``gptq seed=1`` where seeds vary and it is not 0.

    What is done before stands before, what is done after behind: ``rotate + gptq a8 + low_rank``.
    """
    if is_reference(row):
        return "full precision"
    words = ["full precision" if row["method"] == REFERENCE else row["method"]]
    if not missing(row.get("exported")):
        words = ["exported"]
    if row.get("method_options"):
        words.append(f"({row['method_options']})")
    for axis in axes:
        word = said(row, axis)
        if not word:
            continue
        if axis == "transforms":
            words.insert(0, f"{row[axis]} +")
        elif axis in ("input", "kv"):
            words.append({"input": "a", "kv": "kv"}[axis] + str(row[axis]).removeprefix("w"))
        elif axis != "recover":
            words.append(word)
    if "recover" in axes and not missing(row.get("recover")) and row["recover"] != "":
        words.append(f"+ {row['recover']}")
    return " ".join(words)


def said(row: Row, axis: str) -> str:
    """``windows=16``; empty where nobody chose, and for a text's seed that is the method's too."""
    value = row.get(axis)
    if missing(value) or value == "" or value == UNSAID.get(axis):
        return ""
    if axis == "calibration.seed" and missing(row.get("seed")):
        axis = "seed"  # of a method that draws nothing but its text
    elif axis == "calibration.seed" and value == row["seed"]:
        return ""
    name = axis if axis == "calibration.seed" else axis.removeprefix("calibration.")
    return f"{name}={value}"


def marked(name: str, row: Row) -> str:
    """``name`` with a dagger where the code that measured the row was not all committed."""
    return f"{name}{DIRTY}" if row.get("dirty") else name


def policy(row: Row) -> str:
    """``by_role``, or ``uniform, ragged`` where a group did not divide every row."""
    words = [str(row.get("policy") or "")]
    if row.get("misfits") and not missing(row.get("misfit")):
        words.append(str(row["misfit"]))
    return ", ".join(words)


def grid(row: Row, axes: Sequence[str] = ()) -> str:
    """The method and what shapes its grid other than bits, group and policy: a heat map's row."""
    words = [method(row, axes)]
    if row.get("format") not in (None, "int"):
        words.append(row["format"])
    if row.get("symmetric"):
        words.append("sym")
    if row.get("scale_dtype") not in (None, "float16"):
        words.append(f"{row['scale_dtype']} scale")
    return " ".join(words)


def short(names: Sequence[str], cap: int = LEGEND_CAP) -> dict[str, str]:
    """Name -> what a legend calls it: one longer than ``cap`` loses its options where it stays the
    only one."""
    bare = [OPTIONS.sub("", name) for name in names]
    return {
        name: cut if len(name) > cap and bare.count(cut) == 1 else name
        for name, cut in zip(names, bare, strict=True)
    }


def weights(row: Row) -> str:
    """The weights' format: ``w4g64``, ``w*g64`` for bits by layer, ``fp32`` in full precision.

    Behind it ``random`` where no training made them: a shape has no quality.
    """
    random = " random" if row.get("weights") == RANDOM else ""
    return f"{number_format(row)}{random}"


def number_format(row: Row) -> str:
    """:func:`weights` without what made them."""
    if not missing(row.get("exported")):
        return str(row["exported"])
    if row["method"] == REFERENCE:
        options = dict(o.partition("=")[::2] for o in str(row.get("method_options") or "").split())
        dtype = options.get("dtype") or "float32"  # the method casts, whatever was stored
        return DTYPES.get(dtype, dtype)
    size, bits = row.get("group_size"), row.get("bits")
    if missing(bits) and missing(size):
        return str(row.get("format") or "")
    return _named(
        "*" if missing(bits) else f"{bits:g}",
        PER_CHANNEL if missing(size) else int(size),  # type: ignore[arg-type]
        bool(row.get("symmetric")),
        row.get("format") or "int",
        row.get("scale_dtype") or "float16",
    )


@cache
def _named(bits: str, size: int, symmetric: bool, number: str, scale: str) -> str:
    return QuantSpec(group_size=size, symmetric=symmetric, format=number, scale_dtype=scale).named(
        bits
    )


def group(size: Any) -> str:
    if missing(size):
        return ""
    return {PER_CHANNEL: "per channel", PER_TENSOR: "per tensor"}.get(int(size), f"g{int(size)}")


def by_reason(found: Sequence[Row], reason: str = "reason") -> list[tuple[str, list[str]]]:
    """Labels of the rows that share a reason, reasons in order of first appearance."""
    grouped: dict[str, list[str]] = {}
    for row in found:
        text = str(row.get(reason) or "no reason given").splitlines()[0]
        grouped.setdefault(text, []).append(str(row.get("label") or row["run_id"]))
    return list(grouped.items())
