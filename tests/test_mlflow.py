"""MLflow gives back what the Records say: asked over HTTP of its real server, and in a file."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import records
import trackers

from bitsweep import cli, tracking
from bitsweep.record import Record
from bitsweep.store import Store
from bitsweep.tracking import Entry, Summary, publish_report
from bitsweep.tracking.flat import config, numbers
from bitsweep.tracking.layers import Layers
from bitsweep.tracking.ledger import Ledger
from bitsweep.tracking.mlflow import Mlflow, shown

pytest.importorskip("mlflow")
POINT = ("gptq", 4, 64, "uniform")
START_S = 120
PICTURE = Path(__file__).parents[1] / "results/demo/figures/front_size.png"


@pytest.fixture(autouse=True)
def _no_server_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(tracking, "_hinted", set())


@pytest.fixture
def said() -> list[str]:
    return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """``mlflow server`` over a database file, as a lab would start it: address, process group."""
    pytest.importorskip("flask_cors", reason="MLflow's server needs flask and flask-cors")
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "server.db").write_bytes(trackers.blank_database())
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **quiet},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_S
            while not answers(f"{address}/health"):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
            yield address, process.pid
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="module")
def server(serving: tuple[str, int]) -> str:
    return serving[0]


def answers(url: str) -> bool:
    try:
        return bool(ask(url))
    except OSError:
        return False


def ask(url: str, **body: Any) -> bytes:
    """One request without MLflow's client: POST where there is a body."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: bytes = answer.read()
        return found


def runs(server: str, experiment: str) -> list[dict[str, Any]]:
    """The runs of an experiment, by MLflow's REST API."""
    api = f"{server}/api/2.0/mlflow"
    name = urllib.parse.quote(experiment)
    place = json.loads(ask(f"{api}/experiments/get-by-name?experiment_name={name}"))
    asked = {"experiment_ids": [place["experiment"]["experiment_id"]], "max_results": 100}
    found: list[dict[str, Any]] = json.loads(ask(f"{api}/runs/search", **asked))["runs"]
    return found


def artifact(server: str, run: dict[str, Any], path: str) -> bytes:
    asked = urllib.parse.urlencode({"run_uuid": run["info"]["run_id"], "path": path})
    return ask(f"{server}/get-artifact?{asked}")


def named(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {item["key"]: item["value"] for item in items}


def measured(experiment: str) -> list[Record]:
    timing = records.record(*POINT, kind="timing", metrics=records.latency(4))
    timing.timings["total"] = {"wall_s": 90.5}
    failed = records.record("rtn", 2, status="failed", reason="OSError: no such file")
    rows = [records.record(*POINT, metrics=records.quality(*POINT)), timing, failed]
    for record in rows:
        record.experiment = experiment
    return rows


def stored(folder: Path, rows: list[Record]) -> Store:
    store = Store(folder)
    store.prepare()
    for record in rows:
        store.put(record, [{"plan": {"layers.0.q_proj": "w4g64", "lm_head": "torch.float32"}}])
    return store


def test_its_server_gives_back_the_numbers_of_the_records(server, tmp_path, said):
    rows = measured("asked over HTTP")
    mirror = tracking.open([Mlflow(tracking_uri=server)], stored(tmp_path, rows), said.append)
    assert all(mirror.log(record) for record in rows)
    asked = runs(server, "asked over HTTP")
    found = {named(run["data"]["tags"])["bitsweep.run_id"]: run for run in asked}
    assert len(asked) == len(found) == 3
    for record in rows:
        info, data = found[record.run_id]["info"], found[record.run_id]["data"]
        values = {k: v for k, v in numbers(record).items() if v is not None}
        columns = {k: shown(v) for k, v in config(record).items() if v is not None}
        assert named(data.get("metrics", [])) == values
        assert named(data["params"]) == columns
        assert info["run_name"] == record.point["label"]
        assert info["status"] == ("FAILED" if record.status == "failed" else "FINISHED")
    timing = found[rows[1].run_id]["info"]
    assert timing["end_time"] - timing["start_time"] == 90_500
    assert said == [f"MLflow: {server}"]


def test_tags_say_what_bitsweep_knows_and_nothing_of_the_user(server, tmp_path, said):
    (record, *_) = rows = measured("tags")
    tracking.open([Mlflow(tracking_uri=server)], stored(tmp_path, rows), said.append).log(record)
    (run,) = runs(server, "tags")
    tags = named(run["data"]["tags"])
    assert {k: v for k, v in tags.items() if k.startswith("bitsweep.")} == {
        "bitsweep.id": f"{record.run_id[:32]}-1",
        "bitsweep.digest": tags["bitsweep.digest"],
        "bitsweep.run_id": record.run_id,
        "bitsweep.point_id": record.point_id,
        "bitsweep.attempt": "1",
    }
    assert (tags["kind"], tags["status"]) == ("quality", "ok")
    ours = {name for name in tags if name.startswith("mlflow.")}
    assert ours <= {"mlflow.runName", "mlflow.loggedArtifacts"}


def test_without_its_ledger_a_record_is_still_there_once(server, tmp_path, said):
    (record, *_) = rows = measured("twice")
    for folder in ("one", "other"):
        store = stored(tmp_path / folder, rows)
        assert tracking.open([Mlflow(tracking_uri=server)], store, said.append).log(record)
    assert len(runs(server, "twice")) == 1


def test_a_server_that_falls_silent_is_gone_on_with_where_it_was(serving, tmp_path, monkeypatch):
    """It is stopped while the second run is written, and goes on later, as one that hung."""
    server, group = serving
    monkeypatch.chdir(tmp_path)
    rows = measured("demo")
    store = stored(tmp_path / "results" / "demo", rows)
    asked = ["publish", "demo", "tracker=mlflow"]
    asked += [f"tracker.tracking_uri={server}", "tracker.timeout_s=2"]
    command = [sys.executable, "-m", "bitsweep", *asked]
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ledger = store.folder / "published.jsonl"
    try:
        process = subprocess.Popen(command, **kept)
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        os.killpg(group, signal.SIGSTOP)
        said, mistakes = process.communicate(timeout=60)
    finally:
        os.killpg(group, signal.SIGCONT)
    assert process.returncode == cli.FAILED
    (line,) = mistakes.splitlines()
    assert line.endswith(f"{server} does not answer")
    *_, first, second = said.splitlines()
    assert first == f"mlflow: 1 of 4 runs published; {server}"
    assert second.startswith("mlflow: 3 are missing, the others stay; go on with: bitsweep publish")
    events = [json.loads(event)["event"] for event in ledger.read_text().splitlines()]
    assert events == ["begun", "done", "begun"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert f"mlflow: 3 of 4 runs published, 1 there before; {server}" in done.stdout
    assert "View run" not in said + done.stdout, "MLflow's own lines, two a run"
    found = [named(run["data"]["tags"]) for run in runs(server, "demo")]
    assert sorted(tags.get("bitsweep.run_id", "report") for tags in found) == sorted(
        [*(record.run_id for record in rows), "report"]
    )


def test_the_report_carries_the_front_the_page_and_the_pictures(server):
    rows = (("gptq w4g64", 4, None), ("rtn <b>", 3, 11.25))
    page = "<!doctype html><title>front</title>"
    summary = Summary("front of it", ("point", "bits", "ppl"), rows, (PICTURE,), page)
    assert publish_report(Mlflow(tracking_uri=server), Ledger(), summary, print)
    (run,) = runs(server, "front of it")
    assert run["info"]["run_name"] == "front of it report"
    table = json.loads(artifact(server, run, "front.json"))
    assert table["columns"] == ["point", "bits", "ppl"]
    assert table["data"] == [["gptq w4g64", 4, None], ["rtn <b>", 3, 11.25]]
    assert artifact(server, run, "index.html") == page.encode()
    assert artifact(server, run, f"figures/{PICTURE.name}") == PICTURE.read_bytes()


def test_what_was_cut_off_is_replaced_whole(tmp_path):
    (record, *_) = measured("demo")
    tracker, entry = trackers.mlflow(tmp_path), Entry("abc-1")
    with pytest.raises(FileNotFoundError):
        tracker.log(record, Entry("abc-1", artifacts=(tmp_path / "not there",)), print)
    tracker.log(record, entry, print)
    tracker.log(record, entry, print)
    (run,) = trackers.from_mlflow(tmp_path)
    assert run.numbers == {k: v for k, v in numbers(record).items() if v is not None}


def test_a_changed_record_is_the_next_attempt_and_says_so_in_the_old_one(tmp_path, said):
    (record, *_) = rows = measured("demo")
    mirror = tracking.open([trackers.mlflow(tmp_path)], stored(tmp_path / "r", rows), said.append)
    assert mirror.log(record)
    record.timings["quantize"]["wall_s"] = 9.5
    assert mirror.log(record)
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    stem = record.run_id[:32]
    tags = {run.data.tags["bitsweep.id"]: run.data.tags for run in found}
    assert set(tags) == {f"{stem}-1", f"{stem}-2"}
    assert tags[f"{stem}-1"]["bitsweep.superseded"] == f"{stem}-2"
    assert "bitsweep.superseded" not in tags[f"{stem}-2"]


def test_the_layers_are_a_table_beside_the_run(tmp_path, monkeypatch):
    (record, *_) = measured("demo")
    layers = Layers.of([{"plan": {"layers.0.q_proj": "w4g64"}}])
    trackers.mlflow(tmp_path).log(record, Entry("abc-1", layers=layers), print)
    (path,) = (tmp_path / "mlflow-artifacts").rglob("layers.json")
    assert json.loads(path.read_text())["data"] == [["layers.0.q_proj", "w4g64", 4.0, "int"]]
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    table = MlflowClient().load_table("1", "layers.json")
    assert table.to_dict("list") == {
        "layer": ["layers.0.q_proj"],
        "became": ["w4g64"],
        "bits": [4.0],
        "format": ["int"],
    }


def test_a_database_that_was_cut_off_in_the_making_is_made_anew(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(trackers.blank_database())  # made over a torso
    tracker = Mlflow(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracker.log(measured("demo")[0], Entry("abc-1"), print)
    assert len(trackers.from_mlflow(tmp_path)) == 1


def test_by_default_all_of_it_lies_below_one_folder(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    Path(".bitsweep").mkdir()
    Path(".bitsweep/mlflow.db").write_bytes(trackers.blank_database())
    (record, *_) = rows = measured("demo")
    assert tracking.open([Mlflow()], stored(tmp_path / "results", rows), said.append).log(record)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bitsweep", "results"]
    (line,) = said
    assert line.startswith("MLflow: mlflow ui --backend-store-uri sqlite:///.bitsweep/mlflow.db")


def test_a_relative_path_is_of_the_folder_that_the_process_is_in_now(tmp_path, monkeypatch):
    record = measured("demo")[0]
    for name in ("one", "other"):
        (tmp_path / name / ".bitsweep").mkdir(parents=True)
        (tmp_path / name / ".bitsweep/mlflow.db").write_bytes(trackers.blank_database())
        monkeypatch.chdir(tmp_path / name)
        Mlflow().log(record, Entry(f"{name}-1"), print)
    for name in ("one", "other"):
        assert [run.ident for run in trackers.from_mlflow(tmp_path / name / ".bitsweep")] == [
            f"{name}-1"
        ]


def test_mlflows_own_variable_names_the_server_and_no_password_is_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@lab.example:8443/mlflow")
    assert Mlflow().destination() == "https://lab.example:8443/mlflow"


@pytest.mark.parametrize("silent", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_server_that_is_down_costs_one_line_and_a_bounded_wait(tmp_path, said, silent):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        rows = measured("demo")
        store = stored(tmp_path, rows)
        mirror = tracking.open([Mlflow(address, timeout_s=1)], store, said.append)
        started = time.monotonic()
        assert [mirror.log(record) for record in rows] == [False] * 3
        assert time.monotonic() - started < 15
    assert said == [
        f"tracker=mlflow: ConnectionError: {address} does not answer; "
        "the Records are safe on disk, tracker=none turns it off"
    ]
    assert len(store.records()) == 3
    assert not [name for name in os.environ if name.startswith("MLFLOW_")]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tracking_uri": "./mlruns"}, "tracking_uri=./mlruns: MLflow keeps runs in a database"),
        ({"tracking_uri": "file:///tmp/mlruns"}, "try sqlite:///mlflow.db or http://"),
        ({"tracking_uri": "http://h", "timeout_s": 0}, "timeout_s=0: takes seconds from 1"),
    ],
)
def test_what_can_not_work_is_said_before_a_point_is_measured(options, line):
    with pytest.raises(ValueError, match=line):
        Mlflow(**options)
