"""What the README tells people to type is really there to be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bitsweep import cli, config
from bitsweep.compose import compose
from bitsweep.grid import expand

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("bitsweep ")
]


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[1] == "run"], ids=" ".join)
def test_every_run_composes_into_points(words: list[str]) -> None:
    overrides = [word for word in words[2:] if word != "-m"]
    points = expand(None, overrides) if "-m" in words else [overrides]
    assert points
    for point in points:
        config.job(compose(point))


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[1] in ("list", "plan")], ids=" ".join)
def test_every_list_and_plan_runs(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.dispatch(words[1:]) == 0


def test_make_knows_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_every_link_and_picture_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
