"""A checkpoint's files are what they say before a tensor of them is used."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from bitsweep import models
from bitsweep.artifacts import Artifacts
from bitsweep.errors import UserError
from bitsweep.models import ModelSource
from bitsweep.models.shards import Damaged, table

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def refusal(folder: Path) -> str:
    """The one line with which ``folder`` is refused, before its weights are read."""
    with pytest.raises(UserError) as caught:
        models.skeleton(ModelSource("m", str(folder)), Artifacts(None))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"model.path={folder}: ")
    return line.removeprefix(f"model.path={folder}: ")


def checkpoint(folder: Path) -> str:
    return models.load(ModelSource("m", str(folder)), Artifacts(None)).checkpoint


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """One file, ``model.safetensors``."""
    return tiny.llama(tmp_path / "whole")


@pytest.fixture
def sharded(whole: Path, tmp_path: Path) -> Path:
    """The same in two shards and an index."""
    folder = Path(shutil.copytree(whole, tmp_path / "sharded"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    half = {FIRST: names[: len(names) // 2], SECOND: names[len(names) // 2 :]}
    for file, part in half.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    write_index(folder, {name: file for file, part in half.items() for name in part})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest(folder: Path, *names: str) -> None:
    files = {
        name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    }
    (folder / "bitsweep.json").write_text(json.dumps({"files": files}))


def flip(path: Path, place: int) -> None:
    """Alter one bit: sizes and table stay as they are."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


# --- nothing but tensors --------------------------------------------------------------------------


class Bomb:
    """What a pickle can do: call anything when it is read."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return Path.touch, (self.trap,)


def test_a_file_in_place_of_the_folder_is_told_apart(whole: Path) -> None:
    assert refusal(whole / "model.safetensors") == "is a file; give the folder that it lies in"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_never_read(name: str, whole: Path, tmp_path: Path) -> None:
    (whole / "model.safetensors").unlink()
    (whole / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trap")))
    line = refusal(whole)
    assert not (tmp_path / "trap").exists()
    assert line.startswith(f"only pickled weights ({name})")
    assert "convert once: AutoModelForCausalLM.from_pretrained" in line


@pytest.mark.parametrize("name", ["pytorch_model.bin", "shard.bin"])
def test_an_index_of_pickles_is_refused(name: str, sharded: Path, tmp_path: Path) -> None:
    (sharded / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trap")))
    write_index(sharded, {"lm_head.weight": name})
    assert f"names '{name}', which is outside the folder or no safetensors file" in refusal(sharded)
    assert not (tmp_path / "trap").exists()


def test_a_pickle_beside_safetensors_does_no_harm(whole: Path, tmp_path: Path) -> None:
    expected = checkpoint(whole)
    (whole / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "trap")))
    assert checkpoint(whole) == expected
    assert not (tmp_path / "trap").exists()


# --- nothing from elsewhere -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "a/../../x.safetensors", ".."],
)
def test_an_index_that_points_out_of_its_folder_is_refused(name: str, sharded: Path) -> None:
    shutil.copy(sharded / FIRST, sharded.parent / "x.safetensors")
    write_index(sharded, {"lm_head.weight": name})
    assert f"{INDEX} names {name!r}, which is outside the folder" in refusal(sharded)


def test_a_link_out_of_the_folder_is_refused(sharded: Path) -> None:
    away = sharded.parent / FIRST
    (sharded / FIRST).rename(away)
    (sharded / FIRST).symlink_to(away)
    assert f"{FIRST} is a link to {away}, which lies outside the folder" in refusal(sharded)


def test_a_link_inside_the_folder_and_a_linked_folder_are_followed(sharded: Path) -> None:
    expected = checkpoint(sharded)
    (sharded / FIRST).rename(sharded / "first.safetensors")
    (sharded / FIRST).symlink_to("first.safetensors")
    (sharded.parent / "link").symlink_to(sharded)
    assert checkpoint(sharded.parent / "link") == expected


def test_a_folder_that_names_other_weights_for_transformers_is_refused(whole: Path) -> None:
    (whole / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    assert "sends transformers to other weights than its own" in refusal(whole)


def test_one_file_is_read_before_an_index_as_transformers_does(whole: Path) -> None:
    expected = checkpoint(whole)
    write_index(whole, {"lm_head.weight": "other.safetensors"})
    assert checkpoint(whole) == expected


# --- the cache of the hub -------------------------------------------------------------------------


@pytest.fixture
def snapshot(whole: Path, tmp_path: Path) -> Path:
    """Laid out as huggingface_hub does: a snapshot of links to blobs named by their content."""
    model = tmp_path / "hub" / "models--org--model"
    commit, blobs = model / "snapshots" / "0123abc", model / "blobs"
    shutil.copytree(whole, commit)
    blobs.mkdir()
    blob = blobs / sha256(commit / "model.safetensors")
    (commit / "model.safetensors").rename(blob)
    (commit / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    return commit


def test_links_of_the_hubs_cache_are_followed(snapshot: Path, whole: Path) -> None:
    assert checkpoint(snapshot) == checkpoint(whole)


def test_a_blob_that_is_not_what_its_name_states_is_refused(snapshot: Path) -> None:
    blob = (snapshot / "model.safetensors").resolve()
    flip(blob, -1)
    assert refusal(snapshot) == (
        f"model.safetensors has been altered: its SHA-256 is {sha256(blob)[:16]}, and the hub "
        f"states {blob.name[:16]}; copy or download it again"
    )


# --- whole and unaltered --------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 5000])
def test_a_shard_cut_short_is_named_with_both_sizes(lost: int, sharded: Path) -> None:
    data = (sharded / SECOND).read_bytes()
    (sharded / SECOND).write_bytes(data[:-lost])
    assert refusal(sharded) == (
        f"{SECOND} is cut short: its header asks for {len(data):,} bytes and the file has "
        f"{len(data) - lost:,}; copy or download it again"
    )


def test_a_shard_cut_inside_its_header_is_named_with_both_sizes(sharded: Path) -> None:
    data = (sharded / FIRST).read_bytes()
    (sharded / FIRST).write_bytes(data[:100])
    header = 8 + struct.unpack("<Q", data[:8])[0]
    assert f"{FIRST} is cut short: its header asks for at least {header:,} bytes" in refusal(
        sharded
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is no safetensors file"),
        (b"short", "is no safetensors file"),
        (struct.pack("<Q", 2**62), "is no safetensors file"),
        (struct.pack("<Q", 4) + b"[1,2", "has no sound header (JSONDecodeError)"),
        (struct.pack("<Q", 8) + b'{"a":[]}', "has no sound header (TypeError)"),
        (struct.pack("<Q", 60_000) + b'{"a":' * 12_000, "has no sound header (RecursionError)"),
    ],
    ids=["empty", "short", "absurd length", "no JSON", "no offsets", "too deep"],
)
def test_a_header_that_makes_no_sense_is_refused(
    data: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(Damaged) as caught:
        table(path)
    assert str(caught.value) == expected


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(Damaged, match="is not sound"):
        table(path)


def test_the_table_of_a_file_says_where_its_tensors_lie(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    first, second = torch.arange(6, dtype=torch.int32).view(2, 3), torch.ones(5).bfloat16()
    save_file({"first": first, "second": second}, path)
    found, data = table(path), path.read_bytes()
    assert (found["first"].dtype, found["first"].shape) == ("I32", (2, 3))
    assert data[found["first"].begin : found["first"].end] == first.numpy().tobytes()
    assert (found["second"].dtype, found["second"].nbytes) == ("BF16", 10)


def test_an_index_that_names_a_missing_shard_is_refused(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    assert refusal(sharded).startswith(f"{INDEX} names {SECOND}, which is not there")


def test_an_index_that_names_a_tensor_its_shard_lacks_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    name = next(name for name, file in index.items() if file == FIRST)
    write_index(sharded, {**index, name: SECOND})
    assert refusal(sharded).startswith(f"{INDEX} says that {name} is in {SECOND}, and it is not")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(text: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(text)
    assert INDEX in refusal(sharded)


def test_an_altered_shard_is_found_by_the_manifests_hash(sharded: Path) -> None:
    manifest(sharded, FIRST, SECOND)
    expected = checkpoint(sharded)
    stated = sha256(sharded / SECOND)
    flip(sharded / SECOND, -1)
    assert refusal(sharded) == (
        f"{SECOND} has been altered: its SHA-256 is {sha256(sharded / SECOND)[:16]}, and "
        f"bitsweep.json states {stated[:16]}; copy or download it again"
    )
    flip(sharded / SECOND, -1)
    assert checkpoint(sharded) == expected


def test_a_shard_that_the_manifest_does_not_know_is_refused(sharded: Path) -> None:
    manifest(sharded, FIRST)
    assert f"{SECOND} has been altered" in refusal(sharded)


@pytest.mark.parametrize("text", ["[]", "{", '{"files": []}', '{"files": {}}'])
def test_a_manifest_that_makes_no_sense_is_refused(text: str, whole: Path) -> None:
    (whole / "bitsweep.json").write_text(text)
    assert "bitsweep.json" in refusal(whole)


def test_an_unaltered_file_is_hashed_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(whole, "model.safetensors")
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr("bitsweep.artifacts.hash_file", count)
    for _ in range(3):
        checkpoint(whole)
    assert hashed.count("model.safetensors") == 1
