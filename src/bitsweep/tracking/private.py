"""What a page tells of the machine it was written on: absolute paths, cut to their last part."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Iterator

from bitsweep.record import Record
from bitsweep.tracking.flat import PLACE, plain

SHORTEST = 4
"""Of a path that is looked for: what scripts use as ``/`` or ``/g`` is none."""
BEFORE, AFTER = r"(?<![\w/.~])", r"(?![\w.-])"


def without_paths(text: str, records: Iterable[Record]) -> str:
    """``text`` (HTML, JSON in it) in which no absolute path of these Records is left.

    Only what Records hold is looked for: a pattern for paths would cut scripts as well.
    """
    found = {path for record in records for path in _paths(record) if len(path) >= SHORTEST}
    for path in sorted(found, key=len, reverse=True):
        last = str(plain(path))
        for write in (str, html.escape, lambda value: json.dumps(value)[1:-1]):
            shown = write(last).replace("\\", r"\\")
            text = re.sub(BEFORE + re.escape(write(path)) + AFTER, shown, text)
    return text


def _paths(record: Record) -> Iterator[str]:
    """Absolute paths and URLs in what a Record says in words."""
    command = str(record.provenance.get("command") or "")
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    words += [str(record.model.get("path") or ""), str(record.reason or "")]
    words += [value for value in record.point.values() if isinstance(value, str)]
    for word in words:
        yield from (match[0].rstrip(".:") for match in PLACE.finditer(word))
