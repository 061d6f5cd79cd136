"""How a peer's script talks to ours: a folder with JSON and safetensors in, the same out.

Runs inside the peer's own environment, so it knows torch and safetensors and nothing of bitsweep.

In (``WORK/in``): ``settings.json`` (the model's folder, the cases, the grids),
``calibration.safetensors`` (``tokens``, ``tokens1`` ... int64 ``(windows, window)``),
``layers.safetensors`` (``<layer>/weight`` float32 ``(out, in)`` and ``<layer>/hessian`` float32
``(in, in)``) and ``weights.safetensors`` (float32 ``(out, in)`` by name, for rounding to nearest).
Out (``WORK/<peer>``): whatever tensors the script saves, and ``report.json``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Exchange:
    """The folder of one peer's run; its path is the script's only argument."""

    def __init__(self, peer: str, packages: Sequence[str]) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        work = Path(sys.argv[1])
        self.given, self.out = work / "in", work / peer
        self.out.mkdir(parents=True, exist_ok=True)
        self.settings: dict[str, Any] = json.loads((self.given / "settings.json").read_text())
        self.report: dict[str, Any] = {
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "runs": {},
        }
        earlier = self.out / "report.json"
        if earlier.exists():  # a run that was broken off goes on behind its last case
            self.report["runs"] = json.loads(earlier.read_text())["runs"]

    def cases(self, peer: str) -> Iterator[dict[str, Any]]:
        """The cases of ``peer`` that are still to be run; what was done is kept after each."""
        for case in self.settings["methods"]:
            if case["peer"] == peer and case["name"] not in self.report["runs"]:
                yield case
                self.finish()

    def tokens(self, draw: int = 0) -> Tensor:
        """The windows of one of the calibration draws, int64 ``(windows, window)``."""
        return load_file(self.given / "calibration.safetensors")[f"tokens{draw or ''}"]

    def layers(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each layer's name, weight and Hessian, fresh copies that a peer may overwrite."""
        tensors = load_file(self.given / "layers.safetensors")
        for name in self.settings["layers"]:
            yield name, tensors[f"{name}/weight"].clone(), tensors[f"{name}/hessian"].clone()

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.given / "weights.safetensors")

    @contextmanager
    def timed(self, run: str) -> Iterator[dict[str, Any]]:
        """Wall and CPU seconds of the block, below ``run``; the block may add to what it yields."""
        entry: dict[str, Any] = {}
        wall, cpu = time.perf_counter(), time.process_time()
        yield entry
        entry["wall_s"] = round(time.perf_counter() - wall, 2)
        entry["cpu_s"] = round(time.process_time() - cpu, 2)
        self.report["runs"][run] = entry
        print(run, entry, flush=True)

    def save(self, name: str, tensors: dict[str, Tensor]) -> None:
        save_file(
            {key: value.detach().clone().contiguous() for key, value in tensors.items()},
            self.out / f"{name}.safetensors",
        )

    def finish(self) -> None:
        (self.out / "report.json").write_text(json.dumps(self.report, indent=1))
