"""Peak memory of loading, of prefill and of decoding, each in a process of its own.

What is loaded is a packed file of the point, read a tensor at a time into what its engine runs; all
that is not quantized is there in the engine's dtype. A peak is that of the resident process during
the phase, less the same process when all was imported and the model built without weights. bf16 is
measured alike, from a file of bf16 tensors, and is what each peak is a ratio to. (Peak
memory of the process that quantized is in the Record's timings; it says what quantizing takes.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from bitsweep import engines, provenance
from bitsweep.artifacts import Artifacts, plain
from bitsweep.data import Data, Reference
from bitsweep.engines import Engine, runner
from bitsweep.models import Model
from bitsweep.probes import check_counts
from bitsweep.probes._decoding import too_long
from bitsweep.record import Delta, Kind, Measurement, Metric

PHASES = ("load", "prefill", "decode")
KIB = 1024


@dataclass(frozen=True)
class Memory:
    """``load_peak_mib``, ``prefill_peak_mib``, ``decode_peak_mib``, each with its ratio to bf16.

    ``batch`` sequences of ``prompt`` tokens, then ``tokens`` more. Linux only: elsewhere no kernel
    says what the peak was.
    """

    engine: str = "auto"
    batch: int = 1
    prompt: int = 128
    tokens: int = 16

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "timing"

    def __post_init__(self) -> None:
        check_counts("memory", self, "batch", "prompt", "tokens")

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        return {name: value for name, value in plain(self).items() if name != "engine"}

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        engine, reason = engines.choose(self.engine, model)
        reason = reason or self._unmeasured(model, reference.artifacts)
        signature = self._signature(model, engine)
        if engine is None or reason is not None:
            return Measurement(
                [
                    Metric(f"{phase}_peak_mib", None, "MiB", "lower", signature, reason=str(reason))
                    for phase in PHASES
                ]
            )
        own, full = self._peaks(model, engine), self._baseline(reference)
        metrics = []
        for phase in PHASES:
            ratio = own[phase] / full[phase]
            delta, name = Delta("ratio", ratio, ratio, ratio), f"{phase}_peak_mib"
            metrics.append(Metric(name, own[phase], "MiB", "lower", signature, delta=delta))
        return Measurement(metrics, [{"engine": engine.name, "bf16_peak_mib": full}])

    def _unmeasured(self, model: Model, artifacts: Artifacts) -> str | None:
        """Why no process can be made that holds this model and nothing else, or None."""
        if not Path("/proc/self/clear_refs").exists():
            return "the peak of a process is known on Linux only"
        if model.device.type != "cpu":
            return f"the model is on {model.device.type}, and this is the memory of a process"
        from bitsweep.probes.memory import packed

        reason = too_long(model, self.prompt, self.tokens)
        return reason or packed.refuses(model, artifacts)

    def _peaks(self, model: Model, engine: Engine) -> dict[str, float]:
        """MiB by phase."""
        from bitsweep.probes.memory import packed

        with tempfile.TemporaryDirectory(prefix="bitsweep-memory-") as folder:
            packed.write(model, Path(folder), getattr(engine, "COMPUTE", None))
            alone = ("dense", *engines.graphs())  # the others are named after all their kernels
            asked = engine.name if engine.name in alone else self.engine
            return {phase: self._child(Path(folder), asked, phase) for phase in PHASES}

    def _baseline(self, reference: Reference) -> dict[str, float]:
        """Of the full-precision model in bf16, once for all points of a checkpoint."""
        full = reference.model
        key = {"checkpoint": full.checkpoint, "source": full.source, "probe": plain(self)}

        def make() -> dict[str, float]:
            return self._peaks(runner.cast(full, torch.bfloat16), engines.Dense())

        return reference.artifacts.remember("memory_bf16", key, make)

    def _child(self, folder: Path, engine: str, phase: str) -> float:
        asked = {
            "folder": str(folder),
            "engine": engine,
            "phase": phase,
            "batch": self.batch,
            "prompt": self.prompt,
            "tokens": self.tokens,
            "threads": torch.get_num_threads(),
        }
        words = [sys.executable, "-m", f"{__name__}.child", json.dumps(asked)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise RuntimeError(
                f"memory of {phase}: its process ended with {done.returncode}: {last}"
            )
        peak: float = json.loads(done.stdout.splitlines()[-1])["peak_kib"] / KIB
        return peak

    def _signature(self, model: Model, engine: Engine | None) -> str:
        return (
            f"memory|engine:{engine.name if engine else self.engine}|prompt:{self.prompt}"
            f"|batch:{self.batch}|tokens:{self.tokens}|threads:{torch.get_num_threads()}"
            f"|peak:VmHWM above idle|load:packed file|MiB:2^20"
            f"|device:{provenance.device_name(str(model.device))}|torch:{torch.__version__}"
            f"|v{self.version}"
        )
