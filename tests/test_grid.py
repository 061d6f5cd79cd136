"""Grids to lists of overrides: union, product, and what the command line does to them."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bitsweep.errors import UserError
from bitsweep.grid import expand, literal


def test_a_grid_is_the_product_of_its_axes() -> None:
    points = expand([{"method": ["rtn", "gptq"], "bits": [2, 3]}], [])
    assert points == [
        ["method=rtn", "bits=2"],
        ["method=rtn", "bits=3"],
        ["method=gptq", "bits=2"],
        ["method=gptq", "bits=3"],
    ]


def test_several_grids_are_a_union() -> None:
    points = expand([{"method": "full_precision"}, {"method": "rtn", "bits": [3, 4]}], [])
    assert points == [
        ["method=full_precision"],
        ["method=rtn", "bits=3"],
        ["method=rtn", "bits=4"],
    ]


def test_without_grids_the_command_line_is_the_grid() -> None:
    points = expand(None, ["method=rtn", "bits=2,3"])
    assert points == [["method=rtn", "bits=2"], ["method=rtn", "bits=3"]]


def test_a_value_that_the_grids_list_narrows_them() -> None:
    grids = [{"method": "full_precision"}, {"method": ["rtn", "gptq"], "bits": [3, 4]}]
    assert expand(grids, ["method=gptq", "bits=4"]) == [["method=gptq", "bits=4"]]


def test_each_grid_keeps_the_given_values_that_it_lists() -> None:
    grids = [{"method": "rtn"}, {"method": ["gptq", "awq"]}, {"method": "qat", "method.steps": 5}]
    points = expand(grids, ["method=qat,gptq"])
    assert points == [["method=gptq"], ["method=qat", "method.steps=5"]]


def test_a_value_that_no_grid_lists_replaces_theirs() -> None:
    grids = [{"method": "rtn", "bits": [3, 4]}, {"method": "gptq", "bits": 8}]
    assert expand(grids, ["bits=5"]) == [["bits=5", "method=rtn"], ["bits=5", "method=gptq"]]


def test_an_axis_that_no_grid_has_is_swept_in_all() -> None:
    points = expand([{"bits": 3}, {"bits": 4}], ["seed=0,1"])
    assert points == [
        ["seed=0", "bits=3"],
        ["seed=1", "bits=3"],
        ["seed=0", "bits=4"],
        ["seed=1", "bits=4"],
    ]


def test_a_sweep_over_an_axis_of_some_grids_leaves_the_others_alone() -> None:
    grids = [{"method": "full_precision"}, {"method": "rtn", "bits": [3, 4]}]
    assert expand(grids, ["bits=5,6"]) == [
        ["method=full_precision"],
        ["bits=5", "method=rtn"],
        ["bits=6", "method=rtn"],
    ]


def test_the_last_value_of_a_key_wins() -> None:
    assert expand(None, ["bits=2,3", "bits=4"]) == [["bits=4"]]


@pytest.mark.parametrize(
    ("grids", "arguments", "message"),
    [
        ({"bits": 3}, [], "grids: takes a list of mappings"),
        ([{"bits": []}], [], r"grids\[0\].bits: has no values"),
        (None, ["bits=interval(2,4)"], "bits=interval"),
        (None, ["bits=range(2,5,0)"], r"bits=range\(2,5,0\): .*must not be zero"),
        (
            [{"method": "a", "bits": 3}, {"method": "b", "bits": 4}],
            ["method=a", "bits=4"],
            "no grid of the experiment has all of these values",
        ),
        (
            [{"method": "a", "bits": 3}, {"method": "b", "bits": 4}],
            ["+experiments@_global_=mine", "experiment=mine", "method=a", "bits=4"],
            "^mine method=a bits=4: no grid of the experiment has all of these values",
        ),
    ],
)
def test_what_can_not_be_expanded_is_one_line(
    grids: object, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        expand(grids, arguments)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -1,
        0.5,
        "rtn",
        "true",
        "null",
        "1e-3",
        "it's a path/with spaces",
        "a,b=c",
        "back\\slash",
        "",
        "../shared/data",
        "first,last",
        [1, "two"],
        {"role": "ffn", "bits": 4},
    ],
)
def test_hydra_reads_a_literal_back_as_the_same_value(value: object) -> None:
    override = OverridesParser.create().parse_override(f"key={literal(value)}")
    assert not override.is_sweep_override()
    assert override.value() == value
