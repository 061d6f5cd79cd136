"""One safetensors file: its table of contents, held to the bytes that are really there.

A header is 8 bytes of length, then JSON: of each tensor its dtype, shape and place behind it. The
library checks that the table is sound; before that, what is wrong with a file cut short in a
download or a copy is said with both sizes.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 100_000_000
"""Bytes of a header, as the library has it."""


class Damaged(Exception):  # noqa: N818 - it is a finding about a file
    """What is wrong with a file, to be said behind its name; and what helps."""


@dataclass(frozen=True)
class Entry:
    """One tensor: its dtype in the file's words (``BF16``), and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def table(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name, in the order of the header; no tensor is read.

    Raises:
        Damaged: the file is cut short or no safetensors file.
        OSError: it can not be read.
    """
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if len(start) < 8 or length > LONGEST:
            raise Damaged("is no safetensors file")
        if 8 + length > size:
            raise Damaged(_short(8 + length, size, "at least "))
        header = file.read(length)
    try:
        found: dict[str, Any] = json.loads(header)
        found.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in found.values()]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"has no sound header ({type(error).__name__})") from error
    if expected > size:
        raise Damaged(_short(expected, size))
    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        raise Damaged(f"is not sound ({str(error).splitlines()[0]})") from error
    begin = 8 + length
    return {
        name: Entry(
            entry["dtype"],
            tuple(entry["shape"]),
            begin + entry["data_offsets"][0],
            begin + entry["data_offsets"][1],
        )
        for name, entry in found.items()
    }


def _short(expected: int, size: int, least: str = "") -> str:
    return (
        f"is cut short: its header asks for {least}{expected:,} bytes and the file has {size:,}; "
        "copy or download it again"
    )
