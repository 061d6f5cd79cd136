"""W&B is a view: one offline run per Record with its columns and numbers, and no way to lose one.

The runs are read back from W&B's own files: a log in LevelDB's format (32 KiB blocks; records of
CRC, length, kind, payload) whose payloads are ``wandb_internal.Record`` messages.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import records

from bitsweep import report, tracking
from bitsweep.record import Record
from bitsweep.store import Store
from bitsweep.tracking import wandb as wandb_tracking
from bitsweep.tracking.flat import config, numbers
from bitsweep.tracking.none import NoTracker
from bitsweep.tracking.wandb import Wandb

BLOCK, HEADER, FIRST = 32768, 7, 7  # the file itself begins with seven bytes of its own
SECRET = "5ec12e7" * 6


def messages(path: Path) -> Iterator[Any]:
    """The protobuf messages of one ``.wandb`` file."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    body, at, payload = path.read_bytes(), FIRST, b""
    while at + HEADER <= len(body):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(body[at + 4 : at + 6], "little"), body[at + 6]
        payload += body[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            message = Message()
            message.ParseFromString(payload)
            yield message
            payload = b""


def read(folder: Path) -> dict[str, Any]:
    """One run folder as a dict: id, group, job_type, tags, config, summary, exit code."""
    run: dict[str, Any] = {"config": {}, "summary": {}, "logged": {}}
    for message in (m for path in folder.glob("*.wandb") for m in messages(path)):
        kind = message.WhichOneof("record_type")
        if kind == "run":
            run |= {
                "id": message.run.run_id,
                "name": message.run.display_name,
                "group": message.run.run_group,
                "job_type": message.run.job_type,
                "project": message.run.project,
                "tags": list(message.run.tags),
            }
            run["config"] |= {i.key: json.loads(i.value_json) for i in message.run.config.update}
        elif kind == "summary":
            for item in message.summary.update:
                key = item.key or "/".join(item.nested_key)
                run["summary"][key] = json.loads(item.value_json)
        elif kind == "history":
            for item in message.history.item:
                run["logged"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "exit":
            run["exit_code"] = message.exit.exit_code
    return run


def runs(folder: Path) -> list[dict[str, Any]]:
    """Every run, read when W&B's own process has written its last message."""
    deadline = time.monotonic() + 20
    while True:
        found = [read(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]
        if all("exit_code" in run for run in found):
            return found
        assert time.monotonic() < deadline, "W&B did not finish writing"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(wandb_tracking, "_state", wandb_tracking._State())


def measured() -> list[Record]:
    point = ("gptq", 4, 64, "uniform")
    timing = records.record(*point, kind="timing", metrics=records.latency(4))
    timing.point |= {"engine": "torch_int4", "threads": 2, "device": "laptop"}
    failed = records.record("rtn", 2, status="failed", reason=f"OSError: token={SECRET}")
    return [records.record(*point, metrics=records.quality(*point)), timing, failed]


@pytest.fixture
def said() -> list[str]:
    return []


def test_every_record_becomes_one_run_that_says_what_the_record_says(tmp_path, said):
    mirror = tracking.open(Wandb(dir=str(tmp_path), project="mine", tags=("paper",)), said.append)
    logged = measured()
    assert all(mirror.log(record) for record in logged)
    by_id = {run["id"]: run for run in runs(tmp_path)}
    assert set(by_id) == {f"{record.run_id[:32]}-1" for record in logged}
    quality = by_id[f"{logged[0].run_id[:32]}-1"]
    assert quality["group"] == "demo"
    assert quality["job_type"] == "quality"
    assert quality["name"] == "gptq w4g64 uniform"
    assert quality["project"] == "mine"
    assert set(quality["tags"]) == {"reference", "gptq", "ok", "paper"}
    assert quality["config"]["bits"] == 4
    assert quality["config"]["policy"] == "uniform"
    assert quality["config"]["point_id"] == logged[0].point_id
    metric = logged[0].metrics["ppl/in_domain"]
    assert quality["summary"]["ppl/in_domain"] == metric.value
    assert quality["summary"]["ppl/in_domain_delta"] == metric.delta.value
    assert quality["exit_code"] == 0
    timing = by_id[f"{logged[1].run_id[:32]}-1"]
    assert timing["job_type"] == "timing"
    assert timing["config"]["engine"] == "torch_int4"
    assert timing["summary"]["decode_vs_bf16"] == 2.1
    assert by_id[f"{logged[2].run_id[:32]}-1"]["exit_code"] == 1


def test_offline_is_said_once_with_the_command_that_uploads(tmp_path, said):
    mirror = tracking.open(Wandb(dir=str(tmp_path)), said.append)
    for record in measured():
        mirror.log(record)
    assert said == [
        f"W&B runs are kept offline; to upload: wandb sync {tmp_path}/wandb/offline-run-*"
    ]


def test_a_record_that_is_measured_again_gets_the_next_attempt(tmp_path, said):
    mirror = tracking.open(Wandb(dir=str(tmp_path)), said.append)
    record = measured()[0]
    mirror.log(record)
    mirror.log(record)
    assert [run["id"][-2:] for run in runs(tmp_path)] == ["-1", "-2"]


def test_the_report_carries_the_front_as_a_table(tmp_path, said):
    store = Store(tmp_path / "results" / "demo")
    store.prepare()
    for record in records.grid(timing=False):
        store.put(record, [])
    made = report.write(store.folder)
    tracking.open(Wandb(dir=str(tmp_path)), said.append).report(made)
    (run,) = runs(tmp_path)
    assert (run["job_type"], run["group"]) == ("report", "demo")
    assert run["logged"]["front/_type"] == "table-file"
    assert run["logged"]["front_size/_type"] == "image-file"
    (file,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/*.json")
    table = json.loads(file.read_text())
    column = table["columns"].index("front")
    marks = [row[column] for row in table["data"]]
    assert marks[0] == "reference"
    assert {"front", "tied"} == set(marks[1:])


def test_a_mirrored_record_costs_less_than_three_tenths_of_a_second(tmp_path, said):
    mirror = tracking.open(Wandb(dir=str(tmp_path)), said.append)
    first, *others = measured()
    mirror.log(first)
    started = time.perf_counter()
    for record in others:
        mirror.log(record)
    assert (time.perf_counter() - started) / len(others) < 0.3


def test_nothing_secret_leaves_the_machine(tmp_path, said, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    record = measured()[2]
    record.point["model"] = f"https://user:{SECRET}@hub.example/org/name?token={SECRET}"
    record.model["path"] = f"/home/me/{SECRET}"
    record.provenance["command"] = f"HF_TOKEN={SECRET} bitsweep run"
    tracking.open(Wandb(dir=str(tmp_path), mode="offline"), said.append).log(record)
    assert len(runs(tmp_path)) == 1
    for path in (tmp_path / "wandb").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("value", "kept"),
    [("/home/me/models/llama", "llama"), ("org/name", "org/name"), ("https://u:p@h/x?t=1", "x")],
)
def test_a_path_or_url_is_cut_to_its_last_part(value, kept):
    assert config(records.record("rtn", 4, model=value))["model"] == kept


def test_names_of_numbers_do_not_nest():
    names = numbers(measured()[0])
    assert "ppl/in_domain_delta_lo" in names
    assert not any("." in name for name in names)


class Down:
    """A tracker whose server is down."""

    name = "down"

    def __init__(self) -> None:
        self.calls = 0

    def log(self, record: Record, say: tracking.Say) -> None:
        self.calls += 1
        raise TimeoutError("no answer\nafter 15 s")

    summarize = log


def test_a_tracker_that_raises_costs_one_line_and_is_left_alone(said):
    tracker = Down()
    mirror = tracking.open(tracker, said.append)
    assert [mirror.log(record) for record in measured() * 2] == [False] * 6
    assert said == [
        "tracker=down: TimeoutError: no answer; "
        "the Records are safe on disk, tracker=none turns it off"
    ]
    assert tracker.calls == tracking.GIVE_UP_AFTER


def test_an_unreachable_server_costs_one_line_and_the_run_is_kept_offline(
    tmp_path, said, monkeypatch
):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    mirror = tracking.open(Wandb(dir=str(tmp_path), init_timeout_s=1), said.append)
    assert all(mirror.log(record) for record in measured()[:2])
    assert len(runs(tmp_path)) == 2
    assert len(said) == 2
    assert said[0].startswith("tracker=wandb: ")
    assert said[0].endswith("going on offline")


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "a" * 40}, "online"),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_online_is_for_those_who_are_logged_in_and_wandb_mode_is_honoured(
    monkeypatch, environment, mode
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Wandb().resolve_mode() == mode


def test_a_login_in_netrc_is_found(tmp_path, monkeypatch):
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai login user password " + "a" * 40)
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert wandb_tracking.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not wandb_tracking.logged_in()


def test_none_and_disabled_write_nothing(tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tracker in (NoTracker(), Wandb(mode="disabled")):
        assert tracking.open(tracker, said.append).log(measured()[0])
    assert said == []
    assert list(tmp_path.iterdir()) == []
