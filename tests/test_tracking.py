"""Trackers see finished Records, say the same of each, may fail at any time, and cost one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import records
import trackers
from offline import log_out

from bitsweep import tracking
from bitsweep.compose import compose, group_files
from bitsweep.config import job
from bitsweep.errors import UserError
from bitsweep.record import Record
from bitsweep.store import Store
from bitsweep.tracking.flat import (
    NAME_CAP,
    TEXT_CAP,
    WINDOWS,
    config,
    label,
    numbers,
    period,
    plain,
    safe,
)

RESULTS = Path(__file__).parents[1] / "results"
HOME = "/home/somebody"
SECRET = "5ec12e7" * 6
WEIRD = "<script>alert('x')</script>\n| `a` \\ é 漢字 🎉"
NAMES = sorted(set(group_files("tracker")) - {"none"})
EXISTING = group_files("tracker")


def measured() -> list[Record]:
    """A quality, a timing, one without numbers, one refused, one failed, and one of odd strings."""
    point = ("gptq", 4, 64, "uniform")
    rows = [
        records.record(*point, metrics=records.quality(*point)),
        records.record(*point, kind="timing", metrics=records.latency(4)),
        records.record("rtn", 2, kind="timing", metrics=records.latency(2)),
        records.record("rtn", 4, 48, status="refused", reason="group_size=48 does not divide 256"),
        records.record("rtn", 2, status="failed", reason=f"OSError: token={SECRET}"),
        records.record("hqq", 3, model=WEIRD, method_options="x" * 10_000, label=f"hqq {WEIRD}"),
    ]
    rows[1].point |= {"engine": "torch_int4", "threads": 2, "device": "laptop"}
    return rows


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log_out(monkeypatch, tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]:
        monkeypatch.delenv(name)


@pytest.fixture
def said() -> list[str]:
    return []


def stored(folder: Path, rows: list[Record]) -> Store:
    store = Store(folder / "results" / "demo")
    store.prepare()
    for record in rows:
        store.put(record, [])
    return store


def test_every_tracker_has_a_reader_here():
    assert sorted(trackers.KINDS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_tracker_has_the_same_columns_and_numbers_of_each_record(tmp_path, said, name):
    kind, rows = trackers.KINDS[name], measured()
    mirror = tracking.open([kind.make(tmp_path)], stored(tmp_path, rows), said.append)
    assert all(mirror.log(record) for record in rows)
    found = {run.ident: run for run in kind.read(tmp_path)}
    assert len(found) == len(rows)
    for record in rows:
        run = found[kind.ident(f"{record.run_id[:32]}-1")]
        columns = {k: kind.column(v) for k, v in config(record).items() if v is not None}
        values = {k: kind.number(v) for k, v in numbers(record).items() if v is not None}
        assert run.columns == columns
        assert run.numbers == values
        assert run.failed == (record.status == "failed")
        assert run.group == "demo"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_there_is_not_written_twice(tmp_path, said, name):
    kind, rows = trackers.KINDS[name], measured()[:2]
    store = stored(tmp_path, rows)
    for _ in range(2):
        mirror = tracking.open([kind.make(tmp_path)], store, said.append)
        assert all(mirror.log(record) for record in rows)
    assert len(kind.read(tmp_path)) == 2
    assert len(said) == 1, "where it is to be seen, once"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_machine_is_written(tmp_path, said, name, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    kind, record = trackers.KINDS[name], measured()[4]
    record.point |= {
        "model": f"{HOME}/models/llama",
        "method_options": f"text={HOME}/own.txt,url=https://user:{SECRET}@hub.example/x?t={SECRET}",
    }
    record.model["path"] = f"{HOME}/models/llama"
    record.provenance["command"] = f"HF_TOKEN={SECRET} bitsweep run model.path={HOME}/models/llama"
    tracking.open([kind.make(tmp_path)], stored(tmp_path, [record]), said.append).log(record)
    (run,) = kind.read(tmp_path)
    assert run.columns["model"] == "llama"
    assert run.columns["method_options"] == "text=own.txt,url=x"
    body = trackers.written(tmp_path)
    assert HOME.encode() not in body
    assert SECRET.encode() not in body


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("/home/me/models/llama", "llama"),
        ("/home/my name/my model", "my model"),
        ("C:\\Users\\me\\model", "model"),
        ("org/name", "org/name"),
        ("https://u:p@h/x?t=1", "x"),
        ("path=/home/me/x,bits=4", "path=x,bits=4"),
        ("w4g64 x28 / 3", "w4g64 x28 / 3"),
    ],
)
def test_a_path_or_url_is_cut_to_its_last_part(value, kept):
    assert plain(value) == kept


def test_names_of_numbers_do_not_nest():
    names = numbers(measured()[0])
    assert "ppl/in_domain_delta_lo" in names
    assert all(name == safe(name) and "." not in name for name in names)


def test_a_long_text_is_cut_and_a_label_is_one_line():
    odd = measured()[5]
    assert config(odd)["method_options"] == "x" * TEXT_CAP
    assert label(odd) == "hqq <script>alert('x')</script> | `a` \\ é 漢字 🎉"


def test_runs_of_a_model_that_differ_in_calibration_or_seed_have_names_that_differ():
    for experiment in ("calibration", "methods"):
        runs = [r for r in Store(RESULTS / experiment).records() if r.status == "ok"]
        names = [(run.point["model"], label(run)) for run in runs]
        assert len(runs) == len(set(names)) > 90
    assert ("reference", "awq w3g64 uniform calibration=other_domain windows=16 seed=2") in {
        (run.point["model"], label(run)) for run in Store(RESULTS / "calibration").records()
    }


def test_a_run_of_the_default_calibration_is_named_by_its_label_alone():
    assert compose([])["calibration"]["windows"] == WINDOWS
    runs = Store(RESULTS / "demo").records()
    assert any(run.calibration for run in runs)
    assert [label(run) for run in runs] == [run.point["label"] for run in runs]


def test_a_window_is_said_where_it_is_not_that_of_the_data():
    run = next(r for r in Store(RESULTS / "demo").records() if r.calibration and r.kind != "timing")
    run.calibration = {**run.calibration, "window": 64, "choice": "longest"}
    assert label(run) == f"{run.point['label']} calibration=reference window=64 choice=longest"


def test_what_tells_a_run_apart_is_not_cut_off():
    run = records.record("gptq", 4, label="x" * 300, seed=7)
    behind = " calibration=reference seed=7"
    assert label(run) == "x" * (NAME_CAP - len(behind)) + behind


class Down:
    """A tracker whose server is down."""

    name = "down"

    def __init__(self) -> None:
        self.calls = 0

    def destination(self) -> str:
        return "server"

    def has(self, ident: str) -> bool:
        return True

    def hint(self) -> str:
        return ""

    def log(self, record: Record, entry: tracking.Entry, say: tracking.Say) -> None:
        self.calls += 1
        raise TimeoutError("no answer\nafter 15 s")

    summarize = log


DOWN = (
    "tracker=down: TimeoutError: no answer; the Records are safe on disk, tracker=none turns it off"
)


def test_a_tracker_that_raises_costs_one_line_and_is_left_alone(tmp_path, said):
    tracker = Down()
    mirror = tracking.open([tracker], Store(tmp_path), said.append)
    assert [mirror.log(record) for record in measured()] == [False] * 6
    assert said == [DOWN]
    assert tracker.calls == tracking.GIVE_UP_AFTER


def test_of_several_trackers_one_that_is_down_stops_no_other(tmp_path, said):
    rows, up = measured()[:2], trackers.tensorboard(tmp_path)
    mirror = tracking.open([Down(), up], stored(tmp_path, rows), said.append)
    assert [mirror.log(record) for record in rows] == [False, False]
    assert said == [DOWN, f"TensorBoard: tensorboard --logdir {tmp_path}/tensorboard"]
    assert len(trackers.from_tensorboard(tmp_path)) == 2


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["wandb"]),
        (["tracker=none"], ["none"]),
        (["tracker=[]"], []),
        (["tracker=[wandb,tensorboard]"], ["wandb", "tensorboard"]),
        (["tracker=[tensorboard,wandb]", "tracker.wandb=null"], ["tensorboard"]),
    ],
)
def test_tracker_takes_one_choice_or_a_list(overrides, names):
    assert [tracker.name for tracker in job(compose(overrides)).trackers] == names


def test_an_option_stands_below_its_tracker():
    (tracker,) = job(compose(["tracker=[tensorboard]", "tracker.tensorboard.dir=mine"])).trackers
    assert tracker == trackers.Tensorboard(dir="mine")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["tracker=[wandb,tensorbord]"], "tracker=tensorbord: no such tracker; did you mean tenso"),
        (
            ["tracker.project=x"],
            "tracker.project=x: no such key; did you mean tracker.wandb.project?",
        ),
        (["tracker=mlflow", "tracker.mlflow.uri=x"], "tracker.mlflow.uri=x: no such key"),
        (["+tracker._target_=bitsweep.tracking.none.NoTracker"], "tracker._target_: stands below"),
    ],
)
def test_a_mistake_in_a_tracker_is_one_line(overrides, line):
    with pytest.raises(UserError) as error:
        job(compose(overrides))
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("name", ["mlflow", "tensorboard"])
def test_without_its_package_one_line_says_what_to_install(monkeypatch, name):
    overrides = compose([f"tracker={name}"])
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    paths = [path for path in sys.path if not Path(path, name).is_dir()]
    monkeypatch.setattr(sys, "path", paths)
    with pytest.raises(UserError) as error:
        job(overrides)
    line = f"{name} is not installed; pip install 'bitsweep[{name}]'"
    assert str(error.value) == f"tracker.{name}: {line}"


def test_a_package_is_imported_when_it_is_needed(tmp_path):
    chosen = ",".join(EXISTING)
    code = f"""
from bitsweep.compose import compose, plain_config
from bitsweep.config import trackers
values, _ = plain_config(compose(["tracker=[{chosen}]"]))
print(*[tracker.name for tracker in trackers(values)])
import sys
print(*sorted({{"wandb", "mlflow", "sqlalchemy", "tensorboard", "torch"}} & set(sys.modules)))
"""
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert made.stdout.splitlines() == [" ".join(EXISTING), ""]
    assert list(tmp_path.iterdir()) == []


def test_the_numbers_are_the_records_with_the_ends_of_their_intervals():
    made = records.record("rtn", 4, metrics=[records.ppl(2.7, 2.6, 2.9)])
    found, base = numbers(made), records.FULL_PRECISION_PPL["in_domain"]
    assert found["ppl/in_domain"] == 2.7
    ends = [found[f"ppl/in_domain_delta{end}"] for end in ("", "_lo", "_hi")]
    assert ends == [2.7 / base, 2.6 / base, 2.9 / base]
    assert found["wall_s/quantize"] == made.timings["quantize"]["wall_s"]


def test_the_columns_are_the_records_own_and_a_times_threads_those_it_was_taken_with():
    signature = "latency|engine:torch_int4|prompt:128|batch:1|threads:1|v2"
    metric = records.Metric("decode_ms", 1.0, "ms", "lower", signature)
    made = records.record("rtn", 4, kind="timing", metrics=[metric])
    made.provenance["dirty"] = True
    found = config(made)
    assert (found["point_id"], found["run_id"]) == (made.point_id, made.run_id)
    assert (found["engine"], found["threads"]) == ("torch_int4", 1)
    assert found["dirty"] is True


def test_a_run_ends_as_much_after_its_begin_as_it_took():
    made = records.record("rtn", 4)
    made.timings["total"] = {"wall_s": 90.0}
    begun, done = period(made)
    assert done - begun == 90.0
