"""Each peer in a virtual environment of its own, since their pins clash; made when missing.

They lie in ``.parity/`` of the repository (ignored by git), or below ``$BITSWEEP_PEERS``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).resolve().parent / "peers"
TORCH = "torch==2.13.0"
PINS = {
    "llmcompressor": ["llmcompressor==0.14.0.1", "transformers==5.17.0"],
    "gptqmodel": ["gptqmodel==7.6.0", "transformers==5.23.0"],
    "torchao": ["torchao==0.18.0"],
    "auto_round": ["auto-round==0.16.1", "transformers==5.23.0"],
    "misc": ["bitsandbytes==0.50.2", "hqq==0.2.8.post1", "transformers==5.23.0"],
}


def work_folder() -> Path:
    """``.parity/`` of the repository, which tells git itself to ignore it."""
    folder = ROOT / ".parity"
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def environment(name: str) -> Path:
    """The Python of the environment ``name``, installed with its pins when it is not there."""
    folder = Path(os.environ.get("BITSWEEP_PEERS") or work_folder()) / name
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"creating {folder}: {', '.join([TORCH, *PINS[name]])}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        # torch by itself first: asked for together with the peer, pip may fetch the CUDA build.
        for wanted in ([TORCH], [TORCH, "numpy", "safetensors", *PINS[name]]):
            command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*command, *wanted], check=True)
    return python


def run(name: str, script: str, work: Path, threads: int) -> None:
    """Run ``peers/<script>.py WORK`` in the environment ``name``; its output goes to a log.

    Raises:
        RuntimeError: it failed; the message ends with the last lines of its log.
    """
    python, log = environment(name), work / f"{script}.log"
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    variables.pop("PYTHONPATH", None)
    print(f"{script} ({log})", flush=True)
    with log.open("w") as out:
        command = [str(python), str(SCRIPTS / f"{script}.py"), str(work.resolve())]
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=variables, cwd=work, check=False
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{script} failed with {done.returncode}:\n{tail}")
