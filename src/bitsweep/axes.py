"""The keys of a configuration and the choices of those that are words. No torch, no Hydra."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitsweep.spec import MISFITS, SCALE_DTYPES

GROUPS = (
    "model",
    "data",
    "transforms",
    "method",
    "policy",
    "input",
    "kv",
    "recover",
    "calibration",
    "probes",
    "tracker",
)
CHAINS = ("transforms", "recover")
"""Groups that take a list of choices, in order, and none at all."""
AXES: dict[str, Any] = {
    "bits": float,
    "group_size": int,
    "format": str,
    "symmetric": bool,
    "scale_dtype": str,
    "misfit": str,
    "engine": str,
    "seed": int,
}
RUN_KEYS: dict[str, Any] = {
    "experiment": str,
    "results_dir": str,
    "force": bool,
    "threads": int | None,
    "plugins": list[str],
}
KNOWN = (*GROUPS, *AXES, *RUN_KEYS, "grids", "paper")
"""Every top-level key; ``paper`` is of `bitsweep paper`, and no part of a point."""


def axis_choices() -> dict[str, Sequence[str]]:
    """Choices of the axes that are words; families of formats and engines are files on disk."""
    return {
        "format": sorted(format_files()),
        "scale_dtype": SCALE_DTYPES,
        "misfit": MISFITS,
        "engine": ["auto", "dense", *sorted(engine_files())],
    }


def files(room: str) -> dict[str, Path]:
    """The modules of one room of the package, by name, without importing them; of a room within
    it, the file that opens it.
    """
    folder = Path(__file__).parent / room
    found = {path.stem: path for path in folder.glob("[!_]*.py")}
    found |= {path.parent.name: path for path in folder.glob("[!_]*/__init__.py")}
    return dict(sorted(found.items()))


def format_files() -> dict[str, str]:
    """Every name of a number format, and the family whose file has it: itself or a variant."""
    found = {}
    for family, path in files("formats").items():
        found[family] = family
        found |= dict.fromkeys(variants(path), family)
    return found


def variants(path: Path) -> dict[str, str]:
    """The other names of the family of formats in ``path``, and a line for each."""
    pattern = r"^VARIANTS = (\(.*?\)|\{.*?\})$"
    declared = re.search(pattern, path.read_text("utf-8"), re.M | re.S)
    names = ast.literal_eval(declared[1]) if declared else {}
    return names if isinstance(names, dict) else dict.fromkeys(names, f"see {path.stem}")


def engine_files() -> dict[str, Path]:
    """The kernel families: ``torch_int4.py`` is one when its class ``TorchInt4`` has that name."""
    found = {}
    for name, path in files("engines").items():
        text = path.read_text("utf-8")
        title = name.title().replace("_", "")
        if re.search(rf"^class {title}\b", text, re.M) and f'name = "{name}"' in text:
            found[name] = path
    return found
