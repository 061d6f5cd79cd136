"""How far a long loop is, for whoever listens: loops say what they count and know no terminal.

    for batch in pace.of(batches, total, "windows", len):    # in a probe
    with pace.heard(progress.step):                          # around a run

Nobody listens unless asked to: a loop is then as if it were not wrapped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """``done`` of ``total`` ``units`` are done, ``elapsed`` seconds after the loop began."""

    done: int
    total: int
    units: str
    elapsed: float

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at this pace; None before anything is done."""
        return self.elapsed * (self.total - self.done) / self.done if self.done else None


Listener = Callable[[Step], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_whose: ContextVar[str] = ContextVar("whose", default="")


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Every loop below this ``with`` tells ``listener`` its steps."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def named(whose: str) -> Iterator[None]:
    """The loops below this ``with`` count the same once more, of ``whose``."""
    token = _whose.set(f" of {whose}")
    try:
        yield
    finally:
        _whose.reset(token)


def of(
    items: Iterable[T], total: int, units: str, size: Callable[[T], int] = lambda item: 1
) -> Iterator[T]:
    """``items`` as they are; each is ``size`` of ``total`` and done when the next is asked for."""
    listener = _listener.get()
    if listener is None:
        yield from items
        return
    began, done = time.perf_counter(), 0
    for item in items:
        yield item
        done += size(item)
        listener(Step(done, total, units + _whose.get(), time.perf_counter() - began))
