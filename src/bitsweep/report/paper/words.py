"""How the paper's tables and figures call things and print numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from bitsweep.report import labels
from bitsweep.report.labels import missing
from bitsweep.report.paper.language import Table, Value
from bitsweep.report.paper.select import Chosen, Number
from bitsweep.report.tables import MINUS, signed

KINDS = {
    "ppl": "perplexity", "kl_mean": "KL", "top1": "top-1", "bits_per_weight": "bits/weight",
    "file_mib": "MiB", "bleu": "BLEU", "rougeL": "ROUGE-L", "bleu_fp": "BLEU to fp",
    "rougeL_fp": "ROUGE-L to fp", "acc": "accuracy", "decode_ms": "decode ms",
    "prefill_ms": "prefill ms", "decode_vs_bf16": "decode × bf16",
    "prefill_vs_bf16": "prefill × bf16", "group_size": "group",
}  # fmt: skip


class Names:
    """How a key is printed: as the table's ``names`` say, else in the words of other tables."""

    def __init__(self, chosen: Chosen, table: Table) -> None:
        self.given = {
            column: {str(value): text for value, text in texts.items()}
            for column, texts in table.names.items()
        }
        self.short: dict[str, str] = {}
        ok = [row for row in chosen.rows if row["status"] == "ok"]
        every = list(dict.fromkeys(str(row["approach"]) for row in ok))
        bare = [labels.OPTIONS.sub("", name) for name in every]
        for name, cut in zip(every, bare, strict=True):
            self.short[name] = cut if bare.count(cut) == 1 else name

    def __call__(self, column: str, value: Any, head: bool = False) -> str:
        text = "" if missing(value) else f"{value:g}" if isinstance(value, float) else str(value)
        given = self.given.get(column, {})
        if text in given:
            return given[text]
        if column == "group_size":
            return labels.group(value)
        if column == "approach":
            return self.short.get(text, text)
        return f"{text} bits" if head and column == "bits" else text


def printed(found: Number, value: Value) -> str:
    """A number as its cell shows it, with its spread or interval."""
    size = max(abs(found.value), abs(found.spread or 0.0))
    digits = value.digits
    if digits is None:
        digits = 3 if size < 0.1 else 2 if size < 10 else 1 if size < 100 else 0
    if size >= 1e5:
        text = f"{found.value:.1e}".replace("e+0", "e")
        return f"+{text}" if value.show == "change" and found.value > 0 else text

    def plain(raw: float) -> str:
        if value.show == "change":
            return signed(raw, digits)
        return f"{raw:.{digits}f}".replace("-", MINUS)

    text = plain(found.value)
    if found.spread is not None:
        return f"{text} ± {found.spread:.{digits}f}"
    if value.interval and found.lo is not None and found.hi is not None:
        return f"{text} [{plain(found.lo)}, {plain(found.hi)}]"
    return text


def called(column: str) -> str:
    """A metric or column in the words of a head: ``perplexity in domain``."""
    kind, _, text = column.partition("/")
    return " ".join(word for word in (KINDS.get(kind, kind), text.replace("_", " ")) if word)


def head(value: Value) -> str:
    """What stands over a value."""
    if value.head is not None:
        return value.head
    unit = "Δ % " if value.show == "change" else ""
    return f"{unit}{called(value.of)}{' [95 %]' if value.interval else ''}"


def heads(
    table: Table, shown: Sequence[Value], across: Sequence[Any], names: Names
) -> tuple[str, ...]:
    """The heads of all columns: those of a pivot name its values, unless each has several."""
    left = [table.heads.get(name, KINDS.get(name, name).replace("_", " ")) for name in table.rows]
    if table.columns is None:
        return (*left, *(head(value) for value in shown))
    if len(shown) == 1:
        return (*left, *(names(table.columns, at, True) or "none" for at in across))
    return (*left, *(head(value) for _ in across for value in shown))


def above(
    table: Table, shown: Sequence[Value], across: Sequence[Any], names: Names
) -> tuple[tuple[str, int], ...]:
    """What stands over the heads of a pivot with several values: (text, columns)."""
    if table.columns is None or len(shown) == 1:
        return ()
    groups = [(names(table.columns, at, True) or "none", len(shown)) for at in across]
    return (*(("", 1) for _ in table.rows), *groups)


def align(left: int, right: int) -> tuple[Literal["l", "r"], ...]:
    """Words left, numbers right."""
    sides: list[Literal["l", "r"]] = ["l"] * left
    return (*sides, *(["r"] * right))  # type: ignore[arg-type]
