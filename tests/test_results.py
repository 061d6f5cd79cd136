"""The committed answers: made by committed code, small, and made again byte for byte."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from bitsweep import report
from bitsweep.store import Store

ROOT = Path(__file__).parents[1]
ANSWERS = sorted(path.parent for path in (ROOT / "results").glob("*/records"))
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
)


@pytest.mark.parametrize("folder", ANSWERS, ids=lambda folder: folder.name)
def test_tables_and_figures_come_again_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    for name in ("matplotlib", "numpy", "pandas", "pillow"):
        if metadata.version(name) != PINS[name]:
            pytest.skip(f"{name} is not the pinned {PINS[name]}: fonts and floats may differ")
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "figures"))
    report.write(copy)
    for kind in ("tables", "figures"):
        committed = {path.name: path.read_bytes() for path in (folder / kind).glob("*")}
        again = {path.name: path.read_bytes() for path in (copy / kind).glob("*")}
        assert set(again) == set(committed)
        assert [name for name in again if again[name] != committed[name]] == []


@pytest.mark.parametrize("folder", ANSWERS, ids=lambda folder: folder.name)
def test_records_are_small_and_of_committed_code(folder: Path) -> None:
    store = Store(folder)
    for record in store.records():
        assert store.record_path(record.run_id).stat().st_size <= 16_000
        assert record.provenance["dirty"] is False
        assert len(record.provenance["commit"]) == 40


def test_the_readme_shows_rows_of_the_committed_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = (ROOT / "results" / "demo" / "tables" / "main.md").read_text(encoding="utf-8")
    block = readme.split("<!-- rows of results/demo/tables/main.md -->\n")[1].split("\n\n")[0]
    assert len(block.splitlines()) > 5
    for row in block.splitlines():
        assert row in table.splitlines()
