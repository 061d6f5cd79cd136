"""One phase in a process of its own: ``python -m bitsweep.probes.memory.child``, JSON in and out.

Before anything is measured all is imported that will be, and the model is built without weights:
that is the idle process. Then everything up to the phase is done, the kernel forgets the peak, the
phase runs, and the peak is read (``VmHWM``: exact, pages of files included). What loading freed
is given back to the system before it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from bitsweep import engines
from bitsweep.artifacts import Artifacts
from bitsweep.probes import _decoding
from bitsweep.probes.memory import packed

LOAD, PREFILL, DECODE = "load", "prefill", "decode"


def peak(folder: Path, engine: str, phase: str, batch: int, prompt: int, tokens: int) -> float:
    """KiB above the idle process at the worst moment of ``phase``."""
    model = packed.bare(folder, Artifacts(None))
    ids = _decoding.tokens(model, batch, prompt + tokens)
    engines.available()  # each tries a small matrix, once a process
    _forget()
    idle = _status("VmRSS")
    packed.fill(model, folder)
    chosen, reason = engines.choose(engine, model)
    if chosen is None:
        raise RuntimeError(f"the packed file reads back as another model: {reason}")
    runner = chosen.build(model)
    del model
    if phase != LOAD:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # holes that loading left are no part of what follows
        if phase == PREFILL:
            _forget()
        _, cache = runner.prefill(ids[:, :prompt])
        if phase == DECODE:
            _forget()
            for place in range(prompt, prompt + tokens):
                runner.decode(ids[:, place : place + 1], cache)
    return _status("VmHWM") - idle


def _forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked.pop("threads"))
    asked["folder"] = Path(asked["folder"])
    print(json.dumps({"peak_kib": peak(**asked)}))


if __name__ == "__main__":
    main()
