import errno
import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from bitsweep.artifacts import Artifacts, digest, file_digest, write_atomically
from bitsweep.spec import QuantSpec


def test_digest_is_the_sha256_of_canonical_json():
    golden = hashlib.sha256(b'{"a":[1,2],"b":null}').hexdigest()
    assert digest({"b": None, "a": (1, 2.0)}) == golden


def test_digest_reads_a_dataclass_like_its_dict():
    assert digest(QuantSpec()) == digest(QuantSpec().to_json())


def test_digest_refuses_what_has_no_canonical_form():
    with pytest.raises(TypeError):
        digest({"a": object()})
    with pytest.raises(ValueError, match="nan"):
        digest(float("nan"))


def test_an_artifact_is_made_once_then_found_in_memory_and_on_disk(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": torch.arange(3)}

    first = Artifacts(tmp_path)
    assert torch.equal(first.get("t", {"k": 1}, make)["x"], torch.arange(3))
    first.get("t", {"k": 1}, make)
    assert torch.equal(Artifacts(tmp_path).get("t", {"k": 1}, make)["x"], torch.arange(3))
    assert made == [1]


def test_json_values_come_back_equal(tmp_path):
    value = {"texts": ["é", "<b>"], "n": 3}
    Artifacts(tmp_path).get("j", {"k": 1}, lambda: value)
    assert Artifacts(tmp_path).get("j", {"k": 1}, lambda: None) == value


def test_disk_stays_below_its_cap_and_the_oldest_go_first(tmp_path):
    store = Artifacts(tmp_path, disk_cap=3000)
    for index in range(4):
        store.get("t", {"k": index}, lambda: {"x": torch.zeros(1000, dtype=torch.uint8)})
        for age, path in enumerate(sorted(tmp_path.glob("t/*.safetensors"), key=os.path.getmtime)):
            os.utime(path, (age, age))
    left = list(tmp_path.glob("t/*.safetensors"))
    assert sum(path.stat().st_size for path in left) <= 3000
    assert len(left) == 2


def test_what_another_process_drops_meanwhile_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    dropped, glob = tmp_path / "t" / "gone.json", Path.glob
    monkeypatch.setattr(Path, "glob", lambda *args: [*glob(*args), dropped])
    Artifacts(tmp_path, disk_cap=1).get("t", {"k": 1}, lambda: [1])
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert Artifacts(tmp_path).get("t", {"k": 2}, lambda: [2]) == [2]


@pytest.mark.parametrize("value", [[1, 2, 3], {"x": torch.zeros(8)}])
def test_half_a_file_is_made_again(tmp_path, value):
    Artifacts(tmp_path).get("t", {"k": 1}, lambda: value)
    (path,) = tmp_path.glob("t/[!.]*")
    path.write_bytes(path.read_bytes()[:-2])
    assert str(Artifacts(tmp_path).get("t", {"k": 1}, lambda: value)) == str(value)
    assert str(Artifacts(tmp_path).get("t", {"k": 1}, lambda: None)) == str(value)


def test_memory_keeps_to_its_cap():
    store = Artifacts(None, memory_cap=1500)
    made = []
    for index in (0, 1, 0):
        store.get("t", {"k": index}, lambda: made.append(1) or {"x": torch.zeros(250)})
    assert len(made) == 3  # two of 1000 bytes do not fit, so the first was made again


def _make_slowly(root: str, log: str) -> None:
    def make():
        with open(log, "a") as file:
            file.write("made\n")
        return {"value": 1}

    Artifacts(Path(root)).get("t", {"k": 1}, make)


def test_two_processes_make_it_once(tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(target=_make_slowly, args=(str(tmp_path / "cache"), str(log)))
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert log.read_text() == "made\n"


def test_a_failing_write_leaves_nothing_behind(tmp_path):
    def broken(path):
        path.write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "x", broken)
    assert list(tmp_path.iterdir()) == []


def test_file_digest_sees_changed_content(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"a")
    before = file_digest(path)
    path.write_bytes(b"bb")
    assert file_digest(path) != before


def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    def full(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "a.json", full)
    assert caught.value.filename == str(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
