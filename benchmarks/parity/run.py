"""Our methods beside the public implementations: ``python benchmarks/parity/run.py``.

Creates the peers' environments when they are missing (``$BITSWEEP_PEERS``, else ``.parity/``),
hands each the same model, token ids, weights and Hessians, runs ours, and writes
``results/parity/``. Raw outputs stay in ``.parity/work``, where ``--reuse`` finds an earlier run's.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import environments
import gptq
import inputs
import methods
import report
import rtn
import torch

import bitsweep

SCRIPTS = [
    ("torchao", "torchao_rtn", "torchao"),
    ("llmcompressor", "compressed_tensors_rtn", "compressed_tensors"),
    ("llmcompressor", "llmcompressor_gptq", "llmcompressor"),
    ("gptqmodel", "gptqmodel_gptq", "gptqmodel"),
]
"""Environment, script, and the folder below the work folder that it fills."""

PARTS = {"gptq": SCRIPTS, "methods": methods.SCRIPTS}


def main() -> None:
    shared = environments.ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=shared / "models" / "stories3M")
    parser.add_argument("--text", type=Path, default=shared / "text" / "tinystories")
    parser.add_argument("--work", type=Path, help="default: .parity/work")
    parser.add_argument("--out", type=Path, default=environments.ROOT / "results" / "parity")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reuse", action="store_true", help="keep peers' outputs that are there")
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    for path in (options.model, options.text):
        if not path.is_dir():
            parser.exit(2, f"{path}: no such folder; say --model and --text\n")
    options.work = options.work or environments.work_folder() / "work"
    torch.set_num_threads(options.threads)
    given = inputs.load(options.model, options.text, options.work)
    settings = {"cases": gptq.CASES, "grids": rtn.GRIDS, "block_size": gptq.BLOCK_SIZE}
    settings["methods"] = methods.CASES
    inputs.write(given, options.work, settings)
    for name, script, folder in (entry for part in options.part for entry in PARTS[part]):
        if not options.reuse:
            shutil.rmtree(options.work / folder, ignore_errors=True)
        if not (options.work / folder / "report.json").exists():
            environments.run(name, script, options.work, options.threads)
    if "gptq" in options.part:
        end_to_end = gptq.end_to_end(given, options.work)
        results = {
            "about": _about(given, options, "gptq"),
            "end_to_end": end_to_end,
            "verdicts": gptq.verdicts(end_to_end),
            "same_tokens": gptq.same_tokens(given, options.work),
            "layers": gptq.layers(given, options.work),
            "rtn": rtn.compare(options.work),
        }
        report.write(results, options.out)
    if "methods" in options.part:
        rows = methods.end_to_end(given, options.work)
        results = {
            "about": _about(given, options, "methods"),
            "awq_windows": inputs.WINDOWS // 4,
            "values": methods.values(options.work),
            "methods": rows,
            "verdicts": methods.verdicts(rows),
        }
        report.write_methods(results, options.out)
    print(f"{options.out / 'README.md'}")


def _about(given: inputs.Inputs, options: argparse.Namespace, part: str) -> dict[str, Any]:
    folders = [folder for _, _, folder in PARTS[part]]
    reports = {n: json.loads((options.work / n / "report.json").read_text()) for n in folders}
    ours = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    git = ["git", "-C", str(environments.ROOT), "rev-parse", "HEAD"]
    return {
        "model": given.model.source.name,
        "checkpoint": given.model.checkpoint,
        "calibration": given.calibration.identity,
        "evaluation": list(given.evaluation.shape),
        "anchor": gptq.anchor(given),
        "block_size": gptq.BLOCK_SIZE,
        "damping": gptq.DAMPING,
        "group_size": gptq.GROUP_SIZE,
        "versions": {"bitsweep": {"bitsweep": bitsweep.__version__, **ours}}
        | {name: value["versions"] for name, value in reports.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{options.threads} thread(s) used",
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    main()
