"""A second process that draws figures, begun before there is anything to draw.

It is started by itself and not by ``multiprocessing``, which would run a caller's script again.
While this process reads Records, it imports what it draws with.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import bitsweep

DRAWS = "bitsweep.report.drawing"
"""The module that it runs, with the folder that both look into."""

JOB = "job.pickle"


class Beside:
    """The process, and the folder in which both claim their figures."""

    def __init__(self, claims: Path, process: subprocess.Popen[bytes]) -> None:
        self.claims, self.process = claims, process

    def give(self, job: Any) -> None:
        """What it waits for; what it does with it is told by the files in ``claims``."""
        with (self.claims / JOB).open("wb") as file:
            pickle.dump(job, file, pickle.HIGHEST_PROTOCOL)
        assert self.process.stdin is not None
        with suppress(OSError):  # it is gone: who waits for its figures draws them
            self.process.stdin.write(b"\n")
            self.process.stdin.close()


def receive(claims: Path) -> Any:
    """The job, over there; None where this process ended without giving one."""
    if not sys.stdin.buffer.readline():
        return None
    return pickle.loads((claims / JOB).read_bytes())


@contextmanager
def beside(wanted: bool = True) -> Iterator[Beside | None]:
    """The second process, ended with the block; None where it is not wanted or can not run."""
    if not wanted or processors() < 2:
        yield None
        return
    package = str(Path(bitsweep.__file__).parents[1])
    places = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="bitsweep-") as name:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", DRAWS, name],
                env={**os.environ, "PYTHONPATH": places},
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError:
            yield None
            return
        try:
            yield Beside(Path(name), process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]  # it is a pipe


def processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
