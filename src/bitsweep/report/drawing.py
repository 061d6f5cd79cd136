"""The figures of a report, by a second process while this one writes tables and the page.

Each figure is drawn by who claims it first; what the other did not finish is drawn
here, so that a machine where it can not run has the same files, later.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bitsweep.report import figures
from bitsweep.report.beside import Beside, beside, receive
from bitsweep.report.curves import Curve
from bitsweep.report.style import UNDATED, in_style, save
from bitsweep.store import uncollected

FEW = 3
"""Figures that are drawn sooner than another process is there."""

CLAIMED, DONE = ".claimed", ".done"


class Drawing:
    """Figures that are being drawn; :meth:`finish` draws what is left and waits for the rest."""

    def __init__(
        self, jobs: Sequence[tuple[str, figures.Made]], folder: Path, helper: Beside | None
    ) -> None:
        self._jobs, self._folder, self.helper = jobs, folder, helper

    @property
    def paths(self) -> list[Path]:
        """Of all figures, in their order, also before they are there."""
        return [self._folder / f"{name}.{suffix}" for name, _ in self._jobs for suffix in UNDATED]

    def finish(self) -> None:
        """Return when every figure is there."""
        if self.helper is None:
            _draw(self._jobs, self._folder, None)
            return
        claims = self.helper.claims
        _draw(self._jobs, self._folder, claims)
        self.helper.process.wait()
        left = [job for job in self._jobs if not _mark(claims, job[0], DONE).exists()]
        _draw(left, self._folder, None)


@contextmanager
def drawing(
    frame: pd.DataFrame,
    folder: Path,
    curves: Sequence[Curve] = (),
    alone: bool = False,
    early: Beside | None = None,
) -> Iterator[Drawing]:
    """Begin every figure that there are numbers for; they are there after ``finish``.

    ``alone``: without another process, for a caller that is one of several. ``early``: one that was
    begun already; else it is begun here, where there are enough figures.
    """
    with ExitStack() as stack:
        with uncollected():
            jobs = [*figures.every(frame, curves)]
        if early is None:
            early = stack.enter_context(beside(len(jobs) > FEW and not alone))
        if early is not None:
            early.give((jobs, folder.absolute()))
        yield Drawing(jobs, folder, early)


def _draw(jobs: Sequence[tuple[str, figures.Made]], folder: Path, claims: Path | None) -> None:
    """Draw those that nobody has claimed; without ``claims`` all of them."""
    with _frozen(), in_style():
        for name, make in jobs:
            if claims is None:
                save(make(), folder, name)
            elif _claim(claims, name):
                save(make(), folder, name)
                _mark(claims, name, DONE).touch()


def _claim(claims: Path, name: str) -> bool:
    try:
        _mark(claims, name, CLAIMED).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _mark(claims: Path, name: str, what: str) -> Path:
    return claims / f"{name}{what}"


@contextmanager
def _frozen() -> Iterator[None]:
    """The collector need not look through all Records again with every figure."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _help(claims: Path) -> None:
    """What the second process does: from the last figure back, as the first begins in front."""
    with in_style():  # once, while it waits: fonts are found and what writes files is imported
        figure = Figure(figsize=(1, 1))
        figure.add_subplot()
        save(figure, claims, "first")
    with uncollected():
        job = receive(claims)
        if job is None:
            return
        jobs, folder = job
    _draw(jobs[::-1], folder, claims)


if __name__ == "__main__":
    _help(Path(sys.argv[1]))
