"""The files of a checkpoint: found, checked before they are trusted, and named by their content.

safetensors only. A pickle (``pytorch_model.bin``) can run code when it is read.

Before a tensor is used, each weights file has been read once: its table must fit its bytes, and its
SHA-256 must be the one that is stated, by the manifest of a folder that bitsweep exported or by
the name of a hub cache's blob. Files lie in their folder: an index holds plain names, and a link
leads out of the folder only to such a blob.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsweep.artifacts import Artifacts, digest, file_digest
from bitsweep.errors import UserError
from bitsweep.models.shards import Damaged, table
from bitsweep.models.source import MANIFEST, ModelSource

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
VOLATILE = {"transformers_version", "_name_or_path", "torch_dtype", "dtype"}
"""Keys of config.json that change with who saved it, or that ``model.dtype`` overrides."""


@dataclass(frozen=True)
class Files:
    """A checkpoint's folder on this machine; of a hub checkpoint perhaps without its weights."""

    folder: Path
    config: dict[str, Any]
    hub_id: str | None

    def weights(self, path: str) -> list[Path]:
        """The safetensors files that hold the model, which may still have to be downloaded.

        One file before an index, as transformers has it: what is checked is what is loaded.

        Raises:
            UserError: none, only pickles, or a file that is not in the folder.
        """
        names = [WEIGHTS]
        if not (self.folder / WEIGHTS).exists():
            if (self.folder / INDEX).exists():
                names = sorted({str(name) for name in self.index(path).values()})
            elif self.hub_id is None:
                raise UserError(f"model.path={path}: {_no_weights(self.folder)}")
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(
                    f"model.path={path}: {INDEX} names {name!r}, which is outside the folder or no "
                    "safetensors file; its entries must be plain names of such files"
                )
            target = (self.folder / name).resolve()
            if target.parent != self.folder and _blob(target) is None:
                raise UserError(
                    f"model.path={path}: {name} is a link to {target}, which lies outside the "
                    "folder; put the file itself there"
                )
        return [self.folder / name for name in names]

    def index(self, path: str) -> dict[str, Any]:
        """The file of each tensor, as :data:`INDEX` says.

        Raises:
            UserError: it says nothing of the kind.
        """
        found = _read_json(self.folder / INDEX, path).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise UserError(f"model.path={path}: {INDEX} has no weight_map")
        return found

    def check(self, path: str) -> None:
        """Hold the weights to their tables, the index, and the hashes that are stated.

        Raises:
            UserError: a file is missing, cut short or altered, or lacks a tensor of the index.
        """
        files = self.weights(path)
        held: dict[str, str] = {}
        for file in files:
            try:
                held |= dict.fromkeys(table(file), file.name)
            except Damaged as reason:
                raise UserError(f"model.path={path}: {file.name} {reason}") from reason
            except FileNotFoundError as error:
                raise UserError(
                    f"model.path={path}: {INDEX} names {file.name}, which is not there; copy or "
                    "download it again"
                ) from error
            self._check_hash(file, path)
        if files != [self.folder / WEIGHTS]:
            for name, file_name in self.index(path).items():
                if held.get(name) != file_name:
                    raise UserError(
                        f"model.path={path}: {INDEX} says that {name} is in {file_name}, and it is "
                        "not; copy or download both again"
                    )

    def _check_hash(self, file: Path, path: str) -> None:
        stated, by = _blob(file.resolve()), "the hub"
        if (self.folder / MANIFEST).exists():
            manifest, by = _read_json(self.folder / MANIFEST, path), MANIFEST
            try:
                stated = str(manifest["files"][file.name]["sha256"])
            except (LookupError, TypeError):
                stated = "none"
        if stated is not None and (found := file_digest(file)) != stated:
            raise UserError(
                f"model.path={path}: {file.name} has been altered: its SHA-256 is {found[:16]}, "
                f"and {by} states {stated[:16]}; copy or download it again"
            )

    def checkpoint(self, digests: Sequence[str]) -> str:
        """SHA-256 over the weights' content and the configuration, whatever the files' names."""
        config = {key: value for key, value in self.config.items() if key not in VOLATILE}
        return digest({"weights": sorted(digests), "config": config})

    def tokenizer_sha256(self) -> str:
        """SHA-256 over the content of the tokenizer's files."""
        found = [name for name in TOKENIZER if (self.folder / name).exists()]
        return digest({name: file_digest(self.folder / name) for name in found})


def locate(source: ModelSource, weights: bool, artifacts: Artifacts) -> Files:
    """The folder of ``source``: given, inside this package, or fetched from the hub.

    ``weights`` False fetches a hub checkpoint's small files only. The hub is asked once for all
    points of a sweep: a branch that moves meanwhile changes nothing.

    Raises:
        UserError: no such folder or hub checkpoint, or no config.json in it.
    """
    path = source.path
    hub_id = None
    if path.startswith("pkg:"):
        folder = Path(__file__).parents[1] / path.removeprefix("pkg:") / "model"
        if not folder.is_dir():
            raise UserError(
                f"model.path={path}: no folder {folder}; the model in this package is pkg:reference"
            )
    elif (folder := Path(path).expanduser()).is_dir():
        pass
    elif folder.is_file():
        raise UserError(f"model.path={path}: is a file; give the folder that it lies in")
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not path.startswith("."):
        folder, hub_id = _snapshot(source, weights, artifacts), path
    else:
        raise UserError(
            f"model.path={path}: no such folder (from {Path.cwd()}); give a folder that holds "
            "config.json and model.safetensors, or a hub id like org/name"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path={path}: no config.json in it; give a Hugging Face checkpoint")
    config = _read_json(folder / "config.json", path)
    if "transformers_weights" in config or (folder / "adapter_config.json").exists():
        raise UserError(
            f"model.path={path}: it sends transformers to other weights than its own (an adapter, "
            "or transformers_weights in config.json); merge or rename them first"
        )
    return Files(folder.resolve(), config, hub_id)


def digests(files: Files, source: ModelSource, artifacts: Artifacts) -> list[str]:
    """SHA-256 of each weights file; of files that are still on the hub, as the hub states them.

    Raises:
        UserError: a file that is here is not what it should be (:meth:`Files.check`).
    """
    paths = files.weights(source.path)
    if files.hub_id is None or all(path.exists() for path in paths):
        try:
            files.check(source.path)
            return [file_digest(path) for path in paths]
        except OSError as error:
            raise UserError(
                f"model.path={source.path}: cannot read {error.filename}: {error.strerror}"
            ) from error
    commit = {"hub_id": files.hub_id, "commit": files.folder.name}
    return artifacts.remember("hub_digests", commit, lambda: _stated(paths, files, source))


def _stated(paths: Sequence[Path], files: Files, source: ModelSource) -> list[str]:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(
            source.path, revision=files.folder.name, files_metadata=True, timeout=20
        )
    except Exception as error:
        raise _unreachable(source, error) from error
    stated = {sibling.rfilename: sibling.lfs for sibling in info.siblings or []}
    names = [WEIGHTS] if WEIGHTS in stated else [path.name for path in paths]
    hashes = [lfs.sha256 for name in names if (lfs := stated.get(name)) is not None]
    if len(hashes) < len(names):
        raise UserError(f"model.path={source.path}: {_no_weights_on_hub(source, sorted(stated))}")
    return hashes


def _snapshot(source: ModelSource, weights: bool, artifacts: Artifacts) -> Path:
    key = {"hub_id": source.path, "revision": source.revision}
    small: Path = artifacts.remember(
        "hub_small", key, lambda: _fetch(source, source.revision, SMALL)
    )
    if not weights:
        return small
    everything = [*SMALL, "*.safetensors"]
    return artifacts.remember("hub_all", key, lambda: _fetch(source, small.name, everything))


def _fetch(source: ModelSource, revision: str | None, patterns: list[str]) -> Path:
    """The folder of a commit, named by it, with the files of its top level that match."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        folder = snapshot_download(
            source.path,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
            etag_timeout=10,
        )
    except Exception as error:
        raise _unreachable(source, error) from error
    finally:
        enable_progress_bars()
    return Path(folder)


def _unreachable(source: ModelSource, error: Exception) -> UserError:
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "GatedRepoError"):
        why = "the hub has no such model, or it asks for a licence and `hf auth login`"
    elif kind == "RevisionNotFoundError":
        return UserError(
            f"model.revision={source.revision}: {source.path} has no such branch, tag or commit"
        )
    else:
        why = "no such folder here, and the hub cannot be reached"
    return UserError(f"model.path={source.path}: {why} ({kind}); give a folder, or check the id")


def _blob(target: Path) -> str | None:
    """The SHA-256 that names a weights file in the hub's cache, ``blobs/<sha256>``; else None."""
    named = target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name)
    return target.name if named else None


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"only pickled weights ({pickles[0]}), which can run code when read; if you trust "
            f"them, convert once: AutoModelForCausalLM.from_pretrained('{folder}')"
            ".save_pretrained('NEW_FOLDER'), then give NEW_FOLDER"
        )
    return f"no model.safetensors in {folder}; give a folder with weights"


def _no_weights_on_hub(source: ModelSource, names: list[str]) -> str:
    return (
        f"revision {source.revision or 'main'} has no safetensors "
        f"({', '.join(name for name in names if name.endswith('.bin')) or 'no weights at all'}); "
        "look for a conversion among the model's pull requests and give "
        "model.revision=refs/pr/NUMBER"
    )


def _read_json(file: Path, path: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path}: {file.name} is not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"model.path={path}: {file.name} is not a JSON object")
    return value
