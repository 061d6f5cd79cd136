"""TensorBoard gives back what the Records say, by its own reader, to float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import records
import trackers

from bitsweep.record import Record
from bitsweep.tracking import Entry, Summary, publish_report
from bitsweep.tracking.flat import numbers
from bitsweep.tracking.layers import Layers
from bitsweep.tracking.ledger import Ledger
from bitsweep.tracking.tensorboard import EVENTS, Tensorboard

pytest.importorskip("tensorboard")
POINT = ("gptq", 4, 64, "uniform")
PICTURE = Path(__file__).parents[1] / "results/demo/figures/front_size.png"


def measured() -> Record:
    return records.record(*POINT, metrics=records.quality(*POINT))


def logged(folder: Path, record: Record, entry: Entry) -> Path:
    """The run folder of one Record."""
    Tensorboard(dir=str(folder)).log(record, entry, print)
    (path,) = folder.glob("*/*")
    return path


def text(folder: Path, name: str) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    reader = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    reader.Reload()
    (event,) = reader.Tensors(name)
    body: bytes = make_ndarray(event.tensor_proto).item()
    return body.decode()


def test_rounding_to_float32_is_all_that_differs(tmp_path):
    record = measured()
    run = trackers.tensorboard_run(logged(tmp_path, record, Entry("abc-1")))
    values = {k: v for k, v in numbers(record).items() if v is not None}
    assert set(run.numbers) == set(values)
    for name, value in values.items():
        assert run.numbers[name] == trackers.float32(value)
        assert run.numbers[name] == pytest.approx(value, rel=2**-24)


def test_a_run_is_named_after_its_point(tmp_path):
    ident = f"{measured().run_id[:32]}-2"
    folder = logged(tmp_path, measured(), Entry(ident))
    assert folder.relative_to(tmp_path).as_posix() == (
        f"demo/gptq-w4g64-uniform {measured().run_id[:12]}-2"
    )
    assert [path.name for path in folder.iterdir()] == [EVENTS]
    assert Tensorboard(dir=str(tmp_path)).has(ident)
    assert not Tensorboard(dir=str(tmp_path)).has(f"{measured().run_id[:32]}-1")


def test_a_run_whose_folder_was_deleted_is_not_there(tmp_path):
    tracker, ident = Tensorboard(dir=str(tmp_path)), f"{measured().run_id[:32]}-1"
    folder = logged(tmp_path, measured(), Entry(ident))
    assert tracker.has(ident)
    (folder / EVENTS).unlink()
    assert not tracker.has(ident)


def test_a_run_is_written_whole_or_not_at_all(tmp_path):
    record = measured()

    class Broken(dict):  # a Record that breaks when its last part is read
        def get(self, *_: object) -> object:
            raise MemoryError

    whole, record.timings = record.timings, Broken(record.timings)
    with pytest.raises(MemoryError):
        Tensorboard(dir=str(tmp_path)).log(record, Entry("abc-1"), print)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    record.timings = whole
    assert trackers.tensorboard_run(logged(tmp_path, record, Entry("abc-1"))).numbers


def test_what_a_kill_left_of_a_run_is_gone_once_it_is_written(tmp_path):
    folder = logged(tmp_path, measured(), Entry("abc-1"))
    (folder / EVENTS).rename(folder / ".partial.4711.0.tmp")
    assert logged(tmp_path, measured(), Entry("abc-1", again=True)) == folder
    assert [path.name for path in folder.iterdir()] == [EVENTS]


def test_a_run_that_is_there_stays_and_again_replaces_it(tmp_path):
    record = measured()
    folder = logged(tmp_path, record, Entry("abc-1"))
    record.timings["quantize"]["wall_s"] = 7.0
    logged(tmp_path, record, Entry("abc-1"))
    assert trackers.tensorboard_run(folder).numbers["wall_s/quantize"] == trackers.float32(1.2)
    logged(tmp_path, record, Entry("abc-1", again=True))
    assert trackers.tensorboard_run(folder).numbers["wall_s/quantize"] == 7.0


def test_tables_stand_in_the_text_with_everything_escaped(tmp_path):
    layers = Layers.of([{"plan": {"<b>|*x*": "w4g64"}}])
    folder = logged(tmp_path, measured(), Entry("abc-1", layers=layers))
    assert text(folder, "layers").splitlines() == [
        "| layer | became | bits | format |",
        "| --- | --- | --- | --- |",
        r"| &lt;b&gt;\|\*x\* | w4g64 | 4.0 | int |",
    ]


def test_the_report_carries_the_front_and_the_pictures(tmp_path):
    summary = Summary("demo", ("point", "bits", "ppl"), (("rtn <b>", 3, None),), (PICTURE,))
    assert publish_report(Tensorboard(dir=str(tmp_path)), Ledger(), summary, print)
    (folder,) = tmp_path.glob("demo/report *")
    assert text(folder, "front").splitlines()[2] == "| rtn &lt;b&gt; | 3 |  |"
    assert PICTURE.read_bytes() in (folder / EVENTS).read_bytes()


@pytest.mark.parametrize("name", ["", "http://host", "a.file"])
def test_runs_need_a_folder_of_this_machine(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.file").touch()
    with pytest.raises(ValueError, match="takes a folder of this machine"):
        Tensorboard(name)
