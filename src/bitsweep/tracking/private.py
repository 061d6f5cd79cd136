"""What a page tells of the machine it was written on: absolute paths, cut to their last part."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Iterator

from bitsweep.record import Record

ABSOLUTE = re.compile(r"(?:/|~/|[A-Za-z]:\\)[^\s,;'\"()\[\]{}=]+")


def without_paths(text: str, records: Iterable[Record]) -> str:
    """``text`` (HTML, JSON in it) in which no absolute path of these Records is left.

    Only strings that Records hold are looked for: a pattern for paths would cut scripts as well.
    """
    found = {path for record in records for path in _paths(record)}
    for path in sorted(found, key=len, reverse=True):
        last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
        for write in (str, html.escape, lambda value: json.dumps(value)[1:-1]):
            text = text.replace(write(path), write(last))
    return text


def _paths(record: Record) -> Iterator[str]:
    """Absolute paths in what a Record says in words."""
    command = str(record.provenance.get("command") or "")
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    words += [str(record.model.get("path") or ""), str(record.reason or "")]
    words += [value for value in record.point.values() if isinstance(value, str)]
    for word in words:
        for match in ABSOLUTE.finditer(word):
            before = word[match.start() - 1] if match.start() else "="
            if before in "=,[({'\" ":
                yield match[0]
