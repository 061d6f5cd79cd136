"""What to type to take a recommended point on: its export, and the commands that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from bitsweep.point import RANDOM
from bitsweep.record import Record
from bitsweep.report import estimate
from bitsweep.report.acceptance import PASSING
from bitsweep.report.recommend.answer import Answer
from bitsweep.report.recommend.exportable import Leaving, leaving
from bitsweep.report.recommend.ranking import Candidate
from bitsweep.store import Store

SHOWN_ID = 12
OF_THE_POINT = (
    "method", "bits", "group_size", "format", "symmetric", "scale_dtype", "policy", "misfit",
    "transforms", "recover", "input", "kv", "calibration", "seed",
)  # fmt: skip
"""What of a command makes the point; the rest says where, with what and of which model."""

LOOKED = 50
"""Passing points whose plans are read to find one that leaves packed."""


class Handoff:
    """The Records at hand, for what stands in them alone: commands, and the plan by layer."""

    def __init__(self, records: Iterable[Record], folders: Sequence[Path], results: Path) -> None:
        self.folders, self.results = folders, results
        self.points: dict[str, list[Record]] = {}
        for record in records:
            self.points.setdefault(record.point_id, []).append(record)

    def again(self, candidate: Candidate) -> list[str]:
        """The commands that measured it: of its quality where it has one, of the time shown."""
        row = candidate.row
        own = self.points[str(row["point_id"])]
        wanted = [record for record in own if record.run_id == row["run_id"]]
        timed = [record for record in own if self._timed_so(record, candidate)]
        judged = candidate.quality.value is not None
        chosen = [*wanted, *timed] if judged else timed or wanted
        commands = (str(record.provenance.get("command") or "") for record in chosen)
        return list(dict.fromkeys(command for command in commands if command))

    def timings(self, answer: Answer) -> list[str]:
        """Where none passes: the commands that time the nearest points, of those that lack a time
        alone and that nobody tried to time.
        """
        found = []
        for candidate in answer.near:
            off = [check for check in candidate.checks if check.verdict not in PASSING]
            untried = all(check.found.reason == estimate.NOT_TIMED for check in off)
            for command in self.again(candidate)[:1] if untried else ():
                words = [w for w in shlex.split(command) if not w.startswith("probes")]
                found.append(shlex.join([*words, "probes=latency"]))
        return found

    def _timed_so(self, record: Record, candidate: Candidate) -> bool:
        metric = record.metrics.get(estimate.SPEED)
        return (
            record.kind == "timing"
            and metric is not None
            and metric.value is not None
            and metric.value == candidate.speed.value
        )

    def leaving(self, candidate: Candidate, fast: bool) -> Leaving:
        """The format that holds it, by its columns and its plan by layer."""
        return leaving(candidate.row, self._plan(str(candidate.row["run_id"])), fast)

    def export(self, candidate: Candidate, fast: bool) -> tuple[str, str]:
        """The command that exports it, empty where it can not leave, and a word on the format."""
        found = self.leaving(candidate, fast)
        if found.format is None:
            return "", found.note
        words = ["bitsweep", "export", str(candidate.row["run_id"])[:SHOWN_ID], "--to"]
        words.append(found.format)
        below = sorted({folder.parent for folder in self.folders})
        if below != [Path("results")]:
            words += ["--results-dir", str(self.results if self.results in below else below[0])]
        return shlex.join(words), found.note

    def exports(self, answer: Answer) -> list[str]:
        """How the first leaves; and where that is no packed file, the first of the next that is."""
        best, fast = answer.passing[0], answer.fast
        command, note = self.export(best, fast)
        lines = [f"{command}   ({note})" if command and note else command or note]
        if best.row.get("weights") == RANDOM:
            return [self._of_your_own(best, fast)]
        if self.leaving(best, fast).packed:
            return lines
        for candidate in answer.passing[1:LOOKED]:
            if self.leaving(candidate, fast).packed:
                packed, _ = self.export(candidate, fast)
                lines.append(f"{packed}   (packed: {candidate.name}, the next that passes)")
                break
        return lines

    def _of_your_own(self, candidate: Candidate, fast: bool) -> str:
        """The same keys for a checkpoint with weights worth exporting."""
        row = candidate.row
        command = next(iter(self.again(candidate)), "")
        given = [word for word in shlex.split(command)[2:] if word.startswith(OF_THE_POINT)]
        for key in ("policy", "group_size", "bits", "method"):
            if row.get(key) is not None and not any(w.startswith(f"{key}=") for w in given):
                given.insert(0, f"{key}={row[key]}")
        plan = self._plan(str(row["run_id"]))
        trained = {name: value for name, value in row.items() if name != "weights"}
        to = leaving(trained, plan, fast).format or "hf-dense"
        words = ["bitsweep", "export", "model.path=FOLDER", *given, "--to", to]
        return f"{shlex.join(words)}   (its weights are random: with your own checkpoint)"

    def _plan(self, run_id: str) -> dict[str, str]:
        """What each layer became; empty where the details are not at hand."""
        found: dict[str, str] = {}
        for folder in self.folders:
            for row in Store(folder).details(run_id):
                found |= {str(layer): str(spec) for layer, spec in row.get("plan", {}).items()}
        return found
