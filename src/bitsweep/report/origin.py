"""Where a report's numbers come from, in one line without a date."""

from __future__ import annotations

from collections.abc import Sequence

from bitsweep.artifacts import digest
from bitsweep.record import Record

VERSIONS = ("bitsweep", "python", "torch", "transformers", "lm-eval")


def origin(records: Sequence[Record]) -> str:
    """``25 records, sha256 0f3a...; commit 1a2b3c4; torch 2.13.0; AMD EPYC x2, 2 threads``."""
    every = sorted((record.to_json() for record in records), key=lambda r: str(r["run_id"]))
    parts = [
        f"{len(records)} records, sha256 {digest(every)[:16]}",
        _listed("commit", [_commit(record) for record in records]),
        *(
            _listed(name, [str(r.provenance.get("versions", {}).get(name, "")) for r in records])
            for name in VERSIONS
        ),
        _listed("", [_machine(record) for record in records]),
    ]
    return "; ".join(part for part in parts if part)


def _listed(name: str, values: Sequence[str]) -> str:
    found = sorted({value for value in values if value})
    return f"{name} {', '.join(found)}".strip() if found else ""


def _commit(record: Record) -> str:
    commit = record.provenance.get("commit")
    return f"{commit[:10]}{' (dirty)' if record.provenance.get('dirty') else ''}" if commit else ""


def _machine(record: Record) -> str:
    device, threads = record.provenance.get("device"), record.provenance.get("threads")
    return f"{device} with {threads} thread{'s' * (threads != 1)}" if device else ""
