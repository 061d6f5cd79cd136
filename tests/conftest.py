"""What every test may ask for: one thread, a device, its own cache, the data beside the repo."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: no test asks the hub

import absl.logging
import pytest
import tiny
import torch

from bitsweep.artifacts import Artifacts
from bitsweep.data import Data, Reference, TextSource
from bitsweep.models import Model

torch.set_num_threads(1)

# absl (of rouge-score) keeps the stderr that it met at import, here pytest's capture file, and
# closes it whenever logging is configured anew, as Hydra does; the real one it leaves alone.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

_DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


_OWN: list[Path] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--config-dir", type=Path, help="groups of your own, held to the contracts")


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--config-dir")
    if folder is not None:
        if not folder.is_dir():
            raise pytest.UsageError(f"--config-dir {folder}: no such folder")
        _OWN.append(folder)


def own_folders() -> list[Path]:
    """Folders of ``--config-dir``: whoever adds a method of their own tests it with ours."""
    return list(_OWN)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device that this machine has: the CPU, and CUDA where there is one."""
    return request.param


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    """An artifact store on disk, empty."""
    return Artifacts(tmp_path / "artifacts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test file's own."""
    return tmp_path_factory.mktemp("folder")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """A tiny Llama, one for all tests of a file: it is to be copied, never changed."""
    return tiny.load("llama", folder)


@pytest.fixture
def reference(
    request: pytest.FixtureRequest, model: Model, tmp_path: Path, artifacts: Artifacts
) -> Reference:
    """``model`` and the windows of 64 tokens of the test file's ``TEXT``."""
    path = tmp_path / "text.txt"
    path.write_text(request.module.TEXT, encoding="utf-8")
    text = TextSource("text", str(path))
    return Reference(model, Data("d", {"text": text}, window=64), artifacts)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real checkpoints and texts that lie beside the repository, never in it."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real checkpoints and texts at {folder}")
    return folder
