import gc
import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest

from bitsweep.errors import UserError
from bitsweep.record import Record
from bitsweep.store import Store, dump

RESULTS = Path(__file__).parents[1] / "results"
POINT = {"model": "tiny", "method": "rtn"}


def record(run_id="a" * 64, status="ok", **more):
    return Record(
        run_id=run_id,
        point_id="p",
        kind="quality",
        experiment="e",
        status=status,
        point=POINT,
        **more,
    )


def test_what_is_put_comes_back_with_its_details(tmp_path):
    store = Store(tmp_path)
    store.put(record(), [{"text": "a\u2028é"}, {"n": 1}])
    assert store.get("a" * 64).status == "ok"
    assert list(store.details("a" * 64)) == [{"text": "a\u2028é"}, {"n": 1}]


def test_equal_details_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        Store(tmp_path / name).put(record(), [{"b": 1, "a": 2}])
    one, two = (next((tmp_path / name / "details").iterdir()) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_failure_never_replaces_a_good_record(tmp_path):
    store = Store(tmp_path)
    store.put(record(), [])
    store.put(record(status="failed", reason="boom"), [])
    assert store.done("a" * 64)


def test_a_failed_or_cut_record_counts_as_missing(tmp_path):
    store = Store(tmp_path)
    store.put(record(status="failed", reason="boom"), [])
    assert not store.done("a" * 64)
    store.put(record(), [])
    store.record_path("a" * 64).write_text('{"schema": 1, "run')
    assert not store.done("a" * 64)


def test_a_file_that_is_no_record_is_named(tmp_path):
    store = Store(tmp_path)
    store.put(record(), [])
    store.record_path("b" * 64).write_text(json.dumps({"schema": 99}))
    with pytest.raises(UserError, match=r"b{64}.*schema 99"):
        store.records()


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("point", None, "point"),
        ("point", {"model": "tiny"}, "point.method"),
        ("metrics", [], "metrics"),
        ("provenance", None, "provenance"),
        ("status", "odd", "status"),
    ],
)
def test_a_record_with_a_field_of_another_kind_is_none(tmp_path, field, value, named):
    store = Store(tmp_path)
    store.put(record(), [])
    body = json.loads(store.record_path("a" * 64).read_text())
    store.record_path("a" * 64).write_text(json.dumps(body | {field: value}))
    with pytest.raises(UserError, match=rf"another kind: {named}\)"):
        store.records()
    store.record_path("a" * 64).write_text("[1, 2]")
    with pytest.raises(UserError, match="no fields"):
        store.records()


def test_a_record_with_half_a_pair_of_surrogates_is_none(tmp_path):
    store = Store(tmp_path)
    for reason in ("\ud800", "\U0001f600 whole"):
        body = dump(record()).decode().replace('"reason": null', f'"reason": {json.dumps(reason)}')
        store.prepare()
        store.record_path("a" * 64).write_text(body)
        said: list[str] = []
        assert len(store.records(warn=said.append)) == (reason[-1] == "e")
        assert len(said) == (reason[-1] != "e")


def test_a_record_with_what_is_no_number_is_none(tmp_path):
    store = Store(tmp_path)
    store.put(record(), [])
    path = store.record_path("a" * 64)
    path.write_text(path.read_text().replace('"timings": {}', '"timings": {"total": NaN}'))
    with pytest.raises(UserError, match="not a Record"):
        store.records()


@pytest.mark.parametrize("damage", [lambda body: body[:20], lambda _: b"version https://git-lfs"])
def test_damaged_details_are_named(tmp_path, damage):
    store = Store(tmp_path)
    store.put(record(), [{"text": "a"}])
    path = store.details_path("a" * 64)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{path.name}: no whole details .* move it away"):
        list(store.details("a" * 64))


def test_a_file_that_is_no_record_is_warned_of_and_the_others_are_read(tmp_path):
    store = Store(tmp_path)
    store.put(record(), [])
    store.record_path("b" * 64).write_text("{")
    said = []
    assert [found.run_id for found in store.records(warn=said.append)] == ["a" * 64]
    assert len(said) == 1
    assert "b" * 64 in said[0]


def test_a_record_knows_the_digest_of_its_file_and_is_written_as_it_was(tmp_path):
    store = Store(tmp_path)
    store.put(record(reason="\u00e9"), [{"n": 1}])
    (found,) = store.records()
    body = store.record_path("a" * 64).read_bytes()
    assert found.file_sha256 == hashlib.sha256(body).hexdigest()
    assert dump(found) == body


def test_every_committed_record_is_written_as_it_was():
    for folder in sorted(RESULTS.glob("*/records")):
        for path in sorted(folder.iterdir())[:40]:
            body = path.read_bytes()
            assert dump(Record.from_json(json.loads(body))) == body


def test_unfinished_files_are_no_records(tmp_path):
    store = Store(tmp_path)
    store.put(record(), [])
    (tmp_path / "records" / ".cut.json").write_text("{")
    (tmp_path / "records" / "note.txt").write_text("{")
    (tmp_path / "records" / f"{'c' * 64}.json").symlink_to(tmp_path / "gone")  # listed, then moved
    assert len(store.records()) == 1


def test_the_collector_is_left_as_it_was(tmp_path):
    for turn in (gc.disable, gc.enable):
        turn()
        before = gc.isenabled()
        Store(tmp_path).records()
        assert gc.isenabled() is before


def test_what_was_made_uncollected_is_not_looked_at_again(tmp_path):
    Store(tmp_path).put(record(), [])
    gc.enable()
    (found,) = Store(tmp_path).records()
    assert any(found is old for old in gc.get_objects(generation=2))


def test_a_place_that_is_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match="results_dir="):
        Store(tmp_path / "results" / "e").prepare()


def _put_many(folder: str, start: int) -> None:
    for index in range(start, start + 20):
        Store(folder).put(record(run_id=f"{index:064d}"), [{"n": index}])


def test_writers_at_once_leave_only_whole_records(tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_put_many, args=(str(tmp_path), start)) for start in (0, 10)]
    for job in jobs:
        job.start()
    while any(job.is_alive() for job in jobs):
        if (tmp_path / "records").is_dir():
            Store(tmp_path).records()  # raises for a torn one
    for job in jobs:
        job.join()
    assert len(Store(tmp_path).records()) == 30
    assert not list(tmp_path.glob("*/.*"))


def test_a_prefix_finds_records_and_points(tmp_path):
    store = Store(tmp_path)
    store.put(record(run_id="abc"), [])
    assert [found.run_id for found in store.find("ab")] == ["abc"]
    assert [found.run_id for found in store.find("p")] == ["abc"]
    assert store.find("zz") == []
