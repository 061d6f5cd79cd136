"""TensorBoard: one run folder per Record, with its columns as hparams and its numbers as scalars.

The event file is written whole, in one step, under a name of our own: TensorBoard's writer puts
the machine's name in it. Scalars are float32, about seven digits: its server shows no others (of
float64 it shows none at all). TensorFlow is not needed.
"""

from __future__ import annotations

import io
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bitsweep.artifacts import write_atomically
from bitsweep.models.source import MANIFEST
from bitsweep.record import Record
from bitsweep.tracking import Entry, Say, Summary
from bitsweep.tracking.flat import config, label, numbers, period

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary as Message

EVENTS = "events.out.tfevents.0000000000.bitsweep"
PARTIAL = "partial"
PNG_SIZE = slice(16, 24)
"""Where a PNG says its width and height."""


@dataclass(frozen=True)
class Tensorboard:
    """``dir``: where the run folders lie, ``EXPERIMENT/NAME RUN_ID-ATTEMPT``."""

    dir: str = ".bitsweep/tensorboard"
    name: ClassVar[str] = "tensorboard"

    def __post_init__(self) -> None:
        """Raises ValueError where it could never work: said before a point is measured."""
        if find_spec("tensorboard") is None:
            raise ValueError("tensorboard is not installed; pip install 'bitsweep[tensorboard]'")
        if not self.dir or "://" in self.dir or Path(self.dir).is_file():
            raise ValueError(f"dir={self.dir}: takes a folder of this machine")

    def destination(self) -> str:
        """The folder."""
        return self.dir

    def has(self, ident: str) -> bool:
        """Whether the run's event file is there."""
        found = (
            experiment / name / EVENTS
            for experiment in Path(self.dir).glob("*/")
            if (name := _runs(experiment, experiment.stat().st_mtime_ns).get(_short(ident)))
        )
        return any(path.is_file() for path in found)

    def hint(self) -> str:
        """What opens TensorBoard's page over the folder."""
        return f"TensorBoard: tensorboard --logdir {self.dir}"

    def log(self, record: Record, entry: Entry, say: Say) -> None:
        """One run: columns as hparams, numbers as scalars, the layers as a table in its text."""
        begun, done = period(record)
        columns = {k: v for k, v in config(record).items() if v is not None}
        messages = [
            _started(f"{label(record)} {_short(entry.ident)}", columns, begun),
            *(_scalar(k, v) for k, v in numbers(record).items() if v is not None),
        ]
        if entry.layers is not None:
            messages.append(_text("layers", _table(entry.layers.columns, entry.layers.rows)))
        if entry.artifacts:
            exported = [(folder.name, MANIFEST) for folder in entry.artifacts]
            messages.append(_text("exported", _table(("folder", "manifest"), exported)))
        messages.append(_ended(record.status == "failed", done))
        self._write(record.experiment, label(record), entry, messages, done)

    def summarize(self, summary: Summary, entry: Entry, say: Say) -> None:
        """One run ``report``: the front as a table in its text, and the pictures."""
        front = _text("front", _table(summary.columns, summary.rows))
        pictures = (_picture(path) for path in summary.pictures)
        self._write(summary.experiment, "report", entry, [front, *pictures], time.time())

    def _write(
        self, experiment: str, title: str, entry: Entry, messages: Iterable[Message], wall_s: float
    ) -> None:
        """The run folder; it counts once its event file has its name."""
        folder = Path(self.dir) / experiment / f"{_slug(title)} {_short(entry.ident)}"
        if (folder / EVENTS).is_file() and not entry.again:
            return
        body = _events(messages, wall_s)
        for torso in folder.glob(f".{PARTIAL}.*"):
            torso.unlink()
        write_atomically(folder / PARTIAL, lambda file: _fill(file, body))
        (folder / PARTIAL).replace(folder / EVENTS)


@lru_cache(maxsize=64)
def _runs(experiment: Path, changed_ns: int) -> dict[str, str]:
    """The run folders of an experiment by the end of their names, listed when they change."""
    return {name.rpartition(" ")[2]: name for name in os.listdir(experiment)}


def _short(ident: str) -> str:
    """``<run_id>-<attempt>`` with the 12 digits by which other places show a Record."""
    stem, _, attempt = ident.rpartition("-")
    return f"{stem.removeprefix('report-')[:12]}-{attempt}"


def _slug(title: str) -> str:
    """A title as the name of a folder."""
    return re.sub(r"[^\w.+-]+", "-", title).strip("-.")[:80] or "run"


def _fill(path: Path, body: bytes) -> None:
    path.write_bytes(body)


def _events(messages: Iterable[Message], wall_s: float) -> bytes:
    """The content of an event file: its version, then one event a message."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=wall_s, file_version="brain.Event:2").SerializeToString())
    for message in messages:
        writer.write(Event(wall_time=wall_s, step=0, summary=message).SerializeToString())
    return file.getvalue()


def _scalar(name: str, value: float) -> Message:
    from tensorboard.compat.proto import summary_pb2

    one = summary_pb2.Summary.Value(tag=name, simple_value=value)
    return summary_pb2.Summary(value=[one])


def _text(name: str, markdown: str) -> Message:
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.text import metadata

    about = metadata.create_summary_metadata(display_name="", description="")
    about.data_class = summary_pb2.DATA_CLASS_TENSOR
    tensor = _strings([markdown.encode()])
    tensor.tensor_shape.Clear()  # one text, no list of them
    return _message(name, about, tensor)


def _picture(path: Path) -> Message:
    """A PNG file, as it is."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.image import metadata

    about = metadata.create_summary_metadata(display_name="", description="")
    about.data_class = summary_pb2.DATA_CLASS_BLOB_SEQUENCE
    body = path.read_bytes()
    size = [str(n).encode() for n in struct.unpack(">II", body[PNG_SIZE])]
    return _message(f"figures/{path.stem}", about, _strings([*size, body]))


def _started(trial: str, columns: dict[str, Any], begun_s: float) -> Message:
    from tensorboard.plugins.hparams import summary_v2

    made: Message = summary_v2.hparams_pb(columns, trial_id=trial, start_time_secs=begun_s)
    return made


def _ended(failed: bool, done_s: float) -> Message:
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=done_s)
    about = metadata.create_summary_metadata(
        plugin_data_pb2.HParamsPluginData(session_end_info=info)
    )
    return _message(metadata.SESSION_END_INFO_TAG, about, metadata.NULL_TENSOR)


def _strings(values: Sequence[bytes]) -> Any:
    from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

    size = tensor_shape_pb2.TensorShapeProto.Dim(size=len(values))
    return tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[size]),
        string_val=values,
    )


def _message(name: str, about: Any, tensor: Any) -> Message:
    from tensorboard.compat.proto import summary_pb2

    value = summary_pb2.Summary.Value(tag=name, metadata=about, tensor=tensor)
    return summary_pb2.Summary(value=[value])


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown; what HTML or Markdown would take for its own stands as it is written."""
    head = f"| {' | '.join(map(_cell, columns))} |\n|{' --- |' * len(columns)}\n"
    return head + "".join(_lines(rows))


def _lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |\n"


def _cell(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
