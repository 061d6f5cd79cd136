"""From a point's model to the folder that others load, and how large that became."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitsweep import provenance
from bitsweep.artifacts import Artifacts
from bitsweep.errors import UserError
from bitsweep.export import Container, Writer, containers, contents, get
from bitsweep.export.card import card
from bitsweep.export.checkpoint import (
    SHARD_BYTES,
    Shards,
    configuration,
    placed,
    seal,
    side_files,
    stored_dtype,
)
from bitsweep.models import Model, files, skeleton
from bitsweep.models.files import Files
from bitsweep.probes.size import MIB, measure, quant_tensors, stored_bytes
from bitsweep.record import Record

Pour = Callable[[Container | None, Shards], int]
"""Adds all tensors to the shards, as the container or, without one, dense; bytes that hold codes.
"""

NEAR = 0.01
"""By which share a file may miss what its Record predicted."""


@dataclass(frozen=True)
class Origin:
    """Which point it is: its Records, if it has any, and the command that makes it again."""

    command: str
    point_id: str
    label: str
    records: tuple[Record, ...] = ()

    def predicted(self) -> float | None:
        """Bytes of the file, as a Record has them."""
        for record in self.records:
            metric = record.metrics.get("file_mib")
            if metric is not None and metric.value is not None:
                return metric.value * MIB
        return None


@dataclass(frozen=True)
class Size:
    """Bytes of the files that hold weights, and bytes that were predicted.

    ``parts`` says by how much each part of the files is off: ``quantized`` layers, what was
    ``kept``, and the ``names`` that headers hold. Without parts there is no gate: another kind of
    file than the one that was predicted.
    """

    bytes: int
    predicted: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def off(self) -> float:
        return self.bytes / self.predicted - 1

    @property
    def missed(self) -> bool:
        return bool(self.parts) and abs(self.off) > NEAR

    def to_json(self) -> dict[str, Any]:
        parts = {name: round(value) for name, value in self.parts.items()}
        return {"bytes": self.bytes, "predicted": round(self.predicted), "off_by": parts}


@dataclass(frozen=True)
class Written:
    """A folder that is in its place; ``readable`` says whether bitsweep can measure it."""

    folder: Path
    files: int
    size: Size
    readable: bool


def against(model: Model, name: str) -> str | None:
    """Why ``model``, quantized, can not leave in the format ``name``, naming what, or None.

    Raises:
        UserError: there is no such format.
    """
    format, plan = get(name), model.plan
    assert plan is not None
    if name not in containers():
        writer: Writer = format  # type: ignore[assignment]
        return writer.refuses(model)
    if not plan.layers:
        return "nothing is quantized; --to hf-dense"
    plain = skeleton(model.source, Artifacts(None))
    container: Container = format  # type: ignore[assignment]
    return contents.unsaid(model, plain) or contents.refused(model, container, plan)


def write(
    model: Model,
    name: str,
    out: Path,
    origin: Origin,
    limit: int = SHARD_BYTES,
    pour: Pour | None = None,
) -> Written:
    """Write ``model`` to ``out`` in the format ``name``: whole, or not at all.

    With ``pour`` (``export/streaming.py``) tensors come from there, and ``model`` has none.

    Raises:
        UserError: the format can not say it, or ``out`` is taken.
    """
    reason = against(model, name)
    if reason is not None:
        raise UserError(f"--to {name}: {reason}")
    found = files.locate(model.source, True, Artifacts(None))
    hashes: dict[str, str] = {}
    with placed(out) as folder:
        if name in containers():
            config, size, hashes = _checkpoint(model, name, folder, found, origin, limit, pour)
        else:
            if pour is None:
                writer: Writer = get(name)  # type: ignore[assignment]
                writer.write(model, folder)
            else:
                shards = Shards(folder, limit)
                pour(None, shards)
                hashes = shards.close()
            weights = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            size = Size(weights, _predicted(model, origin))
            config = configuration(found, model.source.dtype, model.tied)
        side_files(folder, found, config)
        text = card(model, name, origin.label, origin.command, origin.records, size.bytes)
        (folder / "README.md").write_text(text, encoding="utf-8")
        about = {
            "format": name,
            "label": origin.label,
            "point_id": origin.point_id,
            "run_ids": {record.kind: record.run_id for record in origin.records},
            "command": origin.command,
            "transforms": list(model.transformed),
            "code": provenance.code(),
            "base": {
                "path": model.source.path,
                "revision": model.source.revision,
                "sha256": model.checkpoint,
            },
            "size": size.to_json(),
        }
        manifest = seal(folder, about, hashes)
    readable = any(file.endswith(".safetensors") for file in manifest["files"])
    return Written(out, len(manifest["files"]) + 1, size, readable)


def _checkpoint(
    model: Model,
    name: str,
    folder: Path,
    found: Files,
    origin: Origin,
    limit: int,
    pour: Pour | None,
) -> tuple[dict[str, Any], Size, dict[str, str]]:
    """The weights of ``model`` as the container ``name`` holds them, and their configuration."""
    container, plan = containers()[name](), model.plan
    assert plan is not None
    stored = stored_dtype(found, model.source.path)
    shards, held = Shards(folder, limit), 0
    hold = contents.held_by(container, plan)

    def counted(layer: str, module: contents.Quantized) -> dict[str, Any]:
        nonlocal held
        tensors = hold(layer, module)
        held += sum(tensor.nbytes for tensor in tensors.values())
        return tensors

    if pour is not None:
        held = pour(container, shards)
    else:
        for tensor_name, tensor in contents.tensors(model, stored, counted):
            shards.add(tensor_name, tensor)
    hashes = shards.close()
    quantization = container.config(plan, model.layers)
    total = sum((folder / file).stat().st_size for file in hashes)
    codes = sum(sum(quant.nbytes().values()) for quant in quant_tensors(model.module))
    predicted = _predicted(model, origin)
    parts = {
        "quantized": held - codes,
        "kept": shards.bytes - held - (predicted - codes),
        "names": total - shards.bytes,
    }
    config = configuration(found, model.source.dtype, model.tied, quantization)
    return config, Size(total, predicted, parts), hashes


def _predicted(model: Model, origin: Origin) -> float:
    """Bytes of the file: the Record's word, and without one the same count made now."""
    known = origin.predicted()
    if known is not None:
        return known
    return measure(model, stored_bytes(model.source, Artifacts(None)))["file_mib"] * MIB
