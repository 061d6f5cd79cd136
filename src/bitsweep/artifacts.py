"""What the points of a sweep have in common, made once and found by its content.

Memory first, then disk below ``$BITSWEEP_CACHE`` (default ``~/.cache/bitsweep``), never inside
``results/``. A key holds content hashes and versions of code, so an entry is never stale: it is
found or it is not. Whoever needs an entry first makes it, under a file lock; the others wait.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

DISK_CAP_BYTES = 20 * 2**30
MEMORY_CAP_BYTES = 4 * 2**30


def plain(value: Any) -> Any:
    """``value`` as JSON types: dataclasses become dicts of the fields that are compared."""
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = (item.name for item in dataclasses.fields(value) if item.compare)
        return {name: plain(getattr(value, name)) for name in named}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")


def digest(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of the canonical JSON of ``value``.

    Independent of the order of keys, of tuple or list, and of 4 or 4.0.
    """
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def cache_root() -> Path:
    """``$BITSWEEP_CACHE``, or ``~/.cache/bitsweep``."""
    return Path(os.environ.get("BITSWEEP_CACHE") or Path.home() / ".cache" / "bitsweep")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_FILE_DIGESTS: dict[tuple[str, int, int], str] = {}


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content, computed once a process while size and time of it stay.

    Only in memory: a digest kept on disk would trust a modification time across sessions.
    """
    path = Path(path).resolve()
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _FILE_DIGESTS:
        _FILE_DIGESTS[key] = hash_file(path)
    return _FILE_DIGESTS[key]


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, make it durable, and rename it.

    The temporary name starts with a dot and is unique, so that readers and rivals never meet it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp"
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk names none, and nobody knows the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


class Artifacts:
    """A content-addressed store: ``get(kind, key, make)`` finds or makes.

    One object, made in ``cli.py`` and passed down; never a module-level cache.
    ``root`` is the folder on disk; ``None`` keeps everything in memory.
    """

    def __init__(
        self,
        root: Path | None,
        disk_cap: int = DISK_CAP_BYTES,
        memory_cap: int = MEMORY_CAP_BYTES,
    ) -> None:
        self.root = root
        self.disk_cap = disk_cap
        self.memory_cap = memory_cap
        self._memory: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def get(self, kind: str, key: Mapping[str, Any], make: Callable[[], T]) -> T:
        """The artifact of this ``key``, from memory, from disk, or made now.

        ``make`` returns a ``dict[str, Tensor]`` (kept as safetensors) or a JSON value.
        """
        name = f"{kind}/{digest(key)}"
        if name in self._memory:
            return self._touch(name)
        if self.root is None:
            return self._keep(name, make())
        from filelock import FileLock

        folder = self.root / kind
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name.partition('/')[2]}.lock"):
            value = self._read(name)
            if value is None:
                value = make()
                self._write(name, value)
        return self._keep(name, cast(T, value))

    def remember(self, kind: str, key: Mapping[str, Any], make: Callable[[], T]) -> T:
        """Like :meth:`get`, for what lives in memory only (a loaded checkpoint, a task object)."""
        name = f"{kind}/{digest(key)}"
        if name in self._memory:
            return self._touch(name)
        return self._keep(name, make())

    def _touch(self, name: str) -> Any:
        self._memory.move_to_end(name)
        return self._memory[name][0]

    def _keep(self, name: str, value: T) -> T:
        self._memory[name] = (value, _tensor_bytes(value))
        total = sum(size for _, size in self._memory.values())
        while total > self.memory_cap and len(self._memory) > 1:
            _, (_, size) = self._memory.popitem(last=False)
            total -= size
        return value

    def _read(self, name: str) -> Any:
        """What is kept on disk; None also where another process drops it just now to keep the cap,
        and where a machine that went down left half of it: it is made again."""
        assert self.root is not None
        tensors, text = self.root / f"{name}.safetensors", self.root / f"{name}.json"
        try:
            if tensors.exists():
                from safetensors import SafetensorError
                from safetensors.torch import load_file

                os.utime(tensors)  # the least recently used go first
                try:
                    return load_file(tensors)
                except SafetensorError:
                    return None
            os.utime(text)
            return json.loads(text.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def _write(self, name: str, value: Any) -> None:
        assert self.root is not None
        if _is_tensors(value):
            from safetensors.torch import save_file

            tensors = {key: tensor.contiguous() for key, tensor in value.items()}
            path = self.root / f"{name}.safetensors"
            write_atomically(path, lambda file: save_file(tensors, file))
        else:
            body = json.dumps(value, allow_nan=False, ensure_ascii=False)
            path = self.root / f"{name}.json"
            write_atomically(path, lambda file: _write_text(file, body))
        self._shrink(path)

    def _shrink(self, newest: Path) -> None:
        """Drop the least recently used files until the cap holds; never the one just written."""
        assert self.root is not None
        files = []
        for path in self.root.glob("*/[!.]*"):
            with suppress(FileNotFoundError):  # another process keeps the same cap
                stat = path.stat()
                files += [(stat.st_mtime, stat.st_size, path)] * (path != newest)
        total = newest.stat().st_size + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.disk_cap:
                break
            path.unlink(missing_ok=True)
            total -= size


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _is_tensors(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    import torch

    return all(isinstance(item, torch.Tensor) for item in value.values())


def _tensor_bytes(value: Any) -> int:
    """Bytes of the tensors in a dict of them; other values are small and count as nothing."""
    if not _is_tensors(value):
        return 0
    tensors: dict[str, Tensor] = value
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
