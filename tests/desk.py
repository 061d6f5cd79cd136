"""A working directory as a user has it: a tiny checkpoint, two texts, an experiment or two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tiny

from bitsweep import cli

QUICK = (
    "tracker=none",
    "data=text",
    "data.path=measured.txt",
    "data.calibration_path=calibrating.txt",
    "data.window=32",
    "calibration.windows=4",
    "probes.kl=null",
    "probes.generation=null",
    "probes.tasks=null",
    "probes.latency=null",
)
"""One small text and perplexity alone: a point takes a tenth of a second."""


@dataclass
class Desk:
    """``desk("run", "bits=3")`` runs a verb there, in this process; returns its exit code."""

    folder: Path

    def __call__(self, verb: str, *arguments: str) -> int:
        if verb not in ("run", "sweep", "plan"):
            return cli.dispatch([verb, *arguments])
        named = [item for item in arguments if "=" not in item]
        rest = [item for item in arguments if "=" in item]
        return cli.dispatch([verb, *named, *self.overrides(*rest)])

    def overrides(self, *more: str) -> list[str]:
        return ["model.path=llama", *QUICK, *more]

    def experiment(self, name: str, text: str) -> None:
        folder = self.folder / "experiments"
        folder.mkdir(exist_ok=True)
        header = f"# Is {name} asked?\n#\n# @package _global_\n"
        (folder / f"{name}.yaml").write_text(header + text, encoding="utf-8")

    def records(self, experiment: str) -> list[Path]:
        return sorted((self.folder / "results" / experiment / "records").glob("*.json"))


def lay(folder: Path) -> Desk:
    """Put checkpoint and texts into ``folder``."""
    tiny.llama(folder / "llama")
    (folder / "measured.txt").write_text("A cat sat on a mat. " * 20, encoding="utf-8")
    (folder / "calibrating.txt").write_text("The dog ran to the sea. " * 20, encoding="utf-8")
    return Desk(folder)
