"""The page of ``roundtrip.py``: rows to Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bitsweep import provenance

if TYPE_CHECKING:
    from roundtrip import Row

EXACT, LOOSE = 1e-3, 1e-2
DEFAULTS = ("onnxruntime", "openvino")
"""Runtimes that, asked with their defaults, quantize the inputs of layers (A8), or take bf16."""

BY = {
    "bitsweep": "bitsweep",
    "transformers": "transformers",
    "transformers-0.19": "transformers 5.17, compressed-tensors 0.19",
    "gptqmodel": "GPTQModel",
    "onnxruntime-f32": "onnxruntime",
    "onnxruntime": "onnxruntime A8",
    "openvino-f32": "openvino",
    "openvino": "openvino bf16",
}


def limit(by: str) -> float:
    return LOOSE if by in DEFAULTS else EXACT


def off(row: Row, by: str) -> float:
    """By how much perplexity differs from ours, relative."""
    return row.ppl[by] / row.ppl["ours"] - 1


def passes(row: Row, by: str) -> bool:
    return abs(off(row, by)) <= limit(by)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def cell(row: Row, by: str, failures: list[str]) -> str:
    if by not in row.ppl and by not in row.notes:
        return ""
    if by in row.ppl:
        mark = "" if passes(row, by) else " **off**"
        return f"{off(row, by):+.1e}{mark}"
    note = row.notes[by]
    if note == "not here":
        return note
    if note not in failures:
        failures.append(note)
    return f"no [{failures.index(note) + 1}]"


def line(row: Row, columns: Sequence[str], failures: list[str]) -> list[str]:
    return [
        row.model,
        row.setting,
        row.format,
        f"{row.bytes / 1024:,.0f}",
        f"{row.bytes / row.predicted - 1:+.2%}",
        row.weights or "-",
        f"{row.ppl['ours']:.4f}",
        *(cell(row, by, failures) for by in columns),
    ]


def answer(rows: Sequence[Row]) -> str:
    """The findings, counted."""
    checked = [row for row in rows if row.weights]
    same = sum(row.weights == "same bits" for row in checked)
    counts = []
    for loose, words in ((False, "0.1 % in floats"), (True, "1 %")):
        pairs = [
            passes(row, by)
            for row in rows
            for by in row.ppl
            if by != "ours" and (by in DEFAULTS) == loose
        ]
        if pairs:
            tail = " where the runtime quantizes inputs (A8) or takes bf16" if loose else ""
            counts.append(f"{sum(pairs)} of {len(pairs)} within {words}{tail}")
    failed = sum(by not in row.ppl and row.notes[by] != "not here" for row in rows
                 for by in row.notes)  # fmt: skip
    return (
        f"Of {len(checked)} folders whose weights were read back, {same} hold ours bit for bit. "
        f"Perplexity reloaded beside ours: {'; '.join(counts)}"
        + (
            f"; {failed} folders were not loaded by one runtime, for the reasons below."
            * bool(failed)
        )
    )


def refusals(rows: Sequence[Row]) -> str:
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.reason:
            found.setdefault((row.format, row.setting, row.reason), []).append(row.model)
    lines = [[*key[:2], ", ".join(models), key[2]] for key, models in found.items()]
    return table(["format", "setting", "model", "refused, because"], sorted(lines))


def extent(missing: Sequence[tuple[str, str]], kept: int) -> str:
    """What the command would make that is not here (of some model), and how the rows came."""
    lines = []
    if kept:
        lines.append(f"Rows were gathered from {kept} runs of parts of the command (`--keep`).")
    if missing:
        settings: dict[str, list[str]] = {}
        for setting, format in missing:
            settings.setdefault(setting, []).append(format)
        shown = "; ".join(f"{name} ({', '.join(each)})" for name, each in settings.items())
        lines.append(f"Not run for every model: {shown}.")
    return "\n".join(lines)


def page(
    rows: Sequence[Row], tokens: int, missing: Sequence[tuple[str, str]] = (), kept: int = 0
) -> str:
    written = [row for row in rows if not row.reason]
    columns = [by for by in BY if any(by in row.ppl or by in row.notes for row in written)]
    failures: list[str] = []
    lines = [line(row, columns, failures) for row in written]
    head = ["model", "setting", "format", "KiB", "to predicted", "weights", "ours"]
    code = provenance.code()
    wide = [f"{row.format}: {share(row)}" for row in smallest(written)]
    return f"""# The round trip of every export format

Question: do exported files hold the point that was measured, and do others compute the same with
them? Command: `python benchmarks/roundtrip.py --tokens {tokens}`, on
{provenance.device_name("cpu")}, commit `{str(code["commit"])[:12]}`{" (edited)" * code["dirty"]},
{datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")}.

{answer(written)}

{extent(missing, kept)}

Columns: file bytes of the weights and their difference to what the Record predicts; weights as
read back; perplexity of ours (`dense`, float32) on the first {tokens:,} tokens of the data's first
text, and relative differences to it of the same folder and windows computed by others. Beyond
{EXACT:g}, or {LOOSE:g} where the runtime by default quantizes inputs (A8) or takes bf16, it
says **off**.

{table([*head, *(BY[by] for by in columns)], lines)}

{notes(written, failures)}
Sizes: the prediction counts codes, scales and zeros without a gap. These checkpoints are so small
that what a format adds shows: of the largest differences {"; ".join(wide) or "none is known"}.
An hf-dense, onnx or openvino file is of another kind than the prediction, which is of a packed one.

## Refused

{refusals(rows)}
"""


def smallest(rows: Sequence[Row]) -> list[Row]:
    """Of each packed format the row that misses its prediction most."""
    found: dict[str, Row] = {}
    for row in rows:
        worst = found.get(row.format)
        if row.parts and (
            worst is None or row.bytes / row.predicted > worst.bytes / worst.predicted
        ):
            found[row.format] = row
    return list(found.values())


def share(row: Row) -> str:
    named = {"quantized": "tensors of quantized layers", "kept": "other tensors", "names": "names"}
    parts = [f"{named[k]} {v / 1024:+,.1f} KiB" for k, v in row.parts.items() if round(v)]
    return f"{row.model} {row.setting}, {', '.join(parts)}"


def notes(rows: Sequence[Row], failures: Sequence[str]) -> str:
    lines = [f"{i}. Not loaded: {text}" for i, text in enumerate(failures, 1)]
    used: dict[str, set[str]] = {}
    for row in rows:
        for by, note in row.notes.items():
            if by in row.ppl:
                used.setdefault(f"{BY[by]}, {row.format}", set()).add(note)
    lines += [f"- {by}: {' | '.join(sorted(each))}" for by, each in used.items()]
    return "\n".join(lines) + "\n" * bool(lines)
