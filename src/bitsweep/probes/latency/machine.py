"""The machine beside a time: how fast its memory is, how large its cache, who else is at work."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

MIB, GIB = 2**20, 2**30
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
SMALLEST, LARGEST = 64 * MIB, 512 * MIB
"""Bounds of the two arrays; together they are twice the last-level cache where memory allows."""

TRIES = 5


@dataclass(frozen=True)
class Bandwidth:
    """GiB per second, the best of some tries. ``copy`` counts what is read and what is written, as
    STREAM does; ``read`` is a float32 matrix times a vector. ``array_mib``: size of each array.
    """

    copy_gib_s: float
    read_gib_s: float
    array_mib: float

    @property
    def best(self) -> float:
        """Bytes per second that no weights can exceed: the faster of both."""
        return max(self.copy_gib_s, self.read_gib_s) * GIB

    def to_json(self) -> dict[str, float]:
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


def bandwidth(device: torch.device) -> Bandwidth:
    """Of ``device`` now, with the present number of threads; takes about a second.

    On a CPU the copy is numpy's, a thread a part: C's ``memcpy`` writes past the cache, which
    torch's own copy does not (a third slower).
    """
    size = _array_bytes(device)
    width = 2048
    if device.type == "cuda":
        source = torch.ones(size // (4 * width), width, device=device)
        target, vector = torch.empty_like(source), torch.ones(width, device=device)
        copy = _fastest(lambda: target.copy_(source), device)
    else:
        source = torch.ones(size // (4 * width), width)
        target, vector = torch.zeros_like(source), torch.ones(width)
        threads = torch.get_num_threads()
        pairs = [
            (to.numpy(), of.numpy())
            for to, of in zip(target.chunk(threads), source.chunk(threads), strict=True)
        ]
        with ThreadPoolExecutor(threads) as pool:
            copy = _fastest(lambda: [*pool.map(lambda pair: np.copyto(*pair), pairs)], device)
    read = _fastest(lambda: source @ vector, device)
    used = source.numel() * 4
    return Bandwidth(2 * used / copy / GIB, used / read / GIB, used / MIB)


def cache_bytes(device: torch.device) -> int | None:
    """The last level of cache, as the system reports it; None where it reports none.

    A virtual machine reports its host's, which others use as well.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = {}
    for folder in CACHES.glob("index*"):
        try:
            level = int((folder / "level").read_text())
            text = (folder / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if text.endswith("K") and text[:-1].isdigit():
            sizes[level] = int(text[:-1]) * 1024
    return sizes[max(sizes)] if sizes else None


class Watch:
    """What else ran while times were taken, from its making to :meth:`seen`."""

    def __init__(self) -> None:
        self._load = psutil.getloadavg()[0]
        self._times, self._wall = psutil.cpu_times(), time.monotonic()
        self._own = time.process_time()

    def seen(self) -> dict[str, float]:
        """``load_before`` and ``load_after`` (mean of a minute); ``others``: cores that were kept
        busy by other processes; ``steal``: share of the machine's time that its host kept for
        others (Linux).
        """
        now, wall = psutil.cpu_times(), max(time.monotonic() - self._wall, 1e-9)
        spent = {n: getattr(now, n) - getattr(self._times, n) for n in now._fields}
        spent = {n: v for n, v in spent.items() if not n.startswith("guest")}  # within user, nice
        idle = sum(spent.get(name, 0.0) for name in ("idle", "iowait", "steal"))
        others = sum(spent.values()) - idle - (time.process_time() - self._own)
        found = {
            "load_before": self._load,
            "load_after": psutil.getloadavg()[0],
            "others": max(others, 0.0) / wall,
        }
        if "steal" in spent:
            found["steal"] = spent["steal"] / max(sum(spent.values()), 1e-9)
        return {name: round(value, 3) for name, value in found.items()}


@contextmanager
def threads_kept() -> Iterator[None]:
    """Torch's number of threads is afterwards what it was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage is collected later."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def cores() -> int:
    """Cores that this process may use: fewer than the machine's below ``taskset``."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The result of ``work`` and its milliseconds; on CUDA between two events, waited for."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = work()
        end.record()
        end.synchronize()
        return result, begin.elapsed_time(end)
    started = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - started)


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the best of some tries, after one that touches every page."""
    work()
    return max(min(timed(work, device)[1] for _ in range(TRIES)), 1e-6) / 1000


def _array_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    return max(min(max(cache_bytes(device) or 0, SMALLEST), LARGEST, free // 16), MIB)
