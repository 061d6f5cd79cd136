"""Each tracker of ``conf/tracker`` in a folder of its own, and what it has, read back by others."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import offline
import pytest

from bitsweep.tracking import Tracker
from bitsweep.tracking.environment import environment
from bitsweep.tracking.mlflow import QUIET, Mlflow, _make_database, shown
from bitsweep.tracking.tensorboard import Tensorboard
from bitsweep.tracking.wandb import Wandb


@dataclass
class Run:
    """One run over there; a tracker that knows no missing value does not have the name."""

    ident: str
    name: str
    group: str
    failed: bool
    columns: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """How a tracker is made in a folder, read back, and what it makes of a column or a number."""

    make: Callable[[Path], Tracker]
    read: Callable[[Path], list[Run]]
    column: Callable[[Any], Any] = lambda value: value
    number: Callable[[float], float] = lambda value: value
    ident: Callable[[str], str] = lambda ident: ident


def from_wandb(folder: Path) -> list[Run]:
    return [
        Run(
            run["id"],
            run["name"],
            run["group"],
            bool(run["exit_code"]),
            {k: v for k, v in run["config"].items() if v is not None and k != "_wandb"},
            {k: v for k, v in run["summary"].items() if v is not None and _is_number(k, v)},
        )
        for run in offline.runs(folder)
    ]


def _is_number(name: str, value: Any) -> bool:
    return not name.startswith(("_", "layers")) and not isinstance(value, (str, dict))


@cache
def blank_database() -> bytes:
    """MLflow's tables, made once since it takes seconds; over what a killed process left behind."""
    pytest.importorskip("mlflow")
    with tempfile.TemporaryDirectory() as name, environment(QUIET):
        folder = Path(name)
        for torso in (".mlflow.db.partial", ".mlflow.db.partial-journal"):
            (folder / torso).write_bytes(b"SQLite format 3\0, cut off")
        _make_database(folder / "mlflow.db")
        assert [path.name for path in folder.iterdir()] == ["mlflow.db"]
        return (folder / "mlflow.db").read_bytes()


def mlflow(folder: Path) -> Mlflow:
    path = folder / "mlflow.db"
    if not path.exists():
        path.write_bytes(blank_database())
    return Mlflow(tracking_uri=f"sqlite:///{path}")


def from_mlflow(folder: Path) -> list[Run]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    names = {item.experiment_id: item.name for item in client.search_experiments()}
    return [
        Run(
            run.data.tags["bitsweep.id"],
            run.info.run_name,
            names[run.info.experiment_id],
            run.info.status == "FAILED",
            run.data.params,
            run.data.metrics,
        )
        for run in client.search_runs(list(names))
    ]


def tensorboard(folder: Path) -> Tensorboard:
    pytest.importorskip("tensorboard")
    return Tensorboard(dir=str(folder / "tensorboard"))


def from_tensorboard(folder: Path) -> list[Run]:
    return [
        tensorboard_run(path.parent)
        for path in sorted((folder / "tensorboard").glob("*/*/*tfevents*"))
    ]


def tensorboard_run(folder: Path) -> Run:
    """By TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()

    def about(tag: str) -> bytes:
        content: bytes = reader.SummaryMetadata(tag).plugin_data.content
        return content

    title, _, ident = folder.name.rpartition(" ")
    run = Run(ident, title, folder.parent.name, False)
    for name in reader.Tags()["scalars"]:
        (event,) = reader.Scalars(name)
        run.numbers[name] = event.value
    if metadata.SESSION_START_INFO_TAG in reader.Tags()["tensors"]:
        begun = metadata.parse_session_start_info_plugin_data(
            about(metadata.SESSION_START_INFO_TAG)
        )
        for name, value in begun.hparams.items():
            run.columns[name] = getattr(value, value.WhichOneof("kind"))
        done = metadata.parse_session_end_info_plugin_data(about(metadata.SESSION_END_INFO_TAG))
        run.failed = done.status == api_pb2.STATUS_FAILURE
    return run


def float32(value: float) -> float:
    """The nearest number of 24 bits: all that TensorBoard shows of one."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


KINDS = {
    "wandb": Kind(lambda folder: Wandb(dir=str(folder), mode="offline"), from_wandb),
    "mlflow": Kind(mlflow, from_mlflow, column=shown),
    "tensorboard": Kind(
        tensorboard,
        from_tensorboard,
        number=float32,
        ident=lambda ident: f"{ident[:12]}-{ident.rpartition('-')[2]}",
    ),
}
"""Of every tracker but ``none``."""


def written(folder: Path) -> bytes:
    """All bytes below ``folder`` but the Records, as text in JSON is written out."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"\n".join(path.read_bytes() for path in files if "results" not in path.parts)
