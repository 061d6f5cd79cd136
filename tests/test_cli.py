"""The verbs, their exit codes, and how fast the door opens."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from desk import Desk, lay

from bitsweep import cli
from bitsweep.axes import AXES, GROUPS
from bitsweep.commands import look
from bitsweep.commands.look import LISTS
from bitsweep.record import Record
from bitsweep.store import Store


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return lay(tmp_path)


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m bitsweep`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bitsweep", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["transforms=[rotate]"],
        ["transforms=[rotate,prune]", "transforms.prune.score=magnitude"],
        ["transforms=[low_rank]", "transforms.low_rank.activation_aware=false"],
        ["recover=[low_rank]", "recover.low_rank.weighting=plain"],
        ["method=hqq", "input.bits=8"],
    ],
    ids=" ".join,
)
def test_a_point_that_looks_at_no_text_needs_none_to_calibrate_on(desk, words):
    words = ["method=rtn", "bits=4", "group_size=-1", *words]
    assert desk("run", *words, "data.calibration_path=null") == cli.OK


@pytest.mark.parametrize("verb", ["", *cli.VERBS])
def test_help_shows_without_torch_in_under_a_second_of_work(verb: str) -> None:
    code = (
        "import sys, time; from bitsweep import cli; "
        f"code = cli.dispatch({[verb, '--help'] if verb else ['--help']!r}); "
        "heavy = {'torch', 'transformers', 'wandb', 'pandas', 'lm_eval'} & set(sys.modules); "
        "assert not heavy, heavy; assert time.process_time() < 1, time.process_time(); "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout or f"bitsweep {verb}" in done.stdout


def test_help_shows_every_axis_with_its_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["--help"]) == cli.OK
    page = capsys.readouterr().out
    for key in (*GROUPS, *AXES):
        assert f"\n  {key}=" in page
    for choice in ("gptq", "by_role", "power_of_two", "per_channel", "torch_int4", "wandb"):
        assert choice in page


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from bitsweep import __version__

    assert cli.dispatch(["--version"]) == cli.OK
    assert capsys.readouterr().out == f"bitsweep {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swep", "demo"], "swep: no such verb; did you mean sweep"),
        (["-m", "bits=3,4"], "-m: a verb comes first; write bitsweep run -m bits=3,4"),
        (["bits=3"], "bits=3: a verb comes first; write bitsweep run bits=3"),
        (["run", "data=text", "data.path=no.txt"], "bitsweep: data.path=no.txt: no such file"),
        (
            ["run", "calibration=text", "calibration.source.path=no.txt", "method=gptq"],
            "bitsweep: calibration.source.path=no.txt: no such file",
        ),
        (["run", "bitz=4"], "bitz=4: no such key; did you mean bits?"),
        (["run", "bits=99"], "bits=99: takes a number"),
        (["run", "method=gptqq"], "did you mean gptq"),
        (["run", "--nonsense"], "bitsweep: run: unrecognized arguments: --nonsense"),
        (["run", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["run", "grids=[{bits: [3]}]"], "several points are a sweep; use bitsweep run -m"),
        (["sweep"], "sweep: takes the NAME of an experiment first; there are"),
        (["sweep", "bits=3"], "sweep: takes the NAME of an experiment first"),
        (["sweep", "deno"], "deno: no such experiment; did you mean demo"),
        (["list", "method"], "list method: takes one of methods"),
        (["show", "abc"], "show abc: give at least 4 digits"),
        (["show", "abcd"], "show abcd: no such Record below results"),
        (["report", "nothing"], "report nothing: no Records in results/nothing"),
        (["report", "x", "results_dir=y"], "results_dir=y: report has no such key; write --resul"),
        (["-sc"], "-sc: takes install=bash"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.dispatch(arguments) == cli.MISTAKE
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_refused_point_by_itself_is_one_line_and_leaves_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert desk("run", "group_size=48", "experiment=none") == cli.MISTAKE
    said = capsys.readouterr().err
    assert "group_size=48 does not divide in_features=128" in said
    assert said.count("\n") == 1
    assert not (desk.folder / "results" / "none").exists()


def test_what_shows_only_with_the_weights_at_hand_is_said_once(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.dispatch(["run", *desk.overrides("data.window=100000")]) == cli.MISTAKE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("bitsweep: data.window=100000: ")
    assert said.err.count("\n") == 1


def test_results_that_can_not_be_written_are_found_first(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk.folder / "file").touch()
    assert desk("run", "results_dir=file") == cli.MISTAKE
    assert "results_dir=file: can not write there" in capsys.readouterr().err


def test_hydra_full_error_shows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsweep.errors import UserError

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError):
        cli.dispatch(["run", "bitz=4"])


def test_one_point_says_its_numbers_and_what_to_type_next(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert desk("run", "bits=3") == cli.OK
    said = capsys.readouterr().out
    assert "[1/1] rtn w3g64 uniform  ppl " in said
    (record,) = desk.records("adhoc")
    assert f"bitsweep show {record.stem[:12]}" in said

    assert desk("show", record.stem[:6]) == cli.OK
    shown = capsys.readouterr().out
    assert record.stem in shown
    assert "model.layers.0.self_attn.q_proj" in shown
    assert "ppl/text" in shown

    assert desk("run", "bits=3") == cli.OK
    assert "measured before" in capsys.readouterr().out


def test_a_sweep_ends_in_a_report_and_plan_runs_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.experiment(
        "asked", "grids:\n  - {method: full_precision}\n  - {bits: [3, 4], group_size: [64, 48]}\n"
    )
    assert desk("plan", "asked") == cli.OK
    planned = capsys.readouterr().out
    assert "5 points: 3 to run, 2 refused; about" in planned
    assert "rough" in planned
    assert "does not divide" in planned
    assert not (desk.folder / "results").exists()

    assert desk("sweep", "asked") == cli.OK
    said = capsys.readouterr().out
    assert "5 points: 3 to run, 2 refused" in said
    assert "[3/3] rtn w4g64 uniform" in said
    table = (desk.folder / "results/asked/tables/main.md").read_text(encoding="utf-8")
    assert "full_precision" in table or "full precision" in table
    assert "Is asked asked?" in (desk.folder / "results/asked/README.md").read_text()

    assert desk("plan", "asked", "force=true") == cli.OK
    assert "median of earlier Records" in capsys.readouterr().out
    assert desk("plan", "asked") == cli.OK
    assert "5 points: 0 to run, 3 done, 2 refused\n" in capsys.readouterr().out
    assert desk("report", "asked") == cli.OK


def test_plan_tells_points_of_one_label_apart_by_what_was_typed(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert desk("plan", "method=gptq,rtn", "calibration.windows=2,3", "bits=4") == cli.OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line.partition(" about")[0] for line in lines[:3]] == [
        "1 run llama gptq w4g64 uniform calibration.windows=2",
        "2 run llama rtn w4g64 uniform calibration.windows=2",
        "3 run llama gptq w4g64 uniform calibration.windows=3",
    ]
    assert lines[3].endswith("same point as rtn w4g64 uniform: rtn ignores calibration")


def test_a_sweep_of_which_every_point_is_refused_is_a_mistake(desk: Desk) -> None:
    assert desk("plan", "group_size=48,24") == cli.OK
    arguments = desk.overrides("-m", "group_size=48,24")
    assert cli.dispatch(["run", *arguments]) == cli.MISTAKE


@pytest.mark.parametrize("what", LISTS)
def test_every_listed_thing_has_one_line(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["list", what]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines
    for line in lines:
        name, _, text = line.partition("  ")
        assert name, line
        assert len(text.split()) >= 3, line


def test_doctor_finds_nothing_broken_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["doctor"]) == cli.OK
    said = capsys.readouterr().out
    assert all(line.split()[0] in ("ok", "warn") for line in said.splitlines())
    for topic in ("bitsweep", "packages", "conf", "cpu", "engine", "wandb", "results", "cache"):
        assert f" {topic} " in said


def test_cfg_job_prints_the_configuration_and_runs_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.dispatch(["run", "--cfg", "job", "bits=3"]) == cli.OK
    assert "\nbits: 3\n" in capsys.readouterr().out
    assert cli.dispatch(["run", "--cfg", "job", "-p", "method", "--resolve"]) == cli.OK
    assert "_target_: bitsweep.methods.rtn.RTN" in capsys.readouterr().out
    assert not (desk.folder / "results").exists()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("bitsweep sw", ["sweep"]),
        ("bitsweep sweep de", ["demo"]),
        ("bitsweep list pol", ["policies"]),
        ("bitsweep run method=gp", ["method=gptq", "method=gptq_fp"]),
        ("bitsweep sweep demo policy=by", ["policy=by_role"]),
    ],
)
def test_completion_offers_verbs_names_and_choices(
    line: str,
    offered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert cli.dispatch(["-sc", "query=bash"]) == cli.OK
    assert capsys.readouterr().out.split() == offered


def test_completion_installs_for_the_console_script() -> None:
    script = Path(sys.executable).parent / "bitsweep"
    if not script.exists():
        pytest.skip("the console script is not installed here")
    done = subprocess.run([script, "-sc", "install=bash"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "hydra_bash_completion bitsweep" in done.stdout


def test_an_interrupted_sweep_keeps_what_is_finished_and_says_how_to_go_on(desk: Desk) -> None:
    arguments = desk.overrides("-m", "seed=range(0,40)", "bits=4", "calibration=default")
    process = subprocess.Popen(
        [sys.executable, "-m", "bitsweep", "run", *arguments, "method=gptq"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        # a job in the background of a script inherits a SIGINT that is ignored
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[1/"):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == cli.STOPPED
    kept = r"stopped; (1 finished point is|\d+ finished points are) kept; "
    assert re.search(f"{kept}go on with: bitsweep run model.path=llama", said)
    assert "Traceback" not in said
    assert desk.records("adhoc")


@pytest.mark.parametrize("verb", ["report", "plan"])
def test_any_verb_that_is_interrupted_says_so_in_a_line(
    desk: Desk,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    module = importlib.import_module(f"bitsweep.commands.{cli.VERBS[verb][0]}")
    monkeypatch.setattr(module, verb, interrupted)
    assert cli.dispatch([verb, "demo"]) == cli.STOPPED
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a.txt"), "a.txt: Permission denied; "),
        (OSError(errno.ENOSPC, "No space left on device", "r.json"), "r.json: No space left"),
        (OSError(errno.ENOSPC, "No space left on device"), "bitsweep: No space left on device; "),
    ],
)
def test_a_file_that_the_machine_refuses_is_one_line(
    error: OSError,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(look, "show", refused)
    assert cli.dispatch(["show", "abcd"]) == cli.MISTAKE
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_file_that_we_look_for_in_vain_is_a_mistake_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(argv: list[str]) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt")

    monkeypatch.setattr(look, "show", lost)
    with pytest.raises(FileNotFoundError):
        cli.dispatch(["show", "abcd"])


def test_a_sweep_whose_disk_is_full_measures_no_further_point(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    really, tried = Store.put, []

    def put(self: Store, record: Record, details: list[dict[str, object]]) -> None:
        tried.append((record.point["bits"], record.status))
        if len(tried) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", "results/r.json")
        really(self, record, details)

    monkeypatch.setattr(Store, "put", put)
    assert cli.dispatch(["run", *desk.overrides("-m", "bits=2,3,4")]) == cli.MISTAKE
    assert tried == [(2, "ok"), (3, "ok"), (3, "failed")]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("results/r.json: No space left on device; free some space; 1 finished")
    assert "go on with: bitsweep run" in line


def test_a_cache_that_is_no_folder_is_found_before_anything_is_measured(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = desk.folder / "measured.txt"
    monkeypatch.setenv("BITSWEEP_CACHE", str(place))
    assert desk("run", "bits=3") == cli.MISTAKE
    assert f"BITSWEEP_CACHE={place}: can not write there" in capsys.readouterr().err
    assert not (desk.folder / "results").exists()
    cli.dispatch(["doctor"])
    assert f"warn cache     {place}" in capsys.readouterr().out


def test_what_a_batch_system_sends_at_its_limit_is_a_ctrl_c(tmp_path: Path) -> None:
    wait = "import sys, time, bitsweep.cli as cli; cli.dispatch = lambda a: print('on', flush=True)"
    wait += " or time.sleep(60); cli.main([])"
    process = subprocess.Popen(
        [sys.executable, "-c", wait],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.terminate()
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]


def test_an_interrupted_report_of_a_sweep_says_how_to_go_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitsweep import report

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write", interrupted)
    assert cli.dispatch(["run", *desk.overrides("-m", "bits=3,4")]) == cli.STOPPED
    assert "stopped; 2 finished points are kept; go on with: bits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["list"], "list: takes one of methods"),
        (["doctor", "now"], "doctor now: takes nothing more"),
        (["run", "-m", "method=glob(x*)"], "method=glob(x*): stands for no value"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.dispatch(argv) == cli.MISTAKE
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_an_experiment_that_is_no_text_is_named_by_every_verb(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.experiment("mine", "grids:\n  - {bits: 3}\n")
    path = desk.folder / "experiments" / "mine.yaml"
    path.write_bytes("# Grüße\n".encode("latin-1") + path.read_bytes())
    for verb in ("plan", "sweep"):
        assert cli.dispatch([verb, "mine"]) == cli.MISTAKE
        (line,) = capsys.readouterr().err.splitlines()
        assert "mine.yaml: is not UTF-8" in line


def test_exit_code_reaches_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.perf_counter()
    done = shell("run", "bitz=4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bitsweep: bitz=4: no such key; did you mean bits?\n"
    assert time.perf_counter() - started < 60


def test_leaving_does_not_look_through_all_that_was_imported() -> None:
    try:
        with pytest.raises(SystemExit):
            cli.main(["--version"])
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_what_comes_next_can_be_pasted_whatever_the_names(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert desk("run", "bits=3", "experiment=two words", "results_dir=my results") == cli.OK
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next")]
    assert said == "next    bitsweep report 'two words' --results-dir 'my results'"
    assert cli.dispatch(shlex.split(said)[2:]) == cli.OK


def test_a_wrong_flag_names_the_verb_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["show"]) == cli.MISTAKE
    assert capsys.readouterr().err.startswith("bitsweep: show: the following arguments")


def test_a_point_measured_by_another_protocol_says_so_at_once(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert desk("run", "bits=3") == cli.OK
    assert "next    bitsweep report adhoc\n" in capsys.readouterr().out
    assert desk("run", "bits=4", "probes.perplexity.tokens=64") == cli.OK
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next")]
    assert "a report needs one protocol; bits_per_byte/text: two protocols meet" in said
    assert "experiment=NAME" in said


def test_a_point_that_is_stopped_while_it_is_mirrored_is_counted_as_kept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitsweep.tracking.none import NoTracker

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NoTracker, "destination", lambda self: "here")
    monkeypatch.setattr(NoTracker, "log", stop)
    assert desk("run", "-m", "bits=3,4") == cli.STOPPED
    assert "stopped; 1 finished point is kept; go on with: bits" in capsys.readouterr().err
    assert len(desk.records("adhoc")) == 1


def test_a_sweep_that_ended_in_its_report_does_not_ask_for_it(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert desk("run", "-m", "bits=3,4") == cli.OK
    said = capsys.readouterr().out
    assert "\nbest   bitsweep recommend adhoc\n" in said
    assert "next" not in said
