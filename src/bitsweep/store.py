"""Records on disk: one small JSON file each, details beside it, written whole or not at all.

``results/<experiment>/records/<run_id>.json`` and ``details/<run_id>.jsonl.gz``. A good Record is
never overwritten by a failure; the next launch asks :meth:`Store.done` and does what is missing.
"""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from bitsweep.artifacts import write_atomically
from bitsweep.errors import UserError
from bitsweep.record import Record


@contextmanager
def uncollected() -> Iterator[None]:
    """Make many small objects without the garbage collector looking through them over and over.

    Behind the block they count as old: it looks at all of them only after many more were made.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
            gc.enable()


class Store:
    """The Records of one experiment, below ``<results_dir>/<experiment>``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def prepare(self) -> None:
        """Make the folders, so that an unwritable place is found before any work.

        Raises:
            UserError: the place can not be written; change ``results_dir=``.
        """
        try:
            for name in ("records", "details"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                if not os.access(self.folder / name, os.W_OK):
                    raise PermissionError("not writable")
                probe = self.folder / name / f".{os.getpid()}.probe.tmp"
                probe.write_bytes(b"")
                probe.unlink()
        except OSError as error:
            raise UserError(
                f"results_dir={self.folder.parent}: can not write there "
                f"({error.strerror or error}); choose another folder with results_dir=PATH"
            ) from error

    def record_path(self, run_id: str) -> Path:
        return self.folder / "records" / f"{run_id}.json"

    def details_path(self, run_id: str) -> Path:
        return self.folder / "details" / f"{run_id}.jsonl.gz"

    def put(self, record: Record, details: list[dict[str, Any]]) -> None:
        """Write details first, then the Record that names their digest, each atomically."""
        if record.status != "ok" and self.done(record.run_id):
            return
        if details:
            packed = _pack(details)
            record.details_sha256 = hashlib.sha256(packed).hexdigest()
            write_atomically(self.details_path(record.run_id), lambda p: _write(p, packed))
        body = dump(record)
        write_atomically(self.record_path(record.run_id), lambda p: _write(p, body))

    def get(self, run_id: str) -> Record | None:
        """The Record of this id, or None when it is absent or was cut short."""
        path = self.record_path(run_id)
        try:
            return _parsed(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            return None

    def done(self, run_id: str) -> bool:
        """Whether this Record was measured; a failed one counts as missing."""
        record = self.get(run_id)
        return record is not None and record.status == "ok"

    def records(self, prefix: str = "", warn: Callable[[str], None] | None = None) -> list[Record]:
        """All Records whose run_id starts with ``prefix``, by run_id, read strictly.

        A sweep may be writing meanwhile: a Record is there whole or not at all. ``warn`` takes a
        line about each file that is no Record, and the others are read.

        Raises:
            UserError: a file is no Record of this schema, and there is no ``warn``.
        """
        found = []
        with uncollected():
            for path in self._paths(prefix):
                try:
                    with path.open("rb", buffering=0) as file:  # read whole, and so many of them
                        body = file.read()
                    record = _parsed(body)
                    record.file_sha256 = hashlib.sha256(body).hexdigest()
                    found.append(record)
                except FileNotFoundError:
                    continue  # moved away since it was listed
                except (ValueError, TypeError, KeyError) as error:
                    line = f"{path}: not a Record ({error}); move it away"
                    if warn is None:
                        raise UserError(line) from error
                    warn(line)
        return found

    def count(self) -> int:
        """How many files of Records there are, unread."""
        return len(self._paths(""))

    def _paths(self, prefix: str) -> list[Path]:
        """Of Records, by name; without the unfinished ones, whose names start with a dot."""
        folder = self.folder / "records"
        with suppress(FileNotFoundError):
            names = sorted(os.listdir(folder))
            kept = (
                n for n in names if n.endswith(".json") and n[0] != "." and n.startswith(prefix)
            )
            return [folder / name for name in kept]
        return []

    def details(self, run_id: str) -> Iterator[dict[str, Any]]:
        """The rows of detail of one Record; none where it has none.

        Raises:
            UserError: the file was cut short or is another; everything works without it.
        """
        path = self.details_path(run_id)
        if not path.exists():
            return
        try:
            with gzip.open(path) as file:
                for line in file:
                    yield orjson.loads(line)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(f"{path}: no whole details ({error}); move it away") from error

    def find(self, prefix: str) -> list[Record]:
        """Records whose run_id or point_id starts with ``prefix``."""
        if not prefix:
            return []
        return self.records(prefix) or [
            record for record in self.records() if record.point_id.startswith(prefix)
        ]


def dump(record: Record) -> bytes:
    """A Record's file. Readable and small: a line for each field, and for each metric."""

    def line(value: Any) -> str:
        return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)

    fields = []
    for key, value in sorted(record.to_json().items()):
        if key == "metrics" and value:
            rows = ",\n".join(f"  {line(name)}: {line(value[name])}" for name in sorted(value))
            fields.append(f' "metrics": {{\n{rows}\n }}')
        else:
            fields.append(f" {line(key)}: {line(value)}")
    return ("{\n" + ",\n".join(fields) + "\n}\n").encode("utf-8")


def _parsed(body: bytes) -> Record:
    """Raises ValueError as :meth:`Record.from_json`, and for what is no JSON: NaN, or half a pair
    of surrogates, which no text could be written of."""
    return Record.from_json(orjson.loads(body))


def _pack(details: list[dict[str, Any]]) -> bytes:
    """JSON lines, gzipped without a time stamp: equal rows give equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        for row in details:
            line = json.dumps(row, sort_keys=True, allow_nan=False, ensure_ascii=False)
            file.write(line.encode("utf-8") + b"\n")
    return buffer.getvalue()


def _write(path: Path, body: bytes) -> None:
    path.write_bytes(body)
