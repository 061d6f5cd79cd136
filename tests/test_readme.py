"""What README and docs/methods.md tell people to type is really there to be typed."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest
from desk import lay

from bitsweep import cli, config, formats, models
from bitsweep.artifacts import Artifacts
from bitsweep.compose import compose, experiments
from bitsweep.grid import expand
from bitsweep.models import Model, ModelSource
from bitsweep.prepared import plan_for, reshaped

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for text in (README, METHODS)
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("bitsweep ")
]
ROWS = re.findall(r"^\| [^|]+ \| `([^`]+)` \|", METHODS, re.MULTILINE)
"""The second column of the page's tables: what follows ``bitsweep run``."""


@functools.cache
def skeleton(source: ModelSource) -> Model:
    return models.skeleton(source, Artifacts(None))


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[1] == "run"], ids=" ".join)
def test_every_run_composes_into_points(words: list[str]) -> None:
    overrides = [word for word in words[2:] if word != "-m"]
    points = expand(None, overrides) if "-m" in words else [overrides]
    assert points
    for point in points:
        config.job(compose(point))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_methods_is_a_point_that_nothing_refuses(row: str) -> None:
    point = config.job(compose(shlex.split(row))).point
    plan_for(point, reshaped(point, skeleton(point.model)))


@pytest.mark.parametrize("group", ["method", "transforms", "recover", "input", "policy"])
def test_the_methods_leave_out_no_file_of(group: str) -> None:
    for file in (ROOT / "conf" / group).glob("*.yaml"):
        chosen = rf"\b{group}=(\[[\w,]*)?{file.stem}\b"
        assert file.stem == "plain" or re.search(chosen, METHODS), file


def test_the_methods_leave_out_no_format() -> None:
    assert [name for name in formats.names() if not re.search(rf"\b{name}\b", METHODS)] == []


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[1] in ("list", "plan")], ids=" ".join)
def test_every_list_and_plan_runs(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.dispatch(words[1:]) == 0


def test_every_sweep_is_an_experiment() -> None:
    for text in (README, METHODS):
        shown = {*re.findall(r"`experiments/(\w+)\.yaml`", text)}
        assert {*re.findall(r"bitsweep sweep (\w+)", text)} <= {*experiments(), *shown}


def test_its_policy_and_its_experiment_are_points_that_nothing_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lay(tmp_path)
    for had, named in {"llama": "my_model", "measured.txt": "my_text.txt"}.items():
        (tmp_path / had).rename(named)
    (tmp_path / "calibrating.txt").rename("other_text.txt")
    policy, experiment = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    for path, text in {"conf/policy": policy, "experiments": experiment}.items():
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "mine.yaml").write_text(text, encoding="utf-8")
    small = ("data.window=32", "calibration.windows=4")  # as the texts here
    assert cli.dispatch(["plan", "mine", "--config-dir", "conf", *small]) == cli.OK
    assert "9 points: 9 to run" in capsys.readouterr().out


def test_make_knows_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_every_link_and_picture_leads_somewhere() -> None:
    for text, folder in ((README, ROOT), (METHODS, ROOT / "docs")):
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert link.startswith("http") or (folder / link).exists(), link
