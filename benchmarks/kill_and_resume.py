"""Kill a sweep three times with SIGKILL, relaunch it, and hold its Records to an unbroken sweep's.

    python benchmarks/kill_and_resume.py real_stories --against results/real_stories \\
        --seconds 60 150 240

Prints for each launch how many Records stood before and after, and how many were measured again;
at the end every Record that differs outside ``provenance`` and ``timings``. A timing Record holds
milliseconds of this minute: of those, everything but the measured values is compared. Overrides
may narrow the sweep (``model.path=...``): the models that it has are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every Record of a results folder, by run_id."""
    paths = sorted((folder / "records").glob("[!.]*.json"))
    return {path.stem: json.loads(path.read_bytes()) for path in paths}


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A Record without what may differ between two launches."""
    kept = {k: v for k, v in record.items() if k not in ("provenance", "timings")}
    if record["kind"] == "timing":
        del kept["details_sha256"]
        kept["metrics"] = {name: m["signature"] for name, m in record["metrics"].items()}
    return kept


def launch(name: str, results: Path, overrides: list[str], seconds: float | None) -> int | None:
    """Sweep; after ``seconds`` kill the whole process group. Returns the exit code if it ended."""
    command = [
        sys.executable,
        "-m",
        "bitsweep",
        "sweep",
        name,
        f"results_dir={results}",
        *overrides,
    ]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--against", type=Path, required=True, help="folder of an unbroken sweep")
    parser.add_argument("--seconds", type=float, nargs=3, default=[60, 60, 60])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / arguments.name
        for seconds in (*arguments.seconds, None):
            before = {path: path.stat().st_mtime_ns for path in folder.glob("records/*.json")}
            started = time.perf_counter()
            code = launch(arguments.name, Path(scratch), arguments.overrides, seconds)
            after = list(folder.glob("records/*.json"))
            again = [path for path in before if path.stat().st_mtime_ns != before[path]]
            refused = [path for path in again if json.loads(path.read_bytes())["status"] != "ok"]
            print(
                f"{'killed' if code is None else f'exit {code}'} after "
                f"{time.perf_counter() - started:.0f} s: {len(before)} Records before, "
                f"{len(after)} after, {len(again) - len(refused)} finished ones measured again",
                flush=True,
            )
        broken, whole = records(folder), records(arguments.against)
        models = {record["point"]["model"] for record in broken.values()}
        whole = {name: r for name, r in whole.items() if r["point"]["model"] in models}
        different = [
            name
            for name in sorted(broken.keys() | whole.keys())
            if name not in broken
            or name not in whole
            or comparable(broken[name]) != comparable(whole[name])
        ]
    print(f"{len(whole)} Records compared, {len(different)} differ")
    for name in different:
        print(f"  {name}: {'missing' if name not in broken or name not in whole else 'differs'}")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
