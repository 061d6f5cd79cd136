"""A frame's rows as they are read, and which of its axes have to be named."""

from __future__ import annotations

import pandas as pd
import pytest
import records

from bitsweep.report import labels
from bitsweep.report.frame import frame


def test_a_row_is_its_cells_and_none_where_one_is_empty() -> None:
    table = pd.DataFrame(
        {
            "bits": pd.Series([4, None], dtype="Int64"),
            "ppl": [2.5, float("nan")],
            "policy": pd.Series(["uniform", None], dtype=object),
        }
    )
    first, second = labels.rows(table)
    assert dict(first) == {"bits": 4, "ppl": 2.5, "policy": "uniform"}
    assert type(first["bits"]) is int
    assert dict(second) == {"bits": None, "ppl": None, "policy": None}


def test_a_column_that_no_row_has_is_a_default_or_a_mistake() -> None:
    (row,) = labels.rows(pd.DataFrame({"bits": [4]}))
    assert (row.get("kv"), row.get("kv", "none"), "kv" in row) == (None, "none", False)
    with pytest.raises(KeyError):
        row["kv"]


def test_values_are_the_rows_of_some_columns() -> None:
    rows = labels.rows(pd.DataFrame({"a": [1, 2], "b": [3.0, None]}))
    assert rows.values(["b", "a"]) == ((3.0, 1), (None, 2))


def test_an_axis_varies_where_one_models_quantized_points_differ() -> None:
    one = records.record("rtn", 4, misfit="ragged", recover="low_rank")
    two = records.record("gptq", 4, recover="")
    other = records.record("gptq", 4, dtype="bfloat16", model="other")
    assert labels.varying(frame([one, two, other])) == ["recover"]


def test_values_are_told_apart_by_how_they_are_written() -> None:
    rows = [records.record("rtn", 4), records.record("hqq", 4)]
    for row, value in zip(rows, (1, True), strict=True):
        row.point["data"] = value
    assert labels.varying(frame(rows)) == ["data"]


def test_a_seed_is_named_once_and_what_nobody_chose_is_not() -> None:
    axes = ["seed", "calibration.choice", "calibration.seed"]
    of = {"method": "gptq", "calibration.choice": "random"}
    assert labels.method({**of, "seed": 2, "calibration.seed": 2}, axes) == "gptq seed=2"
    assert labels.method({**of, "seed": None, "calibration.seed": 2}, axes) == "gptq seed=2"
    assert labels.method({**of, "seed": 0, "calibration.seed": 0}, axes) == "gptq"
    apart = labels.method({**of, "seed": 1, "calibration.seed": 2}, axes)
    assert apart == "gptq seed=1 calibration.seed=2"
    longest = {"method": "gptq", "seed": 0, "calibration.choice": "longest"}
    assert labels.method(longest, axes) == "gptq choice=longest"


def test_weights_are_called_by_their_bits_symmetry_and_dtype() -> None:
    def called(*point: object, **changes: object) -> str:
        made = frame([records.record(*point, **changes)])  # type: ignore[arg-type]
        return labels.weights(labels.rows(made)[0])

    assert called("rtn", 4, 64) == "w4g64"
    assert called("rtn", 4, 64, symmetric=True) == "w4g64-sym"
    assert called("rtn", 1.6, 64) == "w1.6g64"
    full = ("full_precision", None, None, None)
    assert called(*full) == "fp32"
    assert called(*full, method_options="dtype=bfloat16") == "bf16"


def test_a_heat_maps_row_says_what_shapes_its_grid() -> None:
    found = frame([records.record("rtn", 4, 64, symmetric=True, scale_dtype="float32")])
    assert labels.grid(labels.rows(found)[0]) == "rtn sym float32 scale"
