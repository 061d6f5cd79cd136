"""``bitsweep publish``: the Records become runs, each once, whatever happens on the way."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import records
import trackers
from desk import QUICK, lay
from offline import artifacts, log_out, runs, told_of_the_machine

from bitsweep import cli
from bitsweep.record import Record
from bitsweep.store import Store
from bitsweep.tracking.flat import config, numbers
from bitsweep.tracking.private import without_paths

REPO = Path(__file__).parents[1]
KEPT = 5


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log_out(monkeypatch, tmp_path)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Sizes alone, as results/demo of a working directory: their report takes no time."""
    monkeypatch.chdir(tmp_path)
    made = Store(tmp_path / "results" / "demo")
    made.prepare()
    for bits in range(2, 2 + KEPT):
        measured = records.record("rtn", bits, metrics=[records.number("file_mib", 1.5 * bits)])
        made.put(measured, [{"plan": {"model.layers.0.mlp.up_proj": f"w{bits}g64"}}])
    return made


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The first Records of the demo, their details with them."""
    monkeypatch.chdir(tmp_path)
    made = Store(tmp_path / "results" / "demo")
    made.prepare()
    for path in sorted((REPO / "results" / "demo" / "records").glob("*.json"))[:KEPT]:
        shutil.copy(path, made.folder / "records")
        details = REPO / "results" / "demo" / "details" / f"{path.stem}.jsonl.gz"
        if details.exists():
            shutil.copy(details, made.folder / "details")
    return made


def publish(*arguments: str) -> int:
    return cli.dispatch(["publish", "demo", *arguments])


def folders() -> set[str]:
    return {path.name for path in Path(".bitsweep/wandb").glob("offline-run-*")}


def of(record: Record, attempt: int = 1) -> str:
    return f"{record.run_id[:32]}-{attempt}"


def test_each_record_is_one_run_that_says_what_the_record_says(real, capsys):
    assert publish() == cli.OK
    found = {run["id"]: run for run in runs(Path(".bitsweep"))}
    (report,) = [found.pop(ident) for ident in list(found) if ident.startswith("report-")]
    assert set(found) == {of(record) for record in real.records()}
    for record in real.records():
        run = found[of(record)]
        assert {k: v for k, v in run["config"].items() if k != "_wandb"} == config(record)
        assert {k: run["summary"][k] for k in numbers(record)} == numbers(record)
        assert run["job_type"] == record.kind
        assert run["exit_code"] == 0
    assert report["job_type"] == "report"
    assert report["logged"]["page/_type"] == "html-file"
    said = capsys.readouterr().out
    assert (
        f"wandb: {KEPT + 1} of {KEPT + 1} runs published; offline .bitsweep/wandb, project " in said
    )
    assert "wandb sync .bitsweep/wandb/offline-run-*" in said
    _the_table_of_layers_says_what_each_became(real)


def _the_table_of_layers_says_what_each_became(store: Store) -> None:
    record = next(r for r in store.records() if r.kind == "quality" and r.point["bits"] == 8)
    (file,) = Path(".bitsweep/wandb").glob(f"*-{of(record)}/files/media/table/*.json")
    table = json.loads(file.read_text())
    plan = next(row["plan"] for row in store.details(record.run_id) if "plan" in row)
    assert table["columns"][:4] == ["layer", "became", "bits", "format"]
    assert {row[0]: row[1] for row in table["data"]} == plan
    down = next(row for row in table["data"] if row[0] == "model.layers.0.mlp.down_proj")
    assert down[1:] == [plan[down[0]], 8, "int"]
    head = next(row for row in table["data"] if row[0] == "lm_head")
    assert head[1:] == ["torch.float32", 32, "kept"]


def test_repeated_it_writes_nothing(store, capsys):
    publish()
    before = folders()
    capsys.readouterr()
    assert publish() == cli.OK
    assert f"wandb: all {KEPT + 1} runs are there already; offline" in capsys.readouterr().out
    assert folders() == before


def test_a_record_that_changed_gets_the_next_id_and_its_older_run_is_set_aside(store):
    publish()
    before = folders()
    record = store.records()[0]
    record.timings["total"] = {"wall_s": 1234.5}
    store.put(record, [])
    assert publish() == cli.OK
    new = {name for name in folders() - before if "report-" not in name}
    assert {name.split("-", 3)[-1] for name in new} == {of(record, attempt=2)}
    gone = {name for name in before - folders() if "report-" not in name}
    assert gone == {path.name for path in Path(".bitsweep/wandb/superseded").iterdir()}
    assert {name.split("-", 3)[-1] for name in gone} == {of(record)}


@pytest.mark.parametrize("name", sorted(trackers.KINDS))
def test_killed_anywhere_and_repeated_it_gives_each_run_once_and_whole(store, name):
    kind, place = trackers.KINDS[name], Path(".bitsweep")
    place.mkdir()
    kind.make(place)
    command = [sys.executable, "-m", "bitsweep", "publish", "demo", f"tracker={name}"]
    ledger = store.folder / "published.jsonl"
    for lines in (1, 4):  # within the first run, after the second
        kill_at(command, ledger, lines)
    assert publish(f"tracker={name}") == cli.OK
    found = kind.read(place)
    wanted = {kind.ident(of(record)): record for record in store.records()}
    assert len(found) == len(wanted) + 1  # the report
    by_id = {run.ident: run for run in found if run.ident in wanted}
    assert set(by_id) == set(wanted)
    for ident, record in wanted.items():
        values = {k: kind.number(v) for k, v in numbers(record).items() if v is not None}
        assert by_id[ident].numbers == values


def kill_at(command: list[str], ledger: Path, lines: int) -> None:
    """Run ``command`` until its ledger has so many lines; then kill it and all that it started."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    deadline = time.monotonic() + 60
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < lines:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_runs_of_another_project_in_the_same_folder_stay(store):
    publish("tracker.project=one")
    publish("tracker.project=two")
    found = [(run["project"], run["id"]) for run in runs(Path(".bitsweep"))]
    ids = {ident for _, ident in found}
    assert len(ids) == KEPT + 1
    assert sorted(found) == sorted((project, i) for project in ("one", "two") for i in ids)
    before = folders()
    publish("tracker.project=one")
    assert folders() == before


def test_runs_that_were_removed_are_written_again(store):
    publish()
    shutil.rmtree(".bitsweep")
    publish()
    assert len(folders()) == KEPT + 1


def test_a_dry_run_says_what_is_missing_and_writes_nothing(store, capsys):
    before = sorted(store.folder.rglob("*"))
    assert publish("--dry-run") == cli.OK
    said = capsys.readouterr().out
    assert f"wandb: {KEPT + 1} of {KEPT + 1} runs to publish" in said
    assert all(f"new      {of(record)}" in said for record in store.records())
    assert sorted(store.folder.rglob("*")) == before
    assert not Path(".bitsweep").exists()
    publish()
    capsys.readouterr()
    publish("--dry-run")
    assert f"wandb: 0 of {KEPT + 1} runs to publish" in capsys.readouterr().out
    publish("--dry-run", "--again")
    said = capsys.readouterr().out
    assert all(f"again    {of(record, attempt=2)}" in said for record in store.records())


def test_the_view_is_kept_with_a_command_that_would_apply_it(store, capsys):
    pytest.importorskip("wandb_workspaces")
    assert publish("tracker.mode=offline", "tracker.project=mine", "--workspace") == cli.OK
    (line,) = [li for li in capsys.readouterr().out.splitlines() if "to apply it" in li]
    assert line.endswith("bitsweep publish demo tracker.project=mine --workspace")
    assert (store.folder / "workspace.json").is_file()


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and no settings of an earlier test's: W&B reads the environment once a process."""
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()


def test_a_server_that_is_lost_costs_one_line_and_says_how_to_go_on(
    store, capsys, monkeypatch, login
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert publish("tracker.init_timeout_s=1") == cli.FAILED
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1
    assert "connection refused" in told.err
    assert (
        f"{KEPT + 1} are missing, the others stay; go on with: "
        "bitsweep publish demo tracker.init_timeout_s=1"
    ) in told.out
    monkeypatch.delenv("WANDB_API_KEY")
    assert publish() == cli.OK
    assert {name.split("-", 3)[-1] for name in folders()} >= {of(r) for r in store.records()}


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_is_not_waited_for(store, monkeypatch, silent, capsys, login):
    monkeypatch.setenv("WANDB_BASE_URL", silent)
    started = time.monotonic()
    assert publish("tracker.init_timeout_s=1") == cli.FAILED
    assert time.monotonic() - started < 15
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tracker.mode=online"], "has no login here; type `wandb login` first"),
        (["tracker.projct=x"], "did you mean tracker.wandb.project"),
        (["project=mine"], "as tracker.project=mine"),
        (["tracker=wnb"], "did you mean wandb?"),
        (["tracker.dir=${oc.env:NIX}"], "dir: Environment variable 'NIX' not found"),
        (["tracker=none"], "publishes nothing; use tracker="),
        (["tracker.mode=ofline"], "did you mean offline"),
        (["--artifact", "results"], "no bitsweep.json there or one below"),
        (["bits=3"], "takes tracker="),
    ],
)
def test_a_mistake_is_one_line_that_says_what_would_work(store, capsys, arguments, said):
    assert publish(*arguments) == cli.MISTAKE
    line = capsys.readouterr().err.strip()
    assert said in line
    assert "\n" not in line
    assert not Path(".bitsweep").exists()


def test_an_unknown_name_is_told_with_those_that_are_there(store, capsys):
    assert cli.dispatch(["publish", "dmo"]) == cli.MISTAKE
    assert "did you mean demo?" in capsys.readouterr().err
    assert cli.dispatch(["publish"]) == cli.MISTAKE
    assert "takes the NAME of a sweep first; there are demo" in capsys.readouterr().err


def test_exported_checkpoints_are_referred_to_when_asked(tmp_path, monkeypatch):
    """A sweep, two exports of one of its points, and what its offline run then says of them."""
    monkeypatch.chdir(tmp_path)
    lay(tmp_path)
    swept = ["model=reference", "method=rtn", "bits=4,8", "group_size=64", "experiment=demo"]
    assert cli.dispatch(["run", "-m", *QUICK, *swept]) == cli.OK
    store = Store(tmp_path / "results" / "demo")
    record, other = sorted(store.records(), key=lambda one: one.point["bits"])
    for name in ("gptq", "hf-dense"):
        assert cli.dispatch(["export", record.run_id, "--to", name]) == cli.OK
    assert publish() == cli.OK
    first = folders()
    assert publish("--artifact", "exports") == cli.OK
    assert len(folders()) == len(first) == 3  # the same ids; the one that changed is written again
    found = {}
    for of_run in (record, other):
        (folder,) = Path(".bitsweep/wandb").glob(f"offline-run-*-{of(of_run)}")
        logged = [one for one in artifacts(folder) if one.type == "quantized-model"]
        found[of_run.run_id] = {one.name: one for one in logged}
    assert not found[other.run_id]
    short = f"reference-{record.run_id[:12]}"
    assert set(found[record.run_id]) == {f"{short}-gptq", f"{short}-hf-dense"}
    for name, artifact in found[record.run_id].items():
        (export,) = Path("exports").glob(f"*-{name.removeprefix(short + '-')}")
        metadata = json.loads(artifact.metadata)
        assert metadata["run_id"] == record.run_id
        assert metadata["export_format"] == name.removeprefix(short + "-")
        files = {path.name: path for path in export.iterdir()}
        listed = {one.path: (one.ref, one.size, one.digest) for one in artifact.manifest.contents}
        assert listed == {
            name: (path.resolve().as_uri(), path.stat().st_size, md5(path))
            for name, path in files.items()
        }
        assert {"model.safetensors", "bitsweep.json"} <= set(listed)
    rewritten = folders()
    publish()  # asks for no artifact: the run that carries one is good
    assert folders() == rewritten


def md5(path: Path) -> str:
    """As W&B writes it."""
    return base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()


def test_no_path_that_a_record_holds_is_in_what_is_kept_for_upload(store, tmp_path):
    """Of W&B's own there is one: where an offline run's tables lie, beside it."""
    hidden = told_of_the_machine(store, tmp_path)
    publish()
    assert len(folders()) == KEPT + 1
    for path in Path(".bitsweep/wandb").rglob("offline-run-*/**/*"):
        if path.is_file() and path.suffix != ".log":
            assert hidden.encode() not in path.read_bytes(), path


def test_a_path_is_cut_in_every_way_that_a_page_writes_it():
    path = "/home/me/a&b"
    record = records.record("rtn", 4, reason=f"OSError: {path}: gone")
    page = f'<a title="/home/me/a&amp;b">{{"x": "{path}"}}</a> var division = a /home / me;'
    shown = '<a title="a&amp;b">{"x": "a&b"}</a> var division = a /home / me;'
    assert without_paths(page, [record]) == shown
