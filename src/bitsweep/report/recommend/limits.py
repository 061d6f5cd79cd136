"""Limits as a user writes them: ``3.5GiB``, ``0.5x``, ``90%``, ``bleu=1``, and a YAML of them."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from bitsweep.compose import nearest
from bitsweep.errors import UserError
from bitsweep.report.acceptance import PRESETS, Acceptance, Amount

UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip
NUMBER = r"(?:\d+\.?\d*|\.\d+)"


def preset(name: str) -> Acceptance:
    """A preset by its name, or a line of the user's own from a YAML file.

    Raises:
        UserError: neither; or the file has an unknown key or a value that is no limit.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"--preset {name}: no such preset{nearest(name, PRESETS)}; takes "
            f"{', '.join(PRESETS)} or a YAML file with drop, keep, speedup, memory, file"
        )
    return own_line(path)


def own_line(path: Path) -> Acceptance:
    """``drop: {bleu: 1}``, ``keep: {ppl: 0.98}``, ``speedup: 1.5``, ``memory: 0.5x``, ``file: 3GB``

    Raises:
        UserError: an unknown key, or a value that is no limit.
    """
    where = f"--preset {path}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: no YAML ({str(error).splitlines()[0]})") from error
    known = ("drop", "keep", "speedup", "memory", "file")
    if not isinstance(values, dict) or not values:
        raise UserError(f"{where}: takes {', '.join(known)}, each with its limit")
    for key in values:
        if key not in known:
            raise UserError(f"{where}: {key}: no such limit{nearest(str(key), known)}")
    for key in ("drop", "keep"):
        if not isinstance(values.get(key, {}), dict):
            raise UserError(f"{where}: {key}: takes metrics with their limits, as {{bleu: 1}}")
    words = ",".join(f"{name}={limit}" for name, limit in values.get("drop", {}).items())
    sizes = {key: str(values[key]) for key in ("memory", "file") if key in values}
    return Acceptance(
        path.stem,
        drops(words, f"{where}: drop") if words else {},
        {str(k): share(str(v), f"{where}: keep {k}") for k, v in values.get("keep", {}).items()},
        positive(f"{where}: speedup", str(values["speedup"])) if "speedup" in values else None,
        **{key: amount(f"{where}: {key}", text) for key, text in sizes.items()},
    )


def share(text: str, flag: str = "--keep") -> float:
    """``0.9`` or ``90%``."""
    percent = text.endswith("%")
    if re.fullmatch(NUMBER, text.removesuffix("%")) is None:
        raise UserError(f"{flag} {text}: takes a share of full precision's quality, as 0.9")
    value = float(text.removesuffix("%")) / (100 if percent else 1)
    if not 0 < value <= 1:
        meant = 1 < value <= 100 and not percent
        hint = f"; for {value:g} per cent write {value / 100:g}" if meant else ""
        raise UserError(f"{flag} {text}: takes a share over 0 and up to 1{hint}")
    return value


def amount(flag: str, text: str) -> Amount:
    """``3.5GiB``, ``900MB``, ``0.5x``; in MiB where it is not relative."""
    takes = "takes a size as 3.5GiB or 900MB, or a share of full precision as 0.5x"
    found = re.fullmatch(rf"({NUMBER})\s*([a-zA-Z×]*)", text)
    if found is None or not float(found[1]):
        raise UserError(f"{flag} {text}: {takes}")
    value, unit = float(found[1]), found[2].upper()
    if unit in ("X", "×"):
        return Amount(value, relative=True)
    if unit not in UNITS:
        near = f"; did you mean {text}{'x' if value <= 1 else 'MiB'}?" if not unit else ""
        raise UserError(f"{flag} {text}: {takes}{near}")
    return Amount(value * UNITS[unit] / 2**20)


def drops(text: str, flag: str = "--max-drop") -> dict[str, Amount]:
    """``bleu=1,rougeL=2,ppl=5%``."""
    found = {}
    for item in text.split(","):
        name, _, limit = item.partition("=")
        if not name or re.fullmatch(rf"{NUMBER}%?", limit) is None:
            raise UserError(
                f"{flag} {item}: takes METRIC=POINTS or METRIC=PERCENT%, as bleu=1,ppl=5%"
            )
        found[name] = Amount(float(limit.removesuffix("%")), limit.endswith("%"))
    return found


def positive(flag: str, text: str) -> float:
    if re.fullmatch(NUMBER, text) is None or not float(text):
        raise UserError(f"{flag} {text}: takes a number over 0, as 1.5")
    return float(text)
