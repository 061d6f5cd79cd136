"""Every export format, written, read back and evaluated by every runtime that reads it.

    python benchmarks/roundtrip.py [--models reference stories3M] [--formats gptq] [--tokens 2048]

Writes ``results/roundtrip/``: ``roundtrip.csv`` and ``.json`` with all numbers, ``README.md`` with
the table. ``--keep FILE.json`` takes over the rows of an earlier run that this one does not make.
Perplexity is of the same windows everywhere. ``ours`` is the ``dense`` engine on the point that was
exported; ``bitsweep`` the folder loaded by ``model.path=``; the others know nothing of bitsweep
(``roundtrip_readers.py``), each in a process of its own. Some live in environments of their own
below ``$BITSWEEP_PEERS``, as ``benchmarks/parity`` makes them: ``gptqmodel``; ``gptq_hf``, the same
with ``optimum``, which transformers needs for its files; ``llmcompressor``, with
compressed-tensors 0.19. Without them their columns say so.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from roundtrip_page import page

from bitsweep import config, export
from bitsweep.artifacts import Artifacts, cache_root
from bitsweep.compose import compose
from bitsweep.errors import Refused, UserError
from bitsweep.export import folder as folders
from bitsweep.linear import QuantEmbedding, QuantLinear
from bitsweep.models import Model
from bitsweep.prepared import prepare
from bitsweep.probes._forward import scores
from bitsweep.probes.perplexity import cut_text
from bitsweep.provenance import Stopwatch
from bitsweep.run import Made, make

READERS = Path(__file__).with_name("roundtrip_readers.py")
STORIES = "../shared/data/models"
MODELS: dict[str, list[str]] = {
    "reference": ["model=reference", "data=reference"],
    "stories3M": [f"model.path={STORIES}/stories3M", "data=tinystories"],
    "stories260K": [f"model.path={STORIES}/stories260K", "data=tinystories"],
}
ACT_ORDER = ["method=gptq", "method.static_groups=false", "calibration.windows=16"]
HEAD = "policy.rules=[{role: linear}, {role: head, bits: 8, group_size: -1}]"
SETTINGS: dict[str, list[str]] = {
    "w4g64": ["bits=4", "group_size=64"],
    "w4g32-sym": ["bits=4", "group_size=32", "symmetric=true"],
    "w3g32": ["bits=3", "group_size=32"],
    "w8": ["bits=8", "group_size=-1"],
    "gptq w4g32, act_order": [*ACT_ORDER, "bits=4", "group_size=32"],
    "w8a8": ["bits=8", "group_size=-1", "symmetric=true", "input.bits=8", "input.symmetric=true"],
    "w4a8g32, narrow": [
        "bits=4",
        "group_size=32",
        "symmetric=true",
        "input.bits=8",
        "input.format=narrow",
        "input.group_size=32",
    ],
    "w4g32-sym, edges w8": ["policy=edges_8bit", "bits=4", "group_size=32", "symmetric=true"],
    "by_role w4g32": ["policy=by_role", "bits=4", "group_size=32"],
    "w4g32-sym, head w8": [
        HEAD,
        "+policy.untie=true",
        "bits=4",
        "group_size=32",
        "symmetric=true",
    ],
}
COMMON = ["tracker=none", "probes=quick", "misfit=per_channel"]

RUNTIMES: dict[str, list[str]] = {
    "compressed-tensors": ["transformers", "transformers-0.19"],
    "hf-dense": ["transformers"],
    "gptq": ["transformers", "gptqmodel"],
    "onnx": ["onnxruntime-f32", "onnxruntime"],
    "openvino": ["openvino-f32", "openvino"],
}
PEERS = {
    ("compressed-tensors", "transformers-0.19"): "llmcompressor",
    ("gptq", "transformers"): "gptq_hf",
    ("gptq", "gptqmodel"): "gptqmodel",
}


@dataclass
class Row:
    """One folder, or why there is none; ``ppl`` and ``notes`` by who computed."""

    model: str
    setting: str
    format: str
    reason: str = ""
    bytes: int = 0
    predicted: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    weights: str = ""
    ppl: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def point(overrides: Sequence[str], artifacts: Artifacts) -> Made:
    """The model of a point."""
    wanted = config.job(compose([*COMMON, *overrides])).point
    return make(prepare(wanted, artifacts), artifacts, Stopwatch())


def perplexity(model: Model, windows: torch.Tensor) -> float:
    losses = scores(model, windows).losses
    return math.exp(float(losses.sum()) / (windows.numel() - len(windows)))


def exported(
    name: str, setting: str, formats: Sequence[str], work: Path, tokens: int
) -> Iterator[tuple[Row, Path, Path]]:
    """Each format's row with what bitsweep itself finds, its folder and the tokens."""
    artifacts = Artifacts(cache_root())
    own = [*MODELS[name], *SETTINGS[setting]]
    try:
        made = point(own, artifacts)
    except (Refused, UserError) as error:
        for format in formats:
            yield Row(name, setting, format, reason=str(error)), work, work
        return
    text = next(iter(made.reference.data.texts.values()))
    windows = cut_text(made.model, made.reference, text, tokens).windows
    file = work / f"{name}.npy"
    np.save(file, windows.numpy())
    ours = perplexity(made.model, windows)
    command = " ".join(["bitsweep export", *(f"'{word}'" if " " in word else word for word in own)])
    for format in formats:
        row = Row(name, setting, format)
        folder = work / "-".join([name, *re.findall(r"\w+", setting), format])
        row.ppl["ours"] = ours
        try:
            written = folders.write(
                made.model, format, folder, folders.Origin(command, "roundtrip", setting)
            )
        except UserError as error:
            row.reason = str(error).removeprefix(f"--to {format}: ")
            yield row, folder, file
            continue
        row.bytes, row.predicted = written.size.bytes, written.size.predicted
        row.parts = dict(written.size.parts)
        read_back(row, made.model, folder, windows)
        yield row, folder, file


def read_back(row: Row, model: Model, folder: Path, windows: torch.Tensor) -> None:
    """Weights and perplexity of ``folder``, as bitsweep reads it."""
    if row.format == "onnx":
        row.weights = graph_weights(model, folder)
        return
    if row.format not in (*export.containers(), "hf-dense"):
        return
    dtype = f"model.dtype={model.source.dtype}"
    data = next(item for item in MODELS[row.model] if item.startswith("data="))
    try:
        again = point(
            [f"model.path={folder}", "method=full_precision", dtype, data], Artifacts(cache_root())
        )
    except (Refused, UserError) as error:
        row.notes["bitsweep"] = str(error)
        return
    row.ppl["bitsweep"] = perplexity(again.model, windows)
    row.weights = difference(model, again.model)


def difference(ours: Model, theirs: Model) -> str:
    """``same bits``, or the largest difference of a weight; of codes and parameters where kept."""
    worst = 0.0
    mine, read = dict(ours.module.named_modules()), dict(theirs.module.named_modules())
    for name, module in mine.items():
        if isinstance(module, QuantLinear | QuantEmbedding):
            other = read[name]
            if isinstance(other, QuantLinear | QuantEmbedding):
                a, b = module.quant, other.quant
                same = torch.equal(a.codes, b.codes) and a.params.keys() == b.params.keys()
                same = same and all(torch.equal(a.params[k], b.params[k]) for k in a.params)
                worst = worst if same else max(worst, 2.0**-149)
            worst = max(worst, float((module.weight - other.weight).abs().max()))
    for name, value in ours.module.named_parameters():
        other = theirs.module.get_parameter(name)
        worst = max(worst, float((value - other).abs().max()))
    return "same bits" if worst == 0 else f"{worst:.1e}"


def graph_weights(model: Model, folder: Path) -> str:
    """The codes and scales of ``model.onnx`` beside ours."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(next(folder.rglob("*.onnx"))).graph
    found = {item.name: item for item in graph.initializer}
    different = 0
    for name, module in model.module.named_modules():
        if isinstance(module, QuantLinear | QuantEmbedding) and f"{name}.scale" in found:
            quant = module.quant
            scale = torch.tensor(numpy_helper.to_array(found[f"{name}.scale"])).reshape(-1)
            mine = quant.params["scale"]
            different += not any(torch.equal(scale, one.reshape(-1)) for one in (mine.T, mine))
            if f"{name}.codes" not in found:
                continue
            codes = numpy_helper.to_array(found[f"{name}.codes"]).astype(np.int16)
            order = quant.permutation
            own = (quant.codes if order is None else quant.codes[:, order]).short().numpy()
            own = own - 2 ** int(quant.spec.bits - 1) * quant.spec.symmetric
            different += not (np.array_equal(codes, own.T) or np.array_equal(codes, own))
    return "same bits" if not different else f"{different} tensors differ"


def python_of(format: str, runtime: str) -> Path | None:
    """The Python that has ``runtime``; None where its environment is not there."""
    peer = PEERS.get((format, runtime))
    if peer is None:
        return Path(sys.executable)
    python = Path(os.environ.get("BITSWEEP_PEERS", ".parity")) / peer / "bin" / "python"
    return python.absolute() if python.exists() else None


def ask(runtime: str, format: str, jobs: list[tuple[Row, Path, Path]], work: Path) -> None:
    """Let ``runtime`` evaluate ``jobs``, all in one process."""
    python = python_of(format, runtime)
    if python is None:
        for row, _, _ in jobs:
            row.notes[runtime] = "not here"
        return
    listed = [
        {"id": str(i), "folder": str(folder), "tokens": str(tokens)}
        for i, (_, folder, tokens) in enumerate(jobs)
    ]
    (work / "jobs.json").write_text(json.dumps(listed))
    (work / "answers.jsonl").unlink(missing_ok=True)
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "GPTQMODEL_CPU_WORKERS": "2"}
    variables["TORCHDYNAMO_DISABLE"] = "1"  # GPTQModel compiles each kind of layer, for minutes
    variables.pop("PYTHONPATH", None)
    with (work / f"{runtime}.log").open("a") as log:
        subprocess.run(
            [python, READERS, runtime, "jobs.json", "answers.jsonl"],
            cwd=work, env=variables, stdout=log, stderr=log, check=False,
        )  # fmt: skip
    for row, _, _ in jobs:
        row.notes[runtime] = "its process ended before"
    if (work / "answers.jsonl").exists():
        for answer in map(json.loads, (work / "answers.jsonl").read_text().splitlines()):
            row = jobs[int(answer["id"])][0]
            if "ppl" in answer:
                row.ppl[runtime] = answer["ppl"]
            row.notes[runtime] = answer.get("note") or answer["error"]


def in_order(rows: Iterable[Row], kept: Sequence[Path]) -> list[Row]:
    """``rows``, and those of the files ``kept`` that are not among them."""
    earlier = [Row(**item) for path in kept for item in json.loads(path.read_text())]
    found = {(row.model, row.setting, row.format): row for row in (*earlier, *rows)}
    places = [list(MODELS), list(SETTINGS), list(RUNTIMES)]
    return [
        found[key]
        for key in sorted(
            found, key=lambda key: [names.index(k) for names, k in zip(places, key, strict=True)]
        )
    ]


def save(rows: Sequence[Row], folder: Path) -> None:
    """The rows as JSON, and as CSV with a line for each row and each who computed."""
    (folder / "roundtrip.json").write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    names = ["model", "setting", "format", "bytes", "predicted", "weights", "by", "ppl", "ratio"]
    with (folder / "roundtrip.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, "note"])
        for row in rows:
            first: list[Any] = [row.model, row.setting, row.format]
            if row.reason:
                writer.writerow([*first, *[""] * 6, row.reason])
                continue
            first += [row.bytes, round(row.predicted), row.weights]
            for by in dict.fromkeys([*row.ppl, *row.notes]):
                ppl = row.ppl.get(by)
                shown = ["", ""] if ppl is None else [f"{ppl:.6f}", f"{ppl / row.ppl['ours']:.6f}"]
                writer.writerow([*first, by, *shown, row.notes.get(by, "")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [name for name in RUNTIMES if name in export.names()]
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--formats", nargs="*", default=known, choices=known)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--keep", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("results/roundtrip"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    jobs: list[tuple[Row, Path, Path]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for name in given.models:
            for setting in given.settings:
                for job in exported(name, setting, given.formats, work, given.tokens):
                    print(*vars(job[0]).values(), flush=True)
                    jobs.append(job)
        for format in given.formats:
            mine = [job for job in jobs if job[0].format == format and not job[0].reason]
            for runtime in RUNTIMES[format] if mine else ():
                print(f"{runtime}: {len(mine)} folders of {format}", flush=True)
                ask(runtime, format, mine, work)
    given.out.mkdir(parents=True, exist_ok=True)
    rows = in_order([row for row, _, _ in jobs], given.keep)
    save(rows, given.out)
    have = {(row.model, row.setting, row.format) for row in rows}
    missing = sorted({key[1:] for key in product(MODELS, SETTINGS, known) if key not in have})
    text = page(rows, given.tokens, missing, len(given.keep))
    (given.out / "README.md").write_text(text, encoding="utf-8")
    print(given.out / "README.md")


if __name__ == "__main__":
    main()
