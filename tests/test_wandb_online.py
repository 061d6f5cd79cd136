"""Online: what W&B's own programs send of the Records, and what becomes of a lost connection."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import records
from offline import artifacts, log_out, told_of_the_machine
from wandb_server import KEY, Server, serving

from bitsweep import cli
from bitsweep.record import Record
from bitsweep.store import Store
from bitsweep.tracking.flat import config, numbers

PATIENCE = ("tracker.init_timeout_s=2", "tracker.finish_timeout_s=3")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    import wandb

    log_out(monkeypatch, tmp_path)
    with serving() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()  # W&B reads the environment once a process
        yield server


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Three Records, of which one failed, and what became of a layer."""
    monkeypatch.chdir(tmp_path)
    made = Store(tmp_path / "results" / "demo")
    made.prepare()
    for bits in (2, 3, 4):
        measured = records.record("rtn", bits, metrics=[records.number("file_mib", 1.5 * bits)])
        if bits == 2:
            measured = records.record("rtn", 2, status="failed", reason="OSError: no such file")
        made.put(measured, [{"plan": {"model.layers.0.mlp.up_proj": f"w{bits}g64"}}])
    return made


def publish(*arguments: str) -> int:
    return cli.dispatch(["publish", "demo", *PATIENCE, *arguments])


def of(record: Record, attempt: int = 1) -> str:
    return f"{record.run_id[:32]}-{attempt}"


def says(server: Server, store: Store) -> None:
    """Whether the server has each Record as it is, once, and the report."""
    wanted = {of(record): record for record in store.records()}
    found = server.finished()
    assert set(wanted) < set(found)
    for ident, record in wanted.items():
        run = found[ident]
        columns = {k: v for k, v in run["config"].items() if k != "_wandb"}
        assert columns == config(record)
        assert {k: run["summary"][k] for k in numbers(record)} == numbers(record)
        assert run["exitcode"] == (1 if record.status == "failed" else 0)
        assert (run["groupName"], run["jobType"]) == ("demo", "quality")
        assert run["displayName"] == record.point["label"]
    tables = [one for one in server.artifacts if one.get("committed")]
    assert {one["run"] for one in tables} == set(found)
    (report,) = [run for ident, run in found.items() if ident not in wanted]
    assert report["summary"]["page"]["_type"] == "html-file"


def test_each_run_says_what_its_record_says(server, store):
    assert publish() == cli.OK
    says(server, store)


def test_no_path_and_no_name_of_this_machine_is_sent(server, store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))  # where W&B would put tables
    told_of_the_machine(store, tmp_path)
    assert publish() == cli.OK
    assert len(server.finished()) == 4
    assert str(tmp_path).encode() not in b"\n".join(server.sent)
    about = {(run.get("host"), run.get("program")) for run in server.runs.values()}
    assert about == {(None, "bitsweep")}
    assert not [path for path in server.asked if "otel" in path], "W&B's reports of its own"


def test_a_record_that_changed_is_the_next_run_and_the_older_one_is_tagged(server, store, capsys):
    publish()
    record = store.records()[0]
    record.timings["total"] = {"wall_s": 1234.5}
    store.put(record, [])
    capsys.readouterr()
    assert publish() == cli.OK
    assert "2 of 4 runs published" in capsys.readouterr().out  # and the report is another one
    assert "superseded" in server.runs[of(record)]["tags"]
    assert "superseded" not in server.runs[of(record, 2)]["tags"]
    assert server.runs[of(record, 2)]["summary"]["wall_s/total"] == 1234.5


@pytest.mark.parametrize("when", ["UpsertBucket", "CreateArtifact", "file_stream"])
def test_a_server_that_falls_silent_costs_one_line_and_the_next_publish_adds_the_rest(
    server, store, capsys, when
):
    """As a run begins, as its table goes up, or at its end: after the first one is there."""
    begun: list[str] = []
    server.deaf = lambda what, said: bool(
        server.finished() and (begun or what == when) and not begun.append(what)
    )
    assert publish() == cli.FAILED
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1
    assert "wandb: 1 of 4 runs published; online" in told.out
    assert "3 are missing, the others stay; go on with: bitsweep publish demo" in told.out
    events = [json.loads(line) for line in (store.folder / "published.jsonl").open()]
    assert [event["event"] for event in events] == ["begun", "done", "begun"]
    server.deaf = lambda what, said: False
    first = dict(server.finished())
    from bitsweep.tracking import wandb as tracker

    tracker._state.fallen_back = False  # another process
    assert publish() == cli.OK
    assert "wandb: 3 of 4 runs published, 1 there before" in capsys.readouterr().out
    says(server, store)
    assert server.finished().items() >= first.items()


def test_what_was_written_offline_is_uploaded_by_wandb_sync_as_the_same_runs(
    server, store, monkeypatch
):
    monkeypatch.delenv("WANDB_API_KEY")
    assert publish() == cli.OK
    folders = sorted(Path(".bitsweep/wandb").glob("offline-run-*"))
    for folder in folders:  # what it uploads lies with the run
        for entry in (one for made in artifacts(folder) for one in made.manifest.contents):
            assert Path(entry.local_path).is_relative_to(folder.resolve())
    environment = {**os.environ, "WANDB_API_KEY": KEY}
    command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    says(server, store)
    shutil.rmtree(".bitsweep")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert publish() == cli.OK  # online: the same ids
    says(server, store)
