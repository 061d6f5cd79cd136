"""The comparison as files: ``README.md``, three CSV tables and ``parity.json``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

CONVENTIONS = Path(__file__).with_name("conventions.md")
METHOD_CONVENTIONS = Path(__file__).with_name("conventions_methods.md")


def write(results: dict[str, Any], out: Path) -> None:
    """Write everything below ``out`` from ``results`` alone."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "parity.json").write_text(
        json.dumps({k: results[k] for k in ("about", "verdicts", "method_verdicts")}, indent=1)
        + "\n"
    )
    for name in ("end_to_end", "layers", "rtn"):
        _csv(out / f"{name}.csv", results[name])
    (out / "README.md").write_text(_readme(results))


def write_methods(results: dict[str, Any], out: Path) -> None:
    """Write ``METHODS.md``, its tables and ``methods.json`` below ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    kept = {key: results[key] for key in ("about", "verdicts")}
    (out / "methods.json").write_text(json.dumps(kept, indent=1) + "\n")
    for name in ("values", "methods"):
        _csv(out / f"{name}.csv", results[name])
    (out / "METHODS.md").write_text(_methods(results))


def _csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _readme(results: dict[str, Any]) -> str:
    about = results["about"]
    calibration, evaluation = about["calibration"], about["evaluation"]
    return f"""# Parity with public implementations

Question: are our GPTQ and round-to-nearest those of the field? (Every other method and format:
[METHODS.md](METHODS.md).) Command: `python benchmarks/parity/run.py` (or `make parity`), which
writes this folder.

{_answer(results)}

Settings, the same for every tool: {about["model"]} (checkpoint SHA-256
`{about["checkpoint"][:16]}`), float32, CPU, {about["machine"]}; symmetric, groups of
{about["group_size"]}, damping {about["damping"]}, blocks of {about["block_size"]} columns, the
decoder's {len({row["layer"] for row in results["layers"]})} linear layers, head and embedding
untouched. Calibration: {calibration["windows"]} windows of {calibration["window"]} tokens of
TinyStories' training head (folded, no special tokens, seed {calibration["seed"]}, token ids
SHA-256 `{calibration["sha256"][:16]}`), handed over as ids, in one order, unpadded. Evaluation: one
program for all, the first {evaluation[0]} windows of {evaluation[1]} tokens of the validation head
(folded, no BOS), {evaluation[0] * (evaluation[1] - 1):,} predictions, on the dense weights that
each tool hands back; on all of that text full precision has {about["anchor"]:.4f}.
Check that the peers saw these tokens: in the first block's query, key and value, whose inputs
no quantization has touched, at least {results["same_tokens"]:.4%} of the codes of their own
runs are those that their layer function gives for our Hessian. bitsweep at commit
`{about["commit"][:12]}`, {about["utc"]}.

{_versions(about["versions"])}

## End to end: perplexity

*groups*: scales fitted to the `original` weights before anything moves, or to the `updated` ones
when the group is reached. *order*: `block`, all layers of a block calibrated together, as in
llm-compressor, or `true sequential`, each after those that run before it, as in GPTQModel; ours
runs in the order of the peer in the row below it. *ours / theirs* with its paired 95 % bootstrap
interval over windows. Seconds are of one run on a machine with other load: read CPU, and only
roughly. Loading is left out of all; GPTQModel's include packing.

{_end_to_end(results["end_to_end"])}

Required, of the cases that both peers have: not worse than the worse of the two by more than 1 %.
Updated groups exist in one peer, and its grids are others (see below): those cases are shown
against the same line, and are no comparison of equals.

{_table(results["verdicts"], ("case", "peers", "worse_over_worse", "met"))}

## Layer by layer: one weight, one Hessian, one grid

Hessians of the full-precision model on the calibration windows, float32 scales. `reference` is
`benchmarks/parity/reference.py`: float64, column by column, no Cholesky, no blocks. A layer meets
the requirement with at least 99.9 % equal codes, or an objective tr((W-Q) H (W-Q)^T) within 0.1 %.
Ratios are ours / theirs. Every layer is in `layers.csv`.

{_layers(results["layers"])}

## Round to nearest

The {len(_grids(results["rtn"]))} grids are 4 and 8 bits, groups of 32, 64 and a whole channel,
symmetric and not, float32 and float16 scales, over the model's layers and two random matrices
({results["rtn"][0]["codes"]:,} codes a grid). Each tool fits its own grid to the weights. Every
grid is in `rtn.csv`.

{_rtn(results["rtn"])}

## Time

GPTQ's CPU seconds beside both peers', alternating in three rounds:
`python benchmarks/parity/speed.py`
writes `speed.csv`.

{CONVENTIONS.read_text().strip()}
"""


def _methods(results: dict[str, Any]) -> str:
    about, rows = results["about"], results["verdicts"] + results["values"]
    met = sum(bool(row["met"]) for row in rows)
    return f"""# Parity with public implementations: every method but GPTQ

Question: are our other methods and formats those of the field? Command:
`python benchmarks/parity/run.py --part methods`, which writes this page.

Answer: {met} of {len(rows)} comparisons meet their requirement.

Settings as in [README.md](README.md): {about["model"]}, float32, one core, groups of
{about["group_size"]}, TinyStories' token ids handed over, one evaluation for all. bitsweep at
commit `{about["commit"][:12]}`, {about["utc"]}.

{_versions(about["versions"])}

## Formats and HQQ: weight by weight

The same weights. *differ*: values that are not equal, beyond one rounding of a float32 product
(HQQ: by more than half a step of 1 / 2^bits of the range). HQQ is held by its own measure, the
mean absolute error, ours / theirs at most 1.001.

{_table(results["values"], ("case", "peer", "values", "differ", "error_ratio", "met"))}

## AWQ, SmoothQuant, pruning, rotation, auto-round: end to end

Perplexity of what each tool hands back, ours and theirs, on the same evaluation: the mean of the
runs and their range. AWQ's runs are three calibration draws of {results["awq_windows"]} windows,
those of rotation and auto-round three seeds, all else is one run. A row is met when our mean is not
above 1.03 of their mean (W4, and where nothing is drawn), their range (W3, W2), their mean plus two
standard deviations (auto-round); llm-compressor's rotation is one fixed matrix, which has to lie in
the range of our seeds or above. CPU seconds are of one core. Every run is in `methods.csv`;
`same_zeros` there is the share of equal masks in the first block's query, key and value.

{_table(results["verdicts"], tuple(results["verdicts"][0]))}

{METHOD_CONVENTIONS.read_text().strip()}
"""


def _answer(results: dict[str, Any]) -> str:
    layers, rtn = results["layers"], results["rtn"]
    met = sum(row["met"] is True for row in layers)
    asked = sum(row["met"] is not None for row in layers)
    both = [row for row in results["verdicts"] if row["peers"] == 2]
    alone = [row for row in results["verdicts"] if row["peers"] < 2]
    worst = max(row["worse_over_worse"] for row in both)
    kept = sum(row["met"] for row in both)
    counts = []
    for peer in _peers(rtn):
        here = [row for row in rtn if row["against"] == peer]
        differing, codes = _total(here, "codes_differ"), _total(here, "codes")
        counts.append(f"{differing:,} of {codes:,} against {_name(peer)}")
    differ = ", ".join(counts)
    outside = ", ".join(
        f"{row['case']} {row['worse_over_worse']:.4f}" + ("" if row["met"] else " (would miss it)")
        for row in alone
    )
    return (
        f"Answer: layer by layer {met:,} of {asked:,} comparisons meet the requirement. End to "
        f"end, ours over the worse of both peers is at most {worst:.4f}, and 1.01 is allowed: met "
        f"in {kept} of the {len(both)} cases that both peers have. Not covered by that "
        f"requirement, because one peer alone has them: {outside or 'none'}. RTN codes that "
        f"differ: {differ}."
    )


def _versions(versions: dict[str, dict[str, str]]) -> str:
    rows = [
        {"environment": _name(k), "versions": ", ".join(f"{n} {v}" for n, v in pins.items())}
        for k, pins in versions.items()
    ]
    return _table(rows, ("environment", "versions"))


def _end_to_end(rows: list[Row]) -> str:
    shown = []
    for row in rows:
        parts = row["case"].split("-")
        interval = ""
        if row["ours_over_theirs"] is not None:
            interval = f"{row['ours_over_theirs']:.4f} [{row['lo']:.4f}, {row['hi']:.4f}]"
        shown.append(
            {
                "bits": parts[0][1:] if len(parts) > 1 else "-",
                "groups": parts[1] if len(parts) > 1 else "-",
                "act_order": "yes" if "act_order" in parts else "-",
                "tool": _name(row["tool"]) if row["tool"] != "-" else row["case"],
                "order": row["order"],
                "perplexity": f"{row['perplexity']:.4f}",
                "/ full precision": f"{row['over_full_precision']:.4f}",
                "ours / theirs": interval,
                "wall s": row["wall_s"] or "",
                "CPU s": row["cpu_s"] or "",
            }
        )
    return _table(shown, tuple(shown[0]))


def _layers(rows: list[Row]) -> str:
    shown = []
    for case in dict.fromkeys(row["case"] for row in rows):
        for peer in dict.fromkeys(row["against"] for row in rows if row["case"] == case):
            here = [row for row in rows if row["case"] == case and row["against"] == peer]
            equal = [row["equal_codes"] for row in here]
            ratios = [row["objective_ratio"] for row in here]
            shown.append(
                {
                    "case": case,
                    "against": _name(peer),
                    "equal codes, mean": f"{sum(equal) / len(equal):.4%}",
                    "least": f"{min(equal):.4%}",
                    "objective, lowest ratio": f"{min(ratios):.5f}",
                    "highest": f"{max(ratios):.5f}",
                    "layers that meet it": _met(here),
                }
            )
    return _table(shown, tuple(shown[0]))


def _met(rows: list[Row]) -> str:
    if rows[0]["met"] is None:
        return "(another grid)"
    return f"{sum(row['met'] for row in rows)} of {len(rows)}"


def _rtn(rows: list[Row]) -> str:
    shown = []
    for peer in _peers(rows):
        for scales in ("float32", "float16"):
            for kind in ("sym", "asym"):
                ending = f"-{kind}-{scales}"
                here = [r for r in rows if r["against"] == peer and r["grid"].endswith(ending)]
                total = {
                    key: _total(here, key) for key in here[0] if key not in ("grid", "against")
                }
                shown.append(
                    {
                        "against": _name(peer),
                        "grid": "symmetric" if kind == "sym" else "asymmetric",
                        "scales": scales,
                        "scales that differ": f"{total['scales_differ']:,}",
                        "zeros": f"{total['zeros_differ']:,}",
                        "codes": f"{total['codes_differ']:,} of {total['codes']:,}",
                        "not at a tie": f"{total['off_a_tie']:,}",
                        "with its two operations": f"{total['differ_by_its_operations']:,}",
                        "the peers between them": f"{total['peers_differ']:,}",
                    }
                )
    return _table(shown, tuple(shown[0]))


def _total(rows: list[Row], key: str) -> int:
    return sum(row[key] for row in rows)


def _peers(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["against"] for row in rows))


def _grids(rows: list[Row]) -> set[str]:
    return {row["grid"] for row in rows}


def _name(tool: str) -> str:
    names = {
        "llmcompressor": "llm-compressor",
        "gptqmodel": "GPTQModel",
        "gptqmodel as shipped": "GPTQModel, blocks of 128",
        "compressed_tensors": "compressed-tensors",
    }
    return names.get(tool, tool)


def _table(rows: Sequence[Row], columns: Iterable[str]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row[column]) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return str(value)
