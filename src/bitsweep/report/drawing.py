"""The figures of a report, by a second process while this one writes tables and the page.

The other process is started by itself and not by ``multiprocessing``, which would run a caller's
script again. Each figure is drawn by who claims it first; what the other did not finish is drawn
here, so that a machine where it can not run has the same files, later.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

import bitsweep
from bitsweep.report import figures
from bitsweep.report.curves import Curve
from bitsweep.report.style import UNDATED, in_style, save
from bitsweep.store import uncollected

FEW = 3
"""Figures that are drawn sooner than another process is there."""

JOB, CLAIMED, DONE = "job.pickle", ".claimed", ".done"


class Drawing:
    """Figures that are being drawn; :meth:`finish` draws what is left and waits for the rest."""

    def __init__(
        self, jobs: Sequence[tuple[str, figures.Made]], folder: Path, claims: Path | None
    ) -> None:
        self._jobs, self._folder, self._claims = jobs, folder, claims
        self.helper: subprocess.Popen[bytes] | None = None

    @property
    def paths(self) -> list[Path]:
        """Of all figures, in their order, also before they are there."""
        return [self._folder / f"{name}.{suffix}" for name, _ in self._jobs for suffix in UNDATED]

    def finish(self) -> None:
        """Return when every figure is there."""
        _draw(self._jobs, self._folder, self._claims)
        if self.helper is not None and self._claims is not None:
            self.helper.wait()
            left = [job for job in self._jobs if not _mark(self._claims, job[0], DONE).exists()]
            _draw(left, self._folder, None)


@contextmanager
def drawing(
    frame: pd.DataFrame, folder: Path, curves: Sequence[Curve] = (), alone: bool = False
) -> Iterator[Drawing]:
    """Begin every figure that there are numbers for; they are there after ``finish``.

    ``alone``: without another process, for a caller that is one of several.
    """
    with uncollected():
        jobs = [*figures.every(frame, curves)]
    if len(jobs) <= FEW or _processors() < 2 or alone:
        yield Drawing(jobs, folder, None)
        return
    with tempfile.TemporaryDirectory(prefix="bitsweep-") as name:
        begun = Drawing(jobs, folder, Path(name))
        with uncollected():
            begun.helper = _start(frame, folder, curves, Path(name))
        try:
            yield begun
        finally:
            if begun.helper is not None and begun.helper.poll() is None:
                begun.helper.kill()
                begun.helper.wait()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(
    frame: pd.DataFrame, folder: Path, curves: Sequence[Curve], claims: Path
) -> subprocess.Popen[bytes] | None:
    """The second process; None where it can not be started."""
    with (claims / JOB).open("wb") as file:
        pickle.dump((frame, folder.absolute(), [*curves]), file, pickle.HIGHEST_PROTOCOL)
    package = str(Path(bitsweep.__file__).parents[1])
    places = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    try:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(claims)],
            env={**os.environ, "PYTHONPATH": places},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return None


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
    with uncollected():
        given: Any = pickle.loads((claims / JOB).read_bytes())
        frame, folder, curves = given
        jobs = [*figures.every(frame, curves)]
    _draw(jobs[::-1], folder, claims)


if __name__ == "__main__":
    _help(Path(sys.argv[1]))
