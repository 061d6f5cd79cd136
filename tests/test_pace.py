"""Long loops tell how far they are, to whoever listens."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch

from bitsweep import pace, progress
from bitsweep.models import Model
from bitsweep.pace import Step
from bitsweep.probes._forward import scores
from bitsweep.probes._greedy import generate
from bitsweep.progress import Progress


class Clock:
    """Seconds, as many as it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    watch = SimpleNamespace(perf_counter=clock)
    monkeypatch.setattr(progress, "time", watch)
    monkeypatch.setattr(pace, "time", watch)
    return clock


def test_a_loop_counts_what_its_items_are_and_what_is_left_at_this_pace(clock: Clock) -> None:
    said: list[Step] = []
    with pace.heard(said.append):
        for _ in pace.of([[1, 2], [3, 4], [5]], 5, "windows", len):
            clock.now += 3
    assert said == [Step(2, 5, "windows", 3), Step(4, 5, "windows", 6), Step(5, 5, "windows", 9)]
    assert [step.left for step in said] == [4.5, 1.5, 0]


def test_nobody_hears_of_a_loop_outside() -> None:
    said: list[Step] = []
    with pace.heard(said.append):
        pass
    assert list(pace.of("abc", 3, "letters")) == ["a", "b", "c"]
    assert said == []


def test_what_is_counted_again_says_of_what(clock: Clock) -> None:
    said: list[Step] = []
    with pace.heard(said.append):
        with pace.named("full precision"):
            list(pace.of("a", 1, "letters"))
        list(pace.of("a", 1, "letters"))
    assert [step.units for step in said] == ["letters of full precision", "letters"]


def console(terminal: bool) -> Progress:
    from rich.console import Console

    found = Progress()
    found.console = Console(
        file=io.StringIO(), force_terminal=terminal, width=200, highlight=False, markup=False
    )
    found.total = 7
    return found


def test_without_a_terminal_a_long_loop_is_a_line_every_thirty_seconds(clock: Clock) -> None:
    lines = console(terminal=False)
    lines.start("rtn w3")
    lines.stage("perplexity")
    with pace.heard(lines.step):
        for _ in pace.of(range(100), 100, "windows"):
            clock.now += 1
    assert lines.console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "[1/7] rtn w3  perplexity  30 of 100 windows  (about 70 s left)",
        "[1/7] rtn w3  perplexity  60 of 100 windows  (about 40 s left)",
        "[1/7] rtn w3  perplexity  90 of 100 windows  (about 10 s left)",
    ]


def test_a_short_point_has_no_line_but_its_own(clock: Clock) -> None:
    lines = console(terminal=False)
    for _ in range(20):
        lines.start("rtn w3")
        with pace.heard(lines.step):
            for _ in pace.of(range(29), 29, "windows"):
                clock.now += 1
    assert lines.console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_terminal_shows_the_count_live(clock: Clock) -> None:
    live = console(terminal=True)
    live.start("rtn w3")
    live.stage("perplexity")
    shown: list[str] = []
    with pace.heard(live.step):
        for _ in pace.of(range(4), 4, "windows"):
            clock.now += 1
            shown.append(str(live._status.status))
    live.close()
    assert shown == [
        "[1/7] rtn w3  perplexity …",
        "[1/7] rtn w3  perplexity  1 of 4 windows  (about 3.0 s left)",
        "[1/7] rtn w3  perplexity  2 of 4 windows  (about 2.0 s left)",
        "[1/7] rtn w3  perplexity  3 of 4 windows  (about 1.0 s left)",
    ]


def test_every_window_and_every_prompt_is_counted(model: Model) -> None:
    said: list[Step] = []
    with pace.heard(said.append):
        scores(model, torch.zeros(200, 32, dtype=torch.int64))
        generate(model, [[1, 2, 3]] * 40, 2, None)
    ends = [step for step in said if step.done == step.total]
    assert [(step.done, step.units) for step in ends] == [(200, "windows"), (40, "prompts")]
    assert len(said) > len(ends)
