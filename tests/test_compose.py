"""Where the YAML lies, and Hydra's errors in one line. Every shipped file composes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bitsweep import compose as composing
from bitsweep.axes import GROUPS
from bitsweep.compose import compose, conf_dir, experiments, group_files, plain_config
from bitsweep.config import job
from bitsweep.errors import UserError

GIVEN = {
    ("data", "text"): ["data.path=x.txt"],
    ("calibration", "text"): ["calibration.source.path=x.txt"],
    ("policy", "only"): ["policy.only=each:layer"],
}
"""What a file marks as the user's to give."""


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in group_files(group)]
)
def test_every_configuration_file_makes_a_job(group: str, choice: str) -> None:
    composed = compose([f"{group}={choice}", *GIVEN.get((group, choice), [])])
    values, taken = plain_config(composed)
    assert taken[group] == choice
    assert job(composed).point.seed == values["seed"]


@pytest.mark.parametrize("name", sorted(experiments()))
def test_every_experiment_file_composes(name: str) -> None:
    values, _ = plain_config(compose([f"+experiments={name}", f"experiment={name}"]))
    assert values["experiment"] == name
    assert values["grids"]


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in ("experiments",)])
def test_every_configuration_file_opens_with_one_line_about_itself(group: str) -> None:
    for path in group_files(group).values():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), path
        assert len(first) > 10, path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bitz=4", "bitz=4: no such key; did you mean bits?"),
        ("model.pth=x", "model.pth=x: no such key; did you mean model.path"),
        ("method=gptqq", r"method=gptqq: no such method; did you mean gptq or .*\(choices: .*rtn"),
        ("policy=zzzzzz", r"policy=zzzzzz: no such policy \(choices: .*by_role"),
        ("bits=2,3", "bits=2,3: several values are a sweep; use bitsweep run -m"),
        ("+modle=reference", "modle: no such key|modle=reference: no such key; did you mean model"),
        ("tracker=wandb,mlflow", r"several trackers are a list; write 'tracker=\[wandb,mlflow\]'$"),
        ("transforms=rotate,smooth", r"run -m, or 'transforms=\[rotate,smooth\]' for all of them"),
        ("bits=[3,4]", r"bits=\[3,4\]: takes one value; .*: bitsweep run -m bits=3,4$"),
        ("model=./mine", "a folder or a hub id is a path; write model.path=./mine$"),
        ("model=meta-llama/Llama-3.2-1B", "write model.path=meta-llama/Llama-3.2-1B$"),
        ("model=shape/nothing", "no such model; did you mean"),
        ("data.path=my.txt", "write data=text data.path=my.txt$"),
        ("data.calibration_path=a b", "write calibration=text 'calibration.source.path=a b'$"),
        ("hydra/launcher=rq", "is not installed here; pip install hydra-rq-launcher$"),
        ("hydra/launcher=nothing", r"no such hydra/launcher \(choices: basic.*\)$"),
        ("bits 4", "bits 4: not an override; write key=value$"),
        ("bits=[", r"bits=\[: not an override; write key=value"),
        ("+bits=3", r"\+bits: is there already; write bits=VALUE without the \+"),
        ("+experiments=deno", "deno: no such experiment; did you mean demo"),
        ("calibration=text", "calibration.source.path: must be given; write calibration.source"),
        ("model=null", "model=null: takes one of .*reference"),
        ("method=3", "method=3: takes one of .*rtn"),
        ("method=[rtn]", r"method=\[rtn\]: takes one of .*rtn"),
        ("~method", "~method: takes one of .*rtn"),
        ("=3", "^=3: not an override; write key=value$"),
        ("~bitz", "~bitz: no such key; did you mean bits?"),
        ("bits=${nix}", "bits: Interpolation key 'nix' not found"),
        ("bits=${oc.env:NIX}", "^bits: Environment variable 'NIX' not found$"),
        ("demo", "demo: is an experiment; write bitsweep sweep demo"),
        ("+experiments=demo.yaml", "demo.yaml: no such experiment; did you mean demo"),
        ("data.path=~/x.txt", r"data.path=~/x.txt: a ~ behind = stays a ~; write \$HOME"),
        ("data.path=a=b.txt", r"""data.path=a=b.txt: .*; write 'data.path="a=b.txt"'"""),
        ("data.path=grün.txt", """data.path=grün.txt: .*; write 'data.path="grün.txt"'"""),
        (
            "transforms.rotate.seed=3",
            r"rotate is not asked for; write transforms=\[rotate\]",
        ),
        ("recover.lowrank.rank=3", r"no such recover; did you mean low_rank\?"),
        ("tracker.project=x", r"no such key; did you mean tracker.wandb.project\?"),
        ("tracker.mlflow.uri=x", r"write tracker=\[wandb,mlflow\] as well"),
        ("calibration.source.path=x", "source is null in this calibration .*text"),
    ],
)
def test_hydras_errors_are_one_line_with_the_nearest_names(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        job(compose([override]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a: [1\nb: {\n", 2, "did not find expected|expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", 2, "cannot start any token"),
        ("a: 1\na: 2\n", 2, "duplicate key a"),
    ],
)
def test_broken_yaml_is_one_line_with_the_place(
    text: str, line: int, why: str, tmp_path: Path
) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"mine.yaml, line {line}: .*({why})") as caught:
        compose(["method=mine"], str(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_experiment_that_is_no_utf8_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    text = "# Grüße\ngrids:\n  - {method: rtn}\n"
    (tmp_path / "experiments" / "mine.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"mine.yaml: is not UTF-8 .*; convert it"):
        compose(["+experiments=mine"])


def test_a_group_in_an_experiments_defaults_without_override_is_told_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text("defaults:\n  - method: rtn\n")
    with pytest.raises(UserError, match=r"in an experiment's defaults write override /method: rtn"):
        compose(["+experiments=mine"])


def test_a_quoted_path_is_the_path_that_the_message_quotes() -> None:
    with pytest.raises(UserError) as caught:
        compose(["data.path=it's a=b, ü.txt"])
    (quoted,) = shlex.split(str(caught.value).rpartition("; write ")[2])
    values, _ = plain_config(compose(["data=text", quoted]))
    assert values["data"]["path"] == "it's a=b, ü.txt"


def test_a_folder_of_the_users_own_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.yaml").write_text("rules:\n  - {role: head}\n")
    values, taken = plain_config(compose(["policy=mine"], str(tmp_path)))
    assert (taken["policy"], values["policy"]) == ("mine", {"rules": [{"role": "head"}]})


def test_the_working_directorys_experiment_hides_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = composing.experiment_root("demo")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "demo.yaml").write_text("# @package _global_\nseed: 7\n")
    assert shipped != tmp_path
    assert composing.experiment_root("demo") == tmp_path
    assert plain_config(compose(["+experiments=demo"]))[0]["seed"] == 7


def test_bitsweep_conf_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSWEEP_CONF", str(tmp_path))
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        conf_dir()
    (tmp_path / "config.yaml").touch()
    assert conf_dir() == tmp_path


def test_a_choice_that_is_not_there_names_the_folder_where_it_could_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such policy.*; a folder of your own: --config-dir F"):
        compose(["policy=mine"])
    with pytest.raises(UserError, match=r"no such policy[^;]*$"):
        compose(["policy=mine"], str(tmp_path))


def test_a_folder_here_that_has_the_choice_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "policy").mkdir(parents=True)
    (tmp_path / "own" / "policy" / "mine.yaml").write_text("rules:\n  - {role: head}\n")
    with pytest.raises(UserError, match=r"own/policy/mine.yaml is there: add --config-dir own$"):
        compose(["policy=mine"])


def test_another_hydra_application_in_the_process_survives() -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose([])
        assert GlobalHydra.instance().hydra is before


def test_a_choice_of_a_list_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"transforms=rotat: .*did you mean rotate\?"):
        compose(["transforms=[rotat]"])
