"""What CONTRIBUTING.md promises whoever adds a method: its text, done to the letter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from desk import Desk, lay

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The first fenced block of ``language`` under the heading about methods."""
    part = TEXT.partition("## A method is one file and one YAML")[2]
    found = re.search(rf"```{language}\n(.*?)```", part, re.S)
    assert found, language
    return found[1]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A working directory with the two files of CONTRIBUTING.md in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_quant").mkdir()
    (tmp_path / "my_quant" / "__init__.py").touch()
    (tmp_path / "my_quant" / "halve.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "my_conf" / "method").mkdir(parents=True)
    (tmp_path / "my_conf" / "method" / "halve.yaml").write_text(block("yaml"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return lay(tmp_path)


def test_the_method_is_listed_beside_ours(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk("list", "methods", "--config-dir", "my_conf") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split(maxsplit=1)[0] == "halve" and "half of each" in line for line in lines)
    assert any(line.startswith("gptq ") for line in lines)


def test_the_method_is_swept_and_reported(desk: Desk) -> None:
    sweep = ["-m", "method=rtn,halve", "bits=3,4", "plugins=[my_quant]", "experiment=mine"]
    overrides = desk.overrides(*sweep[1:])
    from bitsweep import cli

    assert cli.dispatch(["run", "-m", *overrides, "--config-dir", "my_conf"]) == 0
    assert len(desk.records("mine")) == 4
    assert desk("report", "mine") == 0
    table = (desk.folder / "results" / "mine" / "tables" / "main.md").read_text("utf-8")
    assert "| halve" in table
    assert "| rtn" in table


def test_the_contract_suite_holds_it_as_ours(desk: Desk) -> None:
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["-k", "halve"]
    command += [str(ROOT / "tests" / "test_methods.py"), "--config-dir", "my_conf"]
    path = os.pathsep.join([str(desk.folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 12  # type: ignore[index]


def test_what_is_wrong_with_an_option_is_one_line(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitsweep import cli

    overrides = desk.overrides("method=halve", "method.share=2", "plugins=[my_quant]")
    assert cli.dispatch(["run", *overrides, "--config-dir", "my_conf"]) == 2
    assert "method.share=2.0: above 0 and at most 1" in capsys.readouterr().err
