"""``doctor``: what works here, one line each, and what to do about what does not."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from bitsweep.artifacts import cache_root
from bitsweep.compose import compose, conf_dir, experiments, group_files, plain_config
from bitsweep.errors import UserError

NEEDED = (
    "torch",
    "transformers",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "lm-eval",
    "sacrebleu",
    "rouge-score",
    "datasets",
    "wandb",
    "pandas",
    "matplotlib",
    "plotly",
)
LITTLE_DISK_GIB = 5


@dataclass(frozen=True)
class Line:
    """One finding. ``bad`` is what no run can do without."""

    state: Literal["ok", "warn", "bad"]
    topic: str
    text: str


def doctor(argv: list[str]) -> int:
    """Print the findings; 2 where one is bad, else 0."""
    if argv:
        raise UserError(f"doctor {' '.join(argv)}: takes nothing more")
    worst = 0
    for line in findings():
        print(f"{line.state:<5}{line.topic:<10}{line.text}", flush=True)
        worst = max(worst, 2 if line.state == "bad" else 0)
    return worst


def findings() -> Iterator[Line]:
    """All findings, cheapest first; a check that breaks is a finding itself."""
    checks: tuple[tuple[str, Callable[[], Iterable[Line]]], ...] = (
        ("versions", _versions),
        ("conf", _conf),
        ("device", _devices),
        ("engine", _engines),
        ("tracker", _tracker),
        ("disk", _disk),
        ("cache", _caches),
    )
    for topic, check in checks:
        try:
            yield from check()
        except Exception as error:  # a broken install shows up as anything
            yield Line("bad", topic, f"{type(error).__name__}: {error}")


def _versions() -> Iterator[Line]:
    from bitsweep import __version__

    yield Line("ok", "bitsweep", f"{__version__}, Python {platform.python_version()}")
    missing = []
    found = []
    for name in NEEDED:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Line("ok", "packages", ", ".join(found))
    for name in missing:
        yield Line("bad", "packages", f"{name} is missing; pip install {name}")


def _conf() -> Iterator[Line]:
    yield Line("ok", "conf", f"{conf_dir()}; {len(experiments())} experiments")


def _devices() -> Iterator[Line]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    yield Line("ok", "cpu", f"{cores} cores, torch uses {threads} thread{'s' * (threads != 1)}")
    if cores and threads > cores:
        yield Line("warn", "cpu", f"more threads than cores slow everything; threads={cores}")
    if not torch.cuda.is_available():
        yield Line("ok", "cuda", "torch finds no GPU; model.device=cpu")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        text = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free; model.device=cuda"
        yield Line("ok", f"cuda:{index}", text)


def _engines() -> Iterator[Line]:
    from bitsweep import engines

    for name, state in engines.available().items():
        if state == "ok":
            yield Line("ok", "engine", name)
        else:
            yield Line("warn", "engine", f"{name}: {state}; its points have no latency here")


def _tracker() -> Iterator[Line]:
    from bitsweep.tracking.wandb import base_url, logged_in

    mode = os.environ.get("WANDB_MODE")
    if mode:
        yield Line("ok", "wandb", f"WANDB_MODE={mode}")
    elif logged_in():
        yield Line("ok", "wandb", f"logged in to {base_url().rpartition('@')[2]}")
    else:
        text = "not logged in: runs are kept offline; `wandb login`, or tracker=none"
        yield Line("warn", "wandb", text)
    for name in group_files("tracker"):
        if name not in ("none", "wandb"):
            yield _other(name)


def _other(name: str) -> Line:
    """Where the runs of a tracker would go, or what it lacks; no run needs it."""
    from bitsweep import config

    try:
        values, _ = plain_config(compose([f"tracker={name}"]))
        (tracker,) = config.trackers(values)
    except UserError as reason:
        return Line("warn", "tracker", str(reason))
    return Line("ok", "tracker", f"tracker={name} writes to {tracker.destination()}")


def _disk() -> Iterator[Line]:
    for topic, place in (("results", Path.cwd()), ("cache", cache_root())):
        folder = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(folder).free / 2**30
        writable = folder.is_dir() and os.access(folder, os.W_OK)
        text = f"{place}: {free:.0f} GiB free"
        if not writable:
            text += "; not writable"
        state: Literal["ok", "warn"] = "ok" if writable and free > LITTLE_DISK_GIB else "warn"
        yield Line(state, topic, text)


def _caches() -> Iterator[Line]:
    root = cache_root()
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    yield Line("ok", "cache", f"{size / 2**20:.0f} MiB kept in {root}; it can be deleted any time")
    hub = importlib.import_module("huggingface_hub.constants")
    offline = " (offline)" if hub.HF_HUB_OFFLINE else ""
    yield Line("ok", "hub", f"checkpoints and data sets from the hub: {hub.HF_HOME}{offline}")
