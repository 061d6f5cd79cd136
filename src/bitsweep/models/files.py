"""The files of a checkpoint: found, checked before they are trusted, and named by their content.

safetensors only. A pickle (``pytorch_model.bin``) can run code when it is read.
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
from bitsweep.models.source import ModelSource

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

        Raises:
            UserError: none, only pickles, or an index that points out of its folder.
        """
        index = self.folder / INDEX
        if index.exists():
            names = sorted(set(_read_json(index, path)["weight_map"].values()))
            for name in names:
                if Path(name).name != name:
                    raise UserError(
                        f"model.path={path}: {INDEX} names {name!r}, which lies outside the "
                        "folder; its entries must be plain file names"
                    )
            return [self.folder / name for name in names]
        single = self.folder / "model.safetensors"
        if not single.exists() and self.hub_id is None:
            raise UserError(f"model.path={path}: {_no_weights(self.folder)}")
        return [single]

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
    if "quantization_config" in config:
        raise UserError(
            f"model.path={path}: this checkpoint is quantized already; give the full-precision one"
        )
    return Files(folder.resolve(), config, hub_id)


def digests(files: Files, source: ModelSource, artifacts: Artifacts) -> list[str]:
    """SHA-256 of each weights file; of files that are still on the hub, as the hub states them."""
    paths = files.weights(source.path)
    if files.hub_id is None or all(path.exists() for path in paths):
        try:
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
    hashes = [lfs.sha256 for path in paths if (lfs := stated.get(path.name)) is not None]
    if len(hashes) < len(paths):
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
