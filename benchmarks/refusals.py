"""What bitsweep prints of a checkpoint that it does not trust or does not know.

    python benchmarks/refusals.py [--out FILE]

Makes each folder from the reference model in a temporary directory, runs the real command line on
it, and prints command, output and exit code as Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsweep

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
POINT = ("method=rtn", "bits=4", "tracker=none")


class Bomb:
    """A pickle that, when it is read, creates the file ``PWNED``."""

    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def cut_short(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def altered(folder: Path) -> None:
    """One bit of an exported checkpoint, whose manifest has the hash."""
    exported = folder.with_name("exported")
    run("export", f"model.path={folder}", *POINT, "--to", "hf-dense", "--out", str(exported))
    shutil.rmtree(folder)
    exported.rename(folder)
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def absurd_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def pickled_shard(folder: Path) -> None:
    pickled(folder)
    index(folder, "pytorch_model.bin")


def outside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    index(folder, "../elsewhere.safetensors")


def link(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "secret.safetensors")
    (folder / WEIGHTS).symlink_to("../secret.safetensors")


def missing_shard(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index(folder, "model-00001-of-00002.safetensors")


def missing_tensor(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    index(folder, "model-00001-of-00001.safetensors", "model.layers.99.mlp.up_proj.weight")


def index(folder: Path, file: str, tensor: str = "model.norm.weight") -> None:
    value = {"metadata": {}, "weight_map": {tensor: file}}
    (folder / INDEX).write_text(json.dumps(value))


def unknown_quantization(folder: Path) -> None:
    configured(folder, quantization_config={"quant_method": "quip", "bits": 2})


def unread_quantization(folder: Path) -> None:
    """A library that bitsweep reads, said in a way that it does not."""
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float"}}}
    config = {"quant_method": "compressed-tensors", "config_groups": groups}
    configured(folder, quantization_config=config)


def own_code(folder: Path) -> None:
    configured(folder, model_type="mine", auto_map={"AutoConfig": "config.Mine"})
    (folder / "config.py").write_text("import os; os.system('touch PWNED')\n")


def configured(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


CASES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "damaged": ("A damaged shard: half of the file is missing", cut_short),
    "altered": ("An altered shard: one bit, sizes and header are right", altered),
    "header": ("A header whose length is absurd", absurd_header),
    "pickle": ("A pickle checkpoint, which would run code", pickled),
    "pickled_shard": ("An index that names a pickle", pickled_shard),
    "outside": ("An index with `../`", outside),
    "link": ("A link out of the folder", link),
    "missing_shard": ("An index that names a shard that is not there", missing_shard),
    "missing_tensor": ("An index that names a tensor that its shard lacks", missing_tensor),
    "unknown_quantization": ("An unknown quantization config", unknown_quantization),
    "unread_quantization": ("A known one, with numbers that bitsweep has not", unread_quantization),
    "own_code": ("A checkpoint that brings its own code", own_code),
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line as a user has it; output and errors together."""
    source = Path(bitsweep.__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "bitsweep", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def case(name: str) -> list[str]:
    """Make the folder ``name``, run the command on it; the lines of its section."""
    title, damage = CASES[name]
    reference = Path(bitsweep.__file__).parent / "reference" / "model"
    shutil.copytree(reference, name)
    damage(Path(name))
    command = ("run", f"model.path={name}", *POINT, "results_dir=results")
    result = run(*command)
    if Path("PWNED").exists():
        raise SystemExit(f"{name}: code of the checkpoint was run")
    shown = f"$ bitsweep {' '.join(command[:-2])}"
    return [
        f"## {title}",
        "",
        "```",
        shown,
        *result.stdout.replace(os.getcwd(), "/tmp/scratch").strip().splitlines(),
        f"exit code {result.returncode}",
        "```",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="a file, in place of the screen")
    out = parser.parse_args().out
    lines = [
        "# What each checkpoint that is not trusted printed",
        "",
        "Made by `python benchmarks/refusals.py --out results/streaming/SAFETY.md`, which takes",
        "the reference model, does one thing to its folder, and runs the real command on it.",
        "Each refusal is one line, comes before a tensor is used, and ends with exit code 2; no",
        "code of a checkpoint ran (each trap would have left a file).",
        "",
    ]
    target = out.absolute() if out else None
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        for name in CASES:
            lines += case(name)
    text = "\n".join(lines).rstrip() + "\n"
    if target is None:
        print(text, end="")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
