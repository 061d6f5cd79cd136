"""One safetensors file: its table of contents, held to the bytes that are really there.

A header is 8 bytes of length, then JSON: of each tensor its dtype, shape and place behind it. The
library checks that the table is sound; before that, what is wrong with a file cut short in a
download or a copy is said with both sizes.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LONGEST = 100_000_000
"""Bytes of a header, as the library has it."""

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a header calls a dtype."""

DTYPES = {name: dtype for dtype, name in NAMES.items()}


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


def floats(paths: Iterable[Path]) -> Counter[torch.dtype]:
    """How many numbers the files have of each float dtype of 16 bits or more."""
    counts: Counter[torch.dtype] = Counter()
    for path in paths:
        for entry in table(path).values():
            dtype = DTYPES.get(entry.dtype, torch.uint8)
            if dtype.is_floating_point and dtype.itemsize > 1:
                counts[dtype] += math.prod(entry.shape)
    return counts


def _short(expected: int, size: int, least: str = "") -> str:
    return (
        f"is cut short: its header asks for {least}{expected:,} bytes and the file has {size:,}; "
        "copy or download it again"
    )
