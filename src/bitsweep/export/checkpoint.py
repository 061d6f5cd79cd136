"""The folder of an exported checkpoint: safetensors in shards, and all that belongs beside them.

    with placed(Path("exports/w4")) as folder:          # exports/.w4.<...>.tmp, renamed at the end
        shards = Shards(folder)
        shards.add("model.norm.weight", tensor)         # on disk at once: no more than one is held
        hashes = shards.close()
        side_files(folder, found, config)
        seal(folder, {"format": "compressed-tensors", ...}, hashes)

Whoever has the tensors one by one (a checkpoint larger than memory) writes the same folder as
whoever has them all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bitsweep import __version__
from bitsweep.artifacts import hash_file
from bitsweep.errors import UserError
from bitsweep.models.files import INDEX, TOKENIZER, Files
from bitsweep.models.shards import NAMES, floats
from bitsweep.models.source import MANIFEST

SHARD_BYTES = 5 * 10**9
"""Of tensors in a file: Hugging Face's 5 GB."""

CHUNK = 2**20


@contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that becomes ``target`` when the ``with`` ends well.

    When it does not, nothing of it is left. The temporary name starts with a dot.

    Raises:
        UserError: ``target`` is there and not empty, or can not be made (``--out``).
    """
    refuse_taken(target)
    target = target.absolute()
    temporary = target.parent / f".{target.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {target}: can not write there ({error.strerror})") from error
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        refuse_taken(target)
        with suppress(FileNotFoundError):
            target.rmdir()  # an empty folder that was there
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_taken(target: Path) -> None:
    """Raises UserError where ``target`` is something already."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"--out {target}: is there already; give another folder, or move it away")


class Shards:
    """safetensors files of at most ``limit`` bytes of tensors each (a larger tensor has its own).

    A tensor goes to disk when it is added: its bytes to a scratch file of its shard, one for each
    width of numbers, so that wide ones can lie first and all lie aligned; behind its header, whose
    length is known last, a full shard is copied together.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.limit = limit
        self.bytes = 0
        """Of all tensors added."""
        self._names: set[str] = set()
        self._shards: list[tuple[Path, str]] = []
        self._files: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._table: dict[int, list[tuple[str, str, list[int], int]]] = {}
        self._scratch: dict[int, BinaryIO] = {}
        self._size = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write ``tensor`` under ``name``; tied tensors are added once, by the caller's choice."""
        self.add_parts(name, tensor.dtype, tensor.shape, [tensor])

    def add_parts(
        self, name: str, dtype: torch.dtype, shape: Sequence[int], parts: Iterable[Tensor]
    ) -> None:
        """Write under ``name`` a tensor whose elements come one after another in ``parts``."""
        if name in self._names:
            raise ValueError(f"{name} is in the file already")
        self._names.add(name)
        size = math.prod(shape) * dtype.itemsize
        if self._size and self._size + size > self.limit:
            self._flush()
        width = dtype.itemsize
        if width not in self._scratch:
            self._scratch[width] = (self.folder / f".{width}.scratch").open("w+b")
        for part in parts:
            flat = part.detach().cpu().contiguous().view(-1).view(torch.uint8)
            self._scratch[width].write(flat.numpy().data)
        self._table.setdefault(width, []).append((name, NAMES[dtype], list(shape), size))
        self._files[name] = len(self._shards)
        self._size += size
        self.bytes += size

    def _flush(self) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for width in sorted(self._table, reverse=True):
            for name, dtype, shape, size in self._table[width]:
                span = [offset, offset + size]
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
                offset += size
        text = json.dumps(header, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        path = self.folder / f".{len(self._shards)}.shard"
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for head in (struct.pack("<Q", len(text)), text):
                file.write(head)
                digest.update(head)
            for width in sorted(self._scratch, reverse=True):
                scratch = self._scratch[width]
                scratch.seek(0)
                while chunk := scratch.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                scratch.close()
                Path(scratch.name).unlink()
        self._shards.append((path, digest.hexdigest()))
        self._begin()

    def close(self) -> dict[str, str]:
        """Finish the last shard and name them all; SHA-256 by file name."""
        self._flush()
        count = len(self._shards)
        names = ["model.safetensors"]
        if count > 1:
            names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
            weight_map = {tensor: names[shard] for tensor, shard in sorted(self._files.items())}
            index = {"metadata": {"total_size": self.bytes}, "weight_map": weight_map}
            write_json(self.folder / INDEX, index)
        for (path, _), name in zip(self._shards, names, strict=True):
            path.rename(self.folder / name)
        return {name: sha256 for (_, sha256), name in zip(self._shards, names, strict=True)}


def kept(tensor: Tensor, stored: torch.dtype) -> Tensor:
    """A tensor that was not quantized, as the file holds it: in ``stored`` where that is exact.

    ``stored`` is the dtype of the checkpoint (:func:`stored_dtype`). One that computes in float32
    with a 16-bit checkpoint's weights holds nothing more; one that a transform changed does, and
    stays as it is.
    """
    if not tensor.is_floating_point() or tensor.element_size() <= stored.itemsize:
        return tensor
    narrow = tensor.to(stored)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def stored_dtype(found: Files, path: str) -> torch.dtype:
    """The float dtype that most numbers of the checkpoint ``found`` (``model.path``) have."""
    return floats(found.weights(path)).most_common(1)[0][0]


def configuration(
    found: Files, dtype: str, tied: bool, quantization: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """config.json of the checkpoint ``found`` after export: its own, with what has changed.

    ``dtype`` is what it is loaded in: that of the point's own numbers, not of a tensor in the file.
    """
    outdated = ("torch_dtype", "dtype", "_name_or_path", "quantization_config")
    config = {key: value for key, value in found.config.items() if key not in outdated}
    config["dtype"] = dtype
    if not tied:
        config["tie_word_embeddings"] = False
    if quantization is not None:
        config["quantization_config"] = dict(quantization)
    return config


def side_files(folder: Path, found: Files, config: Mapping[str, Any]) -> None:
    """config.json, and what the checkpoint ``found`` has of tokenizer, generation and own code."""
    write_json(folder / "config.json", config)
    copied = [*TOKENIZER, "generation_config.json"]
    if "auto_map" in found.config:
        copied += sorted(path.name for path in found.folder.glob("*.py"))
    for name in copied:
        if (found.folder / name).is_file():
            shutil.copyfile(found.folder / name, folder / name)


def seal(folder: Path, about: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
    """Write ``bitsweep.json``: ``about`` the point, and each file's bytes and SHA-256.

    ``hashes`` are those that are known already, by name; the other files are read for theirs.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            sha256 = hashes.get(name) or hash_file(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256}
    manifest = {
        "bitsweep": __version__,
        "utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **about,
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
