"""A tracker sees finished Records, may fail at any time, and costs a sweep one line at most."""

from __future__ import annotations

import pytest
import records

from bitsweep import tracking
from bitsweep.record import Record
from bitsweep.store import Store
from bitsweep.tracking.flat import config, numbers


def measured() -> list[Record]:
    point = ("gptq", 4, 64, "uniform")
    timing = records.record(*point, kind="timing", metrics=records.latency(4))
    timing.point |= {"engine": "torch_int4", "threads": 2, "device": "laptop"}
    failed = records.record("rtn", 2, status="failed", reason="OSError: no such file")
    return [records.record(*point, metrics=records.quality(*point)), timing, failed]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.mark.parametrize(
    ("value", "kept"),
    [("/home/me/models/llama", "llama"), ("org/name", "org/name"), ("https://u:p@h/x?t=1", "x")],
)
def test_a_path_or_url_is_cut_to_its_last_part(value, kept):
    assert config(records.record("rtn", 4, model=value))["model"] == kept


def test_names_of_numbers_do_not_nest():
    names = numbers(measured()[0])
    assert "ppl/in_domain_delta_lo" in names
    assert not any("." in name for name in names)


class Down:
    """A tracker whose server is down."""

    name = "down"

    def __init__(self) -> None:
        self.calls = 0

    def destination(self) -> str:
        return "server"

    def has(self, ident: str) -> bool:
        return True

    def hint(self) -> str:
        return ""

    def log(self, record: Record, entry: tracking.Entry, say: tracking.Say) -> None:
        self.calls += 1
        raise TimeoutError("no answer\nafter 15 s")

    summarize = log


def test_a_tracker_that_raises_costs_one_line_and_is_left_alone(tmp_path, said):
    tracker = Down()
    mirror = tracking.open([tracker], Store(tmp_path), said.append)
    assert [mirror.log(record) for record in measured() * 2] == [False] * 6
    assert said == [
        "tracker=down: TimeoutError: no answer; "
        "the Records are safe on disk, tracker=none turns it off"
    ]
    assert tracker.calls == tracking.GIVE_UP_AFTER
