"""How long each method takes to quantize: CPU seconds per million weights, methods alternating.

    python benchmarks/time_to_quantize.py [--rounds 3] [--windows 64] [KEY=VALUE ...]

Quantizes one model (default ``model=reference``) with every method in turn, round after round in
one process, so that a slow minute of the machine hits them all, and prints the median. Further
overrides are those of ``bitsweep run``. A calibrated method's Hessians are made anew each time:
nothing is cached between rounds. The last rows are further points of ``gptq_fp``, whose Hessians
serve every bits and group size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from bitsweep import config, models
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration
from bitsweep.compose import compose
from bitsweep.models import Model
from bitsweep.point import Point
from bitsweep.prepared import plan_for

RUNS: dict[str, list[str]] = {
    "rtn": ["method=rtn"],
    "rtn clip=mse": ["method=rtn", "method.clip=mse"],
    "rtn nf4": ["method=rtn", "format=nf"],
    "hqq": ["method=hqq"],
    "gptq": ["method=gptq"],
    "gptq true_sequential": ["method=gptq", "method.true_sequential=true"],
    "gptq nf4": ["method=gptq", "format=nf"],
    "awq": ["method=awq"],
    "squeezellm": ["method=squeezellm", "format=codebook", "group_size=-1"],
    "auto_round": ["method=auto_round"],
    "qat": ["method=qat"],
}
FURTHER: dict[str, list[str]] = {
    "gptq_fp, first point": ["method=gptq_fp"],
    "gptq_fp, bits=3": ["method=gptq_fp", "bits=3"],
    "gptq_fp, group_size=32": ["method=gptq_fp", "group_size=32"],
}


def seconds(point: Point, model: Model, artifacts: Artifacts) -> tuple[float, float]:
    """CPU and wall seconds of quantizing ``model`` once; loading and tokenizing are left out."""
    plan = plan_for(point, model)
    calibration = Calibration(model, point.calibration, artifacts)
    if point.calibrated:
        calibration.tokens  # noqa: B018 - drawn before the clock starts
    torch.manual_seed(point.seed)
    cpu, wall = time.process_time(), time.perf_counter()
    point.method(model.copy(), plan, calibration)
    return time.process_time() - cpu, time.perf_counter() - wall


def points(runs: dict[str, list[str]], common: Sequence[str]) -> dict[str, Point]:
    return {name: config.job(compose([*common, *own])).point for name, own in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of rows, such as gptq awq")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(given.threads)
    common = ["tracker=none", f"calibration.windows={given.windows}", *given.overrides]
    runs = {name: own for name, own in RUNS.items() if not given.only or name in given.only}
    chosen, further = points(runs, common), points(FURTHER, common)
    artifacts = Artifacts(None)
    model = models.load(next(iter(further.values())).model, artifacts)
    spent: dict[str, list[tuple[float, float]]] = {}
    for _ in range(given.rounds):
        for name, point in chosen.items():
            spent.setdefault(name, []).append(seconds(point, model, artifacts))
        shared = Artifacts(None)  # the first point makes the Hessians, the others find them
        for name, point in further.items():
            spent.setdefault(name, []).append(seconds(point, model, shared))
    plan = plan_for(next(iter(further.values())), model)
    millions = sum(model.weight(name).numel() for name in plan.layers) / 1e6
    print(f"{model.source.name}: {millions:.2f} M weights quantized, {given.windows} windows, ")
    print(f"{given.rounds} alternating rounds, {given.threads} thread(s), medians\n")
    print("| method | CPU s | wall s | CPU s per million weights |")
    print("|---|---|---|---|")
    for name, times in spent.items():
        cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {cpu:.2f} | {wall:.2f} | {cpu / millions:.2f} |")


if __name__ == "__main__":
    main()
