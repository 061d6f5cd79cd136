"""Where a report's numbers come from, in one line without a date."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bitsweep.record import Record
from bitsweep.store import dump

VERSIONS = ("bitsweep", "python", "torch", "transformers", "lm-eval")


def origin(records: Sequence[Record]) -> str:
    """``25 records, sha256 0f3a...; commit 1a2b3c4; torch 2.13.0; AMD EPYC x2, 2 threads``."""
    parts = [
        f"{len(records)} records, sha256 {digest(records)[:16]}",
        _listed("commit", [_commit(record) for record in records]),
        *(
            _listed(name, [str(r.provenance.get("versions", {}).get(name, "")) for r in records])
            for name in VERSIONS
        ),
        _listed("", [_machine(record) for record in records]),
    ]
    return "; ".join(part for part in parts if part)


def digest(records: Sequence[Record]) -> str:
    """SHA-256 of the lines that ``sha256sum`` prints of their files, in order of run_id.

    Of one experiment: ``cd results/NAME/records && LC_ALL=C sha256sum *.json | sha256sum``.
    A Record that no file holds counts as the file that the Store would write.
    """
    found = sorted(
        (record.run_id, record.file_sha256 or hashlib.sha256(dump(record)).hexdigest())
        for record in records
    )
    lines = "".join(f"{sha256}  {run_id}.json\n" for run_id, sha256 in found)
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _listed(name: str, values: Sequence[str]) -> str:
    found = sorted({value for value in values if value})
    return f"{name} {', '.join(found)}".strip() if found else ""


def _commit(record: Record) -> str:
    commit = record.provenance.get("commit")
    return f"{commit[:10]}{' (dirty)' if record.provenance.get('dirty') else ''}" if commit else ""


def _machine(record: Record) -> str:
    device, threads = record.provenance.get("device"), record.provenance.get("threads")
    return f"{device} with {threads} thread{'s' * (threads != 1)}" if device else ""
