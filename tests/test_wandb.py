"""W&B is a view: one offline run per Record with its columns and numbers; none is lost."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import records
from offline import log_out, runs

from bitsweep import report, tracking
from bitsweep.record import Record
from bitsweep.store import Store
from bitsweep.tracking import wandb as wandb_tracking
from bitsweep.tracking.layers import Layers
from bitsweep.tracking.none import NoTracker
from bitsweep.tracking.upload import Task, upload
from bitsweep.tracking.wandb import Wandb

SECRET = "5ec12e7" * 6


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log_out(monkeypatch, tmp_path)


def measured() -> list[Record]:
    point = ("gptq", 4, 64, "uniform")
    timing = records.record(*point, kind="timing", metrics=records.latency(4))
    timing.point |= {"engine": "torch_int4", "threads": 2, "device": "laptop"}
    failed = records.record("rtn", 2, status="failed", reason=f"OSError: token={SECRET}")
    return [records.record(*point, metrics=records.quality(*point)), timing, failed]


def opened(folder: Path, said: list[str], **options: Any) -> tracking.Mirror:
    """A mirror into ``folder/wandb`` of the results in ``folder/results/demo``."""
    store = Store(folder / "results" / "demo")
    store.prepare()
    return tracking.open([Wandb(dir=str(folder), **options)], store, said.append)


@pytest.fixture
def said() -> list[str]:
    return []


def test_every_record_becomes_one_run_that_says_what_the_record_says(tmp_path, said):
    mirror = opened(tmp_path, said, project="mine", tags=("paper",))
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
    mirror = opened(tmp_path, said)
    for record in measured():
        mirror.log(record)
    assert said == [
        f"W&B runs are kept offline; to upload: wandb sync {tmp_path}/wandb/offline-run-*"
    ]


def test_a_record_that_is_measured_again_gets_the_next_attempt(tmp_path, said):
    mirror = opened(tmp_path, said)
    record = measured()[0]
    mirror.log(record)
    mirror.log(record)
    assert [run["id"][-2:] for run in runs(tmp_path)] == ["-1"]
    record.timings["quantize"]["wall_s"] = 9.9
    mirror.log(record)
    assert [run["id"][-2:] for run in runs(tmp_path)] == ["-2"]
    (aside,) = (tmp_path / "wandb" / "superseded").iterdir()
    assert aside.name.endswith(f"{record.run_id[:32]}-1")


def test_the_report_carries_the_front_as_a_table(tmp_path, said):
    store = Store(tmp_path / "results" / "demo")
    store.prepare()
    for record in records.grid(timing=False):
        store.put(record, [])
    made = report.write(store.folder)
    opened(tmp_path, said).report(made)
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
    mirror = opened(tmp_path, said)
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
    opened(tmp_path, said, mode="offline").log(record)
    assert len(runs(tmp_path)) == 1
    for path in (tmp_path / "wandb").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def test_an_unreachable_server_costs_one_line_and_the_run_is_kept_offline(
    tmp_path, said, monkeypatch
):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    mirror = opened(tmp_path, said, init_timeout_s=1.0)
    assert all(mirror.log(record) for record in measured()[:2])
    assert len(runs(tmp_path)) == 2
    assert len(said) == 2, said
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"project": "team/mine"}, "project=team/mine: .*; the entity has a key of its own$"),
        ({"project": "50%"}, "project=50%: takes a name without"),
        ({"init_timeout_s": 0.0}, "init_timeout_s=0: takes seconds over 0"),
    ],
)
def test_what_could_never_be_published_is_said_before_a_point_is_measured(options, message):
    with pytest.raises(ValueError, match=message):
        Wandb(**options)


def test_none_and_disabled_write_nothing(tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tracker in (NoTracker(), Wandb(mode="disabled")):
        assert tracking.open([tracker], Store(tmp_path), said.append).log(measured()[0])
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_the_server_is_the_one_that_login_kept_unless_the_environment_names_one(
    tmp_path, monkeypatch
):
    assert wandb_tracking.base_url() == "https://api.wandb.ai"
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "settings").write_text("[default]\nbase_url = https://wandb.lab.example\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "kept"))
    assert Wandb(mode="online").destination() == "online wandb.lab.example/default/bitsweep"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine wandb.lab.example login user password " + "a" * 40)
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert wandb_tracking.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "http://user:secret@other.example:8080")
    assert Wandb(mode="online").destination() == "online other.example:8080/default/bitsweep"
    assert not wandb_tracking.logged_in()


def test_what_a_sweep_mirrored_publish_finds_there(tmp_path, said):
    mirror = opened(tmp_path, said, project="mine")
    store = Store(tmp_path / "results" / "demo")
    for record in measured():
        store.put(record, [])
        assert mirror.log(record)
    tracker = Wandb(dir=str(tmp_path), project="mine")
    task = Task(store, tuple(store.records()), lambda: None)
    count = upload(tracker, task, said.append, lambda number, title: None)
    assert (count.written, count.there, count.left) == (0, 3, 0)


def test_probes_numbers_of_a_layer_stand_beside_what_it_became():
    rows = [
        {"plan": {"a": "w4a8g64", "b": "nf4g64", "c": "mxfp4-4g32-pow2", "d": "torch.bfloat16"}},
        {"probe": "error", "layer": "a", "weight_error": 0.1, "output_error": None},
        {"probe": "error", "layer": "b", "weight_error": 0.2, "output_error": 0.3},
        {"metric": "ppl/x", "losses": [1.0]},
    ]
    layers = Layers.of(rows)
    assert layers.columns == ("layer", "became", "bits", "format", "weight_error", "output_error")
    assert layers.rows == (
        ("a", "w4a8g64", 4.0, "int", 0.1, None),
        ("b", "nf4g64", 4.0, "nf", 0.2, 0.3),
        ("c", "mxfp4-4g32-pow2", 4.0, "mxfp4", None, None),
        ("d", "torch.bfloat16", 16.0, "kept", None, None),
    )
    assert Layers.of([{"metric": "decode_ms"}]) is None
