"""How long ``bitsweep report`` takes, stage by stage, for many Records.

    python benchmarks/report.py [--records 10 1000 10000] [--models 1] [--apart 1] [--keep FOLDER]

Makes that many Records out of the committed ones (``results/methods``, ``policies``, ``demo``,
``sensitivity``): their columns, signatures and details as they are, other seeds, options and models
(the five of the sources, each as ``--models``), numbers moved by a few per cent. Reports them, and
prints seconds of one CPU by stage, those of the process beside it that draws figures, the page's
size and the peak memory, each count in a process of its own. ``--apart K``: as K experiments
reported together. ``--keep``: leave the folders there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

RESULTS = Path(__file__).parents[1] / "results"
SOURCES = ("methods", "policies", "demo", "sensitivity")
APART = {"demo": "-demo", "sensitivity": "-half"}
"""Measured on less text than the others, which is another protocol: models of their own."""


STAGES = (
    ("bitsweep.report", "collect", "read"),
    ("bitsweep.report.frame", "frame", "frame"),
    ("bitsweep.report.origin", "origin", "origin"),
    ("bitsweep.report.tables", "sheets", "tables"),
    ("bitsweep.report.sheet", "markdown", "Markdown"),
    ("bitsweep.report.sheet", "as_csv", "CSV"),
    ("bitsweep.report.listing", "latex", "LaTeX"),
    ("bitsweep.report.curves", "read", "curves"),
    ("bitsweep.report.drawing", "_draw", "figures"),
    ("bitsweep.report.page", "render", "page"),
    ("bitsweep.report.terminal", "show", "terminal"),
)
"""Module, function, name: what is timed inside ``report.write`` and ``report.summary``."""

Json = dict[str, Any]


def templates() -> list[tuple[Json, Path]]:
    """The committed Records that can stand in one report, each with its file of details."""
    found = []
    for source in SOURCES:
        for path in sorted((RESULTS / source / "records").glob("*.json")):
            record = json.loads(path.read_bytes())
            record["point"]["model"] += APART.get(source, "")
            found.append((record, RESULTS / source / "details" / f"{path.stem}.jsonl.gz"))
    random.Random(0).shuffle(found)
    return found


def varied(record: Json, copy: int, experiment: str, models: int) -> Json:
    """The ``copy``-th Record like this one: another seed, option or model, other numbers."""
    noise = random.Random(f"{record['run_id']} {copy}")
    made = json.loads(json.dumps(record))
    point, turn = made["point"], copy // models
    if copy % models:
        point["model"] += f"-{copy % models}"
        if made["model"]:
            made["model"]["sha256"] = _digest(made["model"]["sha256"], copy % models)
    if turn and point.get("seed") is not None:
        point["seed"] += 100 * turn
    elif turn:
        point["method_options"] = f"{point['method_options']} strength={turn / 100}".strip()
    if turn:
        point["label"] += f" {turn}"
    made["experiment"] = experiment
    made["point_id"] = _digest(record["point_id"], copy)
    made["run_id"] = _digest(record["run_id"], copy)
    reference = point["method"] == "full_precision"
    for metric in made["metrics"].values():
        factor = 1.0 if reference or not copy else noise.uniform(0.97, 1.03)
        delta = metric.get("delta", {})
        for owner in (metric, *([delta] if delta.get("kind") == "ratio" else [])):
            for name in ("value", "lo", "hi"):
                if isinstance(owner.get(name), float):
                    owner[name] *= factor
    return made


def _digest(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


def make(root: Path, count: int, apart: int, models: int) -> list[Path]:
    """Write ``count`` Records with their details below ``root``, as ``apart`` experiments."""
    known = templates()
    folders = [root / f"many{index or ''}" for index in range(apart)]
    for folder in folders:
        for name in ("records", "details"):
            (folder / name).mkdir(parents=True)
    for index in range(count):
        record, details = known[index % len(known)]
        folder = folders[index % apart]
        made = varied(record, index // len(known), folder.name, models)
        body = json.dumps(made, sort_keys=True, ensure_ascii=False, indent=1)
        (folder / "records" / f"{made['run_id']}.json").write_text(body, encoding="utf-8")
        if details.exists():
            shutil.copyfile(details, folder / "details" / f"{made['run_id']}.jsonl.gz")
    return folders


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """CPU seconds of each stage while the block runs; what one calls of another counts once."""
    import importlib

    spent: dict[str, float] = {}
    running: list[float] = []

    def watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            started = time.process_time()
            running.append(0.0)
            try:
                return function(*given, **named)
            finally:
                wall = time.process_time() - started
                inner = running.pop()
                spent[name] = spent.get(name, 0.0) + wall - inner
                if running:
                    running[-1] += wall

        return run

    patches = []
    for place, name, stage in STAGES:
        module = importlib.import_module(place)
        patches.append(mock.patch.object(module, name, watched(getattr(module, name), stage)))
    for patch in patches:
        patch.start()
    try:
        yield spent
    finally:
        for patch in patches:
            patch.stop()


def measure(folders: list[Path]) -> dict[str, float]:
    """Report the folders in this process; returns what it took."""
    from rich.console import Console

    began, started = time.perf_counter(), time.process_time()
    from bitsweep import report
    from bitsweep.report import curves, drawing, page, sheet, tables, terminal  # noqa: F401

    spent = {"import": time.process_time() - started}
    with timed() as stages, redirect_stdout(sys.stderr):
        written = report.write(*folders)
        with open("/dev/null", "w", encoding="utf-8") as nowhere:
            report.summary(written, Console(file=nowhere, width=120))
    spent |= {name: stages.get(name, 0.0) for _, _, name in STAGES}
    spent["other"] = time.process_time() - started - sum(spent.values())
    spent["all"] = sum(spent.values())
    beside = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent["beside"] = beside.ru_utime + beside.ru_stime
    spent["wall"] = time.perf_counter() - began
    sizes = {"page, MB": written.page.stat().st_size / 1e6}
    for kind in ("tables", "figures"):
        files = [path.stat().st_size for path in (written.folder / kind).iterdir()]
        sizes[f"{kind}, MB"] = sum(files) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**spent, **sizes, "peak, MiB": peak, "rows": len(written.frame)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[10, 1000, 10000])
    parser.add_argument("--models", type=int, default=1, help="how many each of the five becomes")
    parser.add_argument("--apart", type=int, default=1, help="experiments reported together")
    parser.add_argument("--keep", type=Path, help="make the Records here and leave them")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in given.records:
            root = (given.keep or Path(scratch)) / str(count)
            folders = sorted(path.parent for path in root.glob("many*/records"))
            folders = folders or make(root, count, given.apart, given.models)
            with ProcessPoolExecutor(1, context) as alone:
                found[count] = alone.submit(measure, folders).result()
    print(f"| {'seconds':<12} | " + " | ".join(f"{count:>8}" for count in found) + " |")
    print(f"|{'-' * 14}|" + "|".join(f"{'-' * 9}:" for _ in found) + "|")
    for name in next(iter(found.values())):
        cells = (f"{value[name]:>8.{0 if name == 'rows' else 2}f}" for value in found.values())
        print(f"| {name:<12} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
