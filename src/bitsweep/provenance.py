"""Where and with what a Record was made: commit, versions, device, threads, cost of each stage."""

from __future__ import annotations

import functools
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "bitsweep",
    "torch",
    "transformers",
    "lm-eval",
    "sacrebleu",
    "rouge-score",
    "numpy",
    "hydra-core",
)
CODE = ("src", "conf", "experiments", "pyproject.toml", "constraints.txt")
"""What makes a number: a change elsewhere in the checkout does not make a Record dirty."""


def collect(command: str, seed: int, device: str) -> dict[str, Any]:
    """The provenance of a Record that begins now, on ``device`` (``cpu`` or ``cuda``)."""
    import torch

    return {
        **code(),
        "versions": versions(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
        "seed": seed,
        "utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
    }


@functools.cache
def code() -> dict[str, Any]:
    """Commit of the checkout that this package runs from, and whether its code was changed.

    Both are None for an installed wheel, whose version says what it is.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / "pyproject.toml").is_file():
        return {"commit": None, "dirty": None}
    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--", *CODE)
    return {"commit": commit, "dirty": None if status is None else bool(status)}


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part in a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def device_name(device: str) -> str:
    """The processor's own name: ``NVIDIA H200`` or ``AMD EPYC ...``."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} x{os.cpu_count()}"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()} x{os.cpu_count()}"


class Stopwatch:
    """Wall time, CPU time and peak resident memory of each named stage of a run."""

    def __init__(self, progress: Callable[[str], None] | None = None) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._progress is not None:
            self._progress(stage)
        _reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.stages[stage] = {
                "wall_s": round(time.perf_counter() - wall, 3),
                "cpu_s": round(time.process_time() - cpu, 3),
                "peak_rss_mib": round(_peak_mib(), 1),
            }


def _reset_peak() -> None:
    """Forget the process's peak memory, where the kernel lets us (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
