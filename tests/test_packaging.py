"""Installed as a wheel or in place, bitsweep finds its conf and experiments from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def listed(cwd: Path, path: str | None = None) -> str:
    """What another interpreter in ``cwd`` lists; ``path`` replaces how it finds bitsweep."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "BITSWEEP_CONF")}
    if path is not None:
        environment["PYTHONPATH"] = path
    code = (
        "import bitsweep.compose as c; from bitsweep import cli; print(c.conf_dir()); "
        "cli.dispatch(['list', 'experiments']); cli.dispatch(['run', '--cfg', 'job', 'bits=3'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_checkout_is_found_from_another_folder(tmp_path: Path) -> None:
    said = listed(tmp_path, str(ROOT / "src"))
    assert said.startswith(f"{ROOT / 'conf'}\n")
    assert "\ndemo" in said
    assert "\nbits: 3\n" in said


def test_the_wheel_brings_conf_experiments_and_the_sweeper(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    said = listed(tmp_path, str(site))
    assert said.startswith(f"{site / 'bitsweep' / 'conf'}\n")
    assert "\ndemo" in said
    assert "\nbits: 3\n" in said
    assert (site / "bitsweep" / "models" / "shapes" / "llama2_7b.json").is_file()
    assert (site / "hydra_plugins" / "bitsweep_grid" / "sweeper.py").is_file()
    assert not (site / "hydra_plugins" / "__init__.py").exists()
    assert any(site.glob("*.dist-info/entry_points.txt"))
    page = Path("bitsweep") / "report" / "page"
    assets = {path.name for path in (site / page).iterdir()}
    assert {"page.html", "page.css", "main.js"} <= assets
    assert assets >= {path.name for path in (ROOT / "src" / page).iterdir() if path.is_file()}
