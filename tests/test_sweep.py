"""A multirun, really launched by Hydra: what runs, what does not, and what is left behind."""

from __future__ import annotations

import json
import os
import pickle
import shlex
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch
from desk import Desk, lay
from omegaconf import DictConfig

import bitsweep
from bitsweep import cli, compose, config
from bitsweep.errors import UserError
from bitsweep.methods.rtn import RTN
from bitsweep.survey import unchosen_text
from bitsweep.sweep import Outcome, Session, launch

GRID = "grids:\n  - {method: [rtn, hqq], bits: [3, 4], symmetric: [true, false]}\n"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return lay(tmp_path)


def swept(desk: Desk, *overrides: str) -> Session:
    return launch(desk.overrides(*overrides), Session())


def fates(session: Session) -> Counter[str]:
    return Counter(candidate.fate for candidate in session.candidates)


def test_valid_points_run_and_impossible_ones_become_rows(desk: Desk) -> None:
    session = swept(desk, "bits=3,4", "group_size=64,48", "experiment=mixed")
    assert fates(session) == {"run": 2, "refused": 2}
    records = [json.loads(path.read_text()) for path in desk.records("mixed")]
    assert Counter(record["status"] for record in records) == {"ok": 2, "refused": 2}
    reasons = {record["reason"] for record in records if record["status"] == "refused"}
    assert all("group_size=48 does not divide" in reason for reason in reasons)


def test_points_that_differ_in_what_a_method_ignores_are_one(desk: Desk) -> None:
    session = swept(desk, "method=full_precision", "bits=3,4")
    assert fates(session) == {"run": 1, "merged": 1}
    reason = next(c.reason for c in session.candidates if c.fate == "merged")
    assert reason == "same point as full_precision: full_precision ignores bits"


def test_a_point_listed_twice_runs_once(desk: Desk) -> None:
    desk.experiment("twice", "grids:\n  - {bits: [3, 4]}\n  - {bits: 4}\n")
    session = swept(desk, *compose.experiment_overrides("twice"))
    assert fates(session) == {"run": 2, "merged": 1}
    assert session.candidates[-1].reason.endswith("listed twice")


def test_a_second_sweep_launches_nothing(desk: Desk) -> None:
    swept(desk, "bits=3,4")
    before = [path.read_bytes() for path in desk.records("adhoc")]
    again = swept(desk, "bits=3,4")
    assert fates(again) == {"done": 2}
    assert again.outcomes == []
    assert [path.read_bytes() for path in desk.records("adhoc")] == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data=reference", "probes=quick"], True),
        (["data=reference", "probes=size"], False),
        (["data=reference", "probes=size", "method=gptq"], True),
        (["data=text", "probes=quick"], False),
        (["data=reference", "probes=quick", "model=reference"], False),
    ],
)
def test_a_model_of_ones_own_on_the_embedded_models_text_is_told(
    desk: Desk, words: list[str], told: bool
) -> None:
    given = ["model.path=llama", "data.path=measured.txt", "data.calibration_path=calibrating.txt"]
    given = given if "data=text" in words else given[: "model=reference" not in words]
    point = config.job(compose.compose([*given, *words]), "bitsweep run").point
    line = unchosen_text([point])
    assert (line is not None) == told
    assert line is None or line.startswith("note: llama on data=reference")


class Elsewhere(Session):
    """Runs each point in a copy of itself, as a launcher's processes do, and hears nothing."""

    def __call__(self, task_config: DictConfig) -> Outcome:
        return Session.__call__(pickle.loads(pickle.dumps(self)), task_config)


def test_a_point_in_another_process_knows_its_number_and_is_counted_when_that_is_stopped(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    session = launch(desk.overrides("bits=2,3,4", "group_size=64,48"), Elsewhere())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.partition(" ")[0] for line in lines] == ["[1/3]", "[2/3]", "[3/3]"]
    assert not any("left" in line for line in lines)
    session.outcomes.clear()
    assert session.finished == 3


class Weighed(Elsewhere):
    """Knows how many bytes travel with its first point."""

    sent = 0

    def __call__(self, task_config: DictConfig) -> Outcome:
        self.sent = self.sent or len(pickle.dumps(self))
        return super().__call__(task_config)


def test_what_travels_with_a_point_does_not_grow_with_the_number_of_points(desk: Desk) -> None:
    few, many = Weighed(), Weighed()
    launch(desk.overrides("bits=3", "experiment=few0"), few)
    launch(desk.overrides("bits=2,3,4", "group_size=64,32", "experiment=many"), many)
    assert few.sent == many.sent


class Stopped(Session):
    """Is stopped when its first point is on its way."""

    def __call__(self, task_config: DictConfig) -> Outcome:
        pickle.dumps(self)
        raise KeyboardInterrupt


def test_nothing_of_a_launch_stays_in_the_cache(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSWEEP_CACHE", str(desk.folder / "cache"))
    with pytest.raises(KeyboardInterrupt):
        launch(desk.overrides("bits=2,3"), Stopped())
    assert (desk.folder / "cache").is_dir()
    assert not list((desk.folder / "cache").glob(".launch-*"))


def test_points_of_one_label_are_told_apart_in_the_lines_of_a_sweep(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(desk.overrides("method=gptq", "calibration.windows=2,3"), Elsewhere())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.partition("  ppl")[0] for line in lines] == [
        "[1/2] gptq w4g64 uniform calibration.windows=2",
        "[2/2] gptq w4g64 uniform calibration.windows=3",
    ]


def test_the_lines_of_a_sweep_name_the_model_where_there_are_several(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.llama(desk.folder / "twin", num_hidden_layers=1)
    swept(desk, "model.path=llama,twin", "bits=3")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.partition("  ppl")[0] for line in lines] == [
        "[1/2] llama rtn w3g64 uniform",
        "[2/2] twin rtn w3g64 uniform",
    ]


def test_force_measures_again(desk: Desk) -> None:
    swept(desk, "bits=3")
    assert fates(swept(desk, "bits=3", "force=true")) == {"run": 1}


def test_a_failing_point_is_a_row_and_the_others_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = RTN.__call__

    def broken(self: RTN, model, plan, calibration):  # type: ignore[no-untyped-def]
        if any(spec.weight.bits == 3 for spec in plan.layers.values()):
            raise RuntimeError("no memory")
        return really(self, model, plan, calibration)

    monkeypatch.setattr(RTN, "__call__", broken)
    arguments = ("-m", "bits=3,4", "experiment=broken")
    assert cli.dispatch(["run", *desk.overrides(*arguments)]) == cli.FAILED
    records = [json.loads(path.read_text()) for path in desk.records("broken")]
    assert {r["point"]["bits"]: r["status"] for r in records} == {3: "failed", 4: "ok"}
    assert next(r["reason"] for r in records if r["reason"]) == "RuntimeError: no memory"

    monkeypatch.undo()  # mended: the relaunch does the failed one alone
    os.chdir(desk.folder)
    session = swept(desk, "bits=3,4", "experiment=broken")
    assert fates(session) == {"run": 1, "done": 1}
    assert not session.failed


def test_a_mistake_in_the_last_point_stops_the_first_from_starting(desk: Desk) -> None:
    arguments = desk.overrides("-m", "experiment=never", "method=rtn,hqq,gptqq")
    assert cli.dispatch(["run", *arguments]) == cli.MISTAKE
    assert desk.records("never") == []


def test_a_rule_without_a_match_stops_a_sweep_before_it_starts(desk: Desk) -> None:
    rules = "policy.rules=[{name: nothing.like.this}]"
    arguments = desk.overrides("-m", "experiment=never", "bits=3,4", rules)
    assert cli.dispatch(["run", *arguments]) == cli.MISTAKE
    assert desk.records("never") == []


def test_calibrating_on_the_measured_text_is_refused_whichever_step_calibrates(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    same, grid = "data.calibration_path=measured.txt", "transforms=[],[smooth]"
    arguments = desk.overrides("-m", "experiment=never", same, grid)
    assert cli.dispatch(["run", *arguments]) == cli.MISTAKE
    assert "this is the evaluation text" in capsys.readouterr().err
    assert desk.records("never") == []


def test_the_threads_of_one_point_are_not_those_of_the_next(desk: Desk) -> None:
    before = torch.get_num_threads()
    session = swept(desk, "bits=3", "threads=5", "experiment=five")
    (record,) = session.outcomes[0].records
    assert record.provenance["threads"] == 5
    assert torch.get_num_threads() == before


def test_nothing_but_results_is_left_in_the_working_directory(desk: Desk) -> None:
    before = {path.name for path in desk.folder.iterdir()}
    swept(desk, "bits=3,4")
    assert {path.name for path in desk.folder.iterdir()} - before == {"results"}


def test_a_point_alone_equals_the_same_point_in_a_sweep(desk: Desk) -> None:
    swept(desk, "bits=3,4", "experiment=together")
    bitsweep.run(*desk.overrides("bits=3", "experiment=alone"))
    (alone,) = (json.loads(path.read_text()) for path in desk.records("alone"))
    together = json.loads(
        (desk.folder / f"results/together/records/{alone['run_id']}.json").read_text()
    )
    for record in (alone, together):
        for key in ("provenance", "timings", "experiment"):
            del record[key]
    assert alone == together


def test_the_recorded_command_makes_the_point_again(desk: Desk) -> None:
    desk.experiment("one", "grids:\n  - {bits: [3]}\n")
    session = swept(desk, *compose.experiment_overrides("one"))
    (record,) = session.outcomes[0].records
    command = record.provenance["command"].split()
    assert command[:2] == ["bitsweep", "run"]
    (again,) = bitsweep.run(*command[2:])
    assert again.run_id == record.run_id


def test_a_folder_of_ones_own_groups_is_a_part_of_the_recorded_command(desk: Desk) -> None:
    own = desk.folder / "conf" / "policy"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("rules:\n  - {role: linear}\n  - {role: ffn, bits: 8}\n")
    launch(desk.overrides("bits=3,4", "policy=mine"), Session(), "conf")
    record = json.loads(desk.records("adhoc")[0].read_text())
    words = shlex.split(record["provenance"]["command"])
    assert words[-2:] == ["--config-dir", "conf"]
    assert cli.dispatch([*words[1:], "experiment=again"]) == cli.OK
    (again,) = desk.records("again")
    assert again.name in {path.name for path in desk.records("adhoc")}
    assert cli.dispatch(["export", record["run_id"], "--to", "hf-dense"]) == cli.OK


def test_run_from_python_returns_records_every_time(desk: Desk) -> None:
    first = bitsweep.run(*desk.overrides("bits=4"))
    second = bitsweep.run(*desk.overrides("bits=4"))
    assert [record.run_id for record in first] == [record.run_id for record in second]
    assert first[0].metrics["ppl/text"].value is not None


def test_the_tracker_sees_new_records_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsweep.tracking.none import NoTracker

    seen: list[str] = []
    monkeypatch.setattr(NoTracker, "destination", lambda self: "here")
    monkeypatch.setattr(NoTracker, "log", lambda self, record, *_: seen.append(record.run_id))
    swept(desk, "bits=3")
    swept(desk, "bits=3,4")
    assert len(seen) == len(set(seen)) == 2


def test_a_tracker_that_fails_costs_no_point(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsweep.tracking.none import NoTracker

    def unreachable(self: NoTracker, *_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(NoTracker, "destination", lambda self: "there")
    monkeypatch.setattr(NoTracker, "log", unreachable)
    session = swept(desk, "bits=3,4")
    assert not session.failed
    assert len(desk.records("adhoc")) == 2


def test_a_grid_that_chooses_a_number_for_a_group_is_a_mistake(desk: Desk) -> None:
    desk.experiment("numbers", "grids:\n  - {method: [3, 4]}\n")
    with pytest.raises(UserError, match=r"method=3: takes one of .*rtn"):
        swept(desk, *compose.experiment_overrides("numbers"))


def test_a_sweep_over_folders_is_a_mistake(desk: Desk) -> None:
    with pytest.raises(UserError, match="go to one folder, not to results/one, results/two"):
        swept(desk, "experiment=one,two")
    assert not (desk.folder / "results").exists()
