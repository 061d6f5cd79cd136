"""What a sweep says while it runs: one line after each point, within a long one how far it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitsweep import pace, timing
from bitsweep.record import Metric, Record

if TYPE_CHECKING:
    from bitsweep.survey import Candidate
    from bitsweep.sweep import Outcome


REDRAW_S, SAY_S = 0.25, 30.0
"""How often the count of a long loop changes on a terminal, and is a line where there is none."""


class Progress:
    """Says which of the points this is and guesses the time that is left from those before it.

    A launcher's processes know which point they have, not how far the others are: they guess none.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, soft_wrap=True, markup=False)
        self.total = 1
        self.before = 0
        self.several = False
        self.alone = True
        self._number: int | None = 1
        self._status: Any = None
        self._label = self._stage = ""
        self._said = time.perf_counter()
        self._began = time.perf_counter()

    def __getstate__(self) -> dict[str, Any]:
        """Another process prints to its own console, without a live line."""
        return {
            "total": self.total,
            "before": self.before,
            "several": self.several,
            "alone": False,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)

    def begin(self, candidates: Sequence[Candidate], wall_s: float) -> None:
        """Say what is launched and, of the rest, why not."""
        fates = Counter(candidate.fate for candidate in candidates)
        self.before = fates["done"]
        self.total = fates["run"] + fates["done"]
        self.several = len({candidate.job.point.model.name for candidate in candidates}) > 1
        counts = [f"{fates['run']} to run"]
        counts += [f"{fates[fate]} {fate}" for fate in ("done", "refused", "merged") if fates[fate]]
        self.console.print(f"{len(candidates)} points: {', '.join(counts)}  ({wall_s:.1f} s)")
        told: dict[str, list[str]] = {}
        for candidate in candidates:
            if candidate.reason:
                told.setdefault(f"{candidate.fate}: {candidate.reason}", []).append(candidate.label)
        for reason, labels in told.items():
            others = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            self.console.print(f"{reason}  ({labels[0]}{others})")
        self._began = time.perf_counter()

    def called(self, candidate: Candidate) -> str:
        """What its lines say of a point; the model where the sweep has several."""
        model = f"{candidate.job.point.model.name} " if self.several else ""
        return f"{model}{candidate.name}"

    def start(self, label: str, number: int | None = 1) -> None:
        """A point starts, the ``number``-th that is launched; None where that is not known."""
        self._label, self._number, self._said = label, number, time.perf_counter()
        if self.console.is_terminal:
            self._status = self.console.status(self._counter(label))
            self._status.start()

    def stage(self, name: str) -> None:
        """A stage of the point starts."""
        self._stage = name
        if self._status is not None:
            self._status.update(f"{self._counter(self._label)}  {name} …")

    def step(self, step: pace.Step) -> None:
        """A loop within the stage is so far: shown live, or now and then as a line."""
        now = time.perf_counter()
        if now - self._said < (SAY_S if self._status is None else REDRAW_S):
            return
        self._said = now
        parts = [self._counter(self._label), self._stage]
        parts.append(f"{step.done:,} of {step.total:,} {step.units}")
        if step.left is not None:
            parts.append(f"(about {duration(step.left)} left)")
        if self._status is None:
            self.console.print("  ".join(parts))
        else:
            self._status.update("  ".join(parts))

    def end(self, outcome: Outcome, wall_s: float) -> None:
        """A point is finished: its line."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        parts = [self._counter(outcome.label), *result(outcome), duration(wall_s)]
        if self._number is not None and self.alone:
            left = self.total - self.before - self._number
            mean = (time.perf_counter() - self._began) / self._number
            parts += [f"(about {duration(mean * left)} left)"] * (left > 0)
        self.console.print("  ".join(parts))

    def warn(self, line: str) -> None:
        """One line that is no result."""
        self.console.print(line)

    def close(self) -> None:
        """Leave the terminal as it was, whatever happened."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _counter(self, label: str) -> str:
        if self._number is None:
            return label
        return f"[{self.before + self._number}/{self.total}] {label}"


def result(outcome: Outcome) -> list[str]:
    """The numbers of a line, or why there are none."""
    if outcome.error is not None:
        return [f"failed: {outcome.error}"]
    for record in outcome.records:
        if record.status != "ok":
            return [f"{record.status}: {record.reason}"]
    return [text for record in outcome.records for text in _numbers(record)]


def _numbers(record: Record) -> list[str]:
    metrics = record.metrics.values()
    perplexity = next((m for m in metrics if m.name.startswith("ppl/")), None)
    values = {
        f"{metric.name}{end}": value
        for metric in metrics
        for end, value in (("", metric.value), (".lo", metric.lo), (".hi", metric.hi))
        if value is not None
    }
    parts = [] if perplexity is None or perplexity.value is None else [_perplexity(perplexity)]
    for name, text in (("file_mib", "{:.2f} MiB"), ("decode_vs_bf16", "decode {:.1f}x bf16")):
        metric = record.metrics.get(name)
        if metric is not None and metric.value is not None:
            engine = timing.ENGINE.search(metric.signature)
            by = f" ({engine[1]})" if engine else ""
            doubt = ", noisy" * (timing.is_time(name) and timing.unrest(values) > 1)
            parts.append(text.format(metric.value) + by + doubt)
    return parts


def _perplexity(metric: Metric) -> str:
    text = f"ppl {metric.value:.3f}"
    delta = metric.delta
    if delta is None or delta.kind != "ratio":
        return text
    value, lo, hi = (100 * (number - 1) for number in (delta.value, delta.lo, delta.hi))
    if value == lo == hi == 0:  # full precision beside itself
        return text
    value, lo, hi = (round(number, 1) + 0.0 for number in (value, lo, hi))  # -0.0 becomes 0.0
    return f"{text} ({value:+.1f} % [{lo:.1f}, {hi:.1f}])"


def duration(seconds: float) -> str:
    """``14 s``, ``3 min``, ``1 h 20 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
