"""What a sweep costs beyond quantizing and measuring, beside the same points as processes.

    python benchmarks/sweep_cost.py [--probes quick|standard] [--separate N]

Sweeps the 24 points of ``demo`` (and its full-precision row) into a temporary folder, then launches
N of the same points (default all) as processes of their own, and prints a table. "Outside" is the
wall time of the process minus quantizing and each probe, as the Records' own timings say. Run it on
a quiet machine: both halves feel any other load.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def bitsweep(*arguments: str) -> float:
    """Run the command to its end; returns its wall time in seconds."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "bitsweep", *arguments], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*/records/[!.]*.json"))]


def inside(records: list[dict[str, Any]]) -> float:
    """Seconds spent in the stages of these Records; a point's last Record names all of them."""
    stages: dict[str, dict[str, float]] = {}
    for record in records:
        named = {k: v["wall_s"] for k, v in record["timings"].items() if k not in ("total", "load")}
        stages.setdefault(record["point_id"], {}).update(named)
    return sum(sum(point.values()) for point in stages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", default="quick", help="a choice of conf/probes")
    parser.add_argument("--separate", type=int, default=None, help="how many points as processes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        together, apart = Path(scratch) / "sweep", Path(scratch) / "apart"
        probes = f"probes={arguments.probes}"
        wall = bitsweep("sweep", "demo", probes, f"results_dir={together}")
        rows = [r for r in read(together) if r["status"] == "ok"]
        points = len({r["point_id"] for r in rows})
        commands = sorted({r["provenance"]["command"] for r in rows})[: arguments.separate]
        alone = 0.0
        for command in commands:
            verb = [
                word for word in shlex.split(command)[1:] if not word.startswith("results_dir=")
            ]
            alone += bitsweep(*verb, f"results_dir={apart}")
        table = [("one sweep", points, wall, inside(rows))]
        if commands:
            table.append(("a process each", len(commands), alone, inside(read(apart))))
    print("| launched as | points | wall s | inside s | outside s | share | outside s a point |")
    print("|---|---|---|---|---|---|---|")
    for name, count, seconds, measured in table:
        outside = seconds - measured
        print(
            f"| {name} | {count} | {seconds:.1f} | {measured:.1f} | {outside:.1f} "
            f"| {outside / seconds:.1%} | {outside / count:.2f} |"
        )


if __name__ == "__main__":
    main()
