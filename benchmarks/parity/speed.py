"""GPTQ's time beside llm-compressor's and GPTQModel's: ``python benchmarks/parity/speed.py``.

The same model, tokens and settings for all (W4, groups of 64, original grids, no act_order); three
rounds, ours between theirs, so that a slow minute of the machine hits everybody. Loading,
tokenizing and saving are outside all clocks; GPTQModel's includes packing. Prints a table of
medians and writes ``results/parity/speed.csv``. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import environments
import gptq
import inputs
import torch

SETTING = "w4-original"
PEERS = {
    "llmcompressor": ("llmcompressor", "llmcompressor_gptq"),
    "gptqmodel": ("gptqmodel", "gptqmodel_gptq"),
}


def rounds(given: inputs.Inputs, work: Path, count: int) -> Iterator[tuple[str, str, float, float]]:
    """(tool, order of layers, CPU s, wall s) of each run, tools alternating."""
    case = next(case for case in gptq.CASES if case["name"] == SETTING)
    settings = {"cases": [case], "grids": [], "methods": [], "block_size": gptq.BLOCK_SIZE}
    inputs.write(given, work, settings)
    for _ in range(count):
        for peer, (environment, script) in PEERS.items():
            shutil.rmtree(work / peer, ignore_errors=True)
            environments.run(environment, script, work, torch.get_num_threads())
            run = json.loads((work / peer / "report.json").read_text())["runs"][SETTING]
            yield peer, gptq.ORDERS[peer], run["cpu_s"], run["wall_s"]
            _, cost = gptq.ours(given, case, gptq.ORDERS[peer])
            yield "bitsweep", gptq.ORDERS[peer], cost["cpu_s"], cost["wall_s"]


def main() -> None:
    shared = environments.ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=shared / "models" / "stories3M")
    parser.add_argument("--text", type=Path, default=shared / "text" / "tinystories")
    parser.add_argument("--work", type=Path, default=environments.work_folder() / "speed")
    parser.add_argument("--out", type=Path, default=environments.ROOT / "results" / "parity")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = inputs.load(options.model, options.text, options.work)
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for tool, order, cpu, wall in rounds(given, options.work, options.rounds):
        spent.setdefault((order, tool), []).append((cpu, wall))
        print(tool, order, cpu, wall, flush=True)
    rows = []
    for (order, tool), times in sorted(spent.items()):
        cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append({"order": order, "tool": tool, "cpu_s": cpu, "wall_s": wall})
    for row in rows:
        other = next(r for r in rows if r["order"] == row["order"] and r["tool"] != "bitsweep")
        row["cpu_ratio"] = round(row["cpu_s"] / other["cpu_s"], 3)
    with (options.out / "speed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("| order | tool | CPU s | wall s | CPU / the peer's |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
