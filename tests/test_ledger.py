"""The ledger: what is where is written once; what was cut short is written once more."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bitsweep.tracking.ledger import Ledger, Slot, Wanted

FIRST = Wanted("wandb", "online host/me/p", run_id="ab" * 32, stem="ab" * 16, digest="d1")


def yes(ident: str) -> bool:
    return True


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.of(tmp_path)


def publish(ledger: Ledger, wanted: Wanted, anew: bool = False) -> Slot | None:
    with ledger.claim(wanted, yes, anew) as slot:
        return slot


def test_what_is_done_is_not_done_again_by_this_process_or_the_next(ledger):
    assert publish(ledger, FIRST) == Slot(f"{FIRST.stem}-1")
    assert publish(ledger, FIRST) is None
    assert publish(Ledger(ledger.path), FIRST) is None


def test_what_was_begun_only_is_written_again_under_the_same_id(ledger):
    with pytest.raises(RuntimeError), ledger.claim(FIRST, yes):
        raise RuntimeError("the connection is lost")
    assert publish(Ledger(ledger.path), FIRST) == Slot(f"{FIRST.stem}-1", again=True)
    assert publish(ledger, FIRST) is None


def test_another_content_gets_the_next_attempt_and_supersedes_those_before(ledger):
    for digest in ("d1", "d2"):
        publish(ledger, replace(FIRST, digest=digest))
    slot = publish(ledger, replace(FIRST, digest="d3"))
    assert slot == Slot(f"{FIRST.stem}-3", superseded=(f"{FIRST.stem}-1", f"{FIRST.stem}-2"))


def test_the_same_content_has_the_same_id_wherever_it_goes(ledger):
    publish(ledger, FIRST)
    publish(ledger, replace(FIRST, digest="d2"))
    elsewhere = replace(FIRST, digest="d2", destination="offline .bitsweep/wandb/me/p")
    assert publish(ledger, elsewhere) == Slot(f"{FIRST.stem}-2")
    other_tracker = replace(FIRST, digest="d2", tracker="mlflow")
    assert publish(ledger, other_tracker) == Slot(f"{FIRST.stem}-1")


def test_more_beside_the_same_content_rewrites_the_run_and_less_does_not(ledger):
    publish(ledger, FIRST)
    carrying = replace(FIRST, extra="an export")
    assert publish(ledger, carrying) == Slot(f"{FIRST.stem}-1", again=True)
    assert publish(ledger, carrying) is None
    assert publish(ledger, FIRST) is None


def test_what_is_gone_over_there_is_written_again(ledger):
    publish(ledger, FIRST)
    assert ledger.slot(FIRST, lambda ident: False) == Slot(f"{FIRST.stem}-1", again=True)


def test_asked_anew_every_run_gets_its_next_id(ledger):
    publish(ledger, FIRST)
    assert publish(ledger, FIRST, anew=True) == Slot(
        f"{FIRST.stem}-2", superseded=(f"{FIRST.stem}-1",)
    )
    assert publish(ledger, FIRST) is None


def test_the_newest_id_of_each_run_is_known_by_place(ledger):
    publish(ledger, FIRST)
    publish(ledger, replace(FIRST, digest="d2"))
    publish(ledger, replace(FIRST, run_id="cd" * 32, stem="cd" * 16, destination="elsewhere"))
    assert ledger.ids("wandb", FIRST.destination) == {FIRST.run_id: f"{FIRST.stem}-2"}


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_last_line_that_was_cut_short_is_no_event_and_spoils_no_other(ledger, kept):
    publish(ledger, FIRST)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(lines[0] + lines[1][:kept])  # the kill hit the line that says done
    after = Ledger(ledger.path)
    assert publish(after, FIRST) == Slot(f"{FIRST.stem}-1", again=True)
    whole = [line for line in ledger.path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["event"] for line in whole][-2:] == ["begun", "done"]
    assert publish(Ledger(ledger.path), FIRST) is None


def test_a_ledger_that_was_removed_is_begun_again(ledger):
    publish(ledger, FIRST)
    ledger.path.unlink()
    assert publish(ledger, FIRST) == Slot(f"{FIRST.stem}-1")


WRITER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from bitsweep.tracking.ledger import Ledger, Wanted

folder = Path(sys.argv[1])
ledger = Ledger.of(folder)
for i in range(40):
    wanted = Wanted("wandb", "there", run_id=f"run {i}", stem=f"stem{i}", digest="d")
    with ledger.claim(wanted, lambda ident: True) as slot:
        if slot is not None:
            time.sleep(0.002)
            with (folder / "written").open("a") as file:
                file.write(slot.ident + "\\n")
"""


def test_of_three_publishes_at_once_each_run_is_written_by_one(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    started = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    written = (tmp_path / "written").read_text().split()
    assert sorted(written) == sorted(f"stem{i}-1" for i in range(40))
    events = [json.loads(line) for line in (tmp_path / "published.jsonl").open()]
    assert len(events) == 2 * 40


def test_a_content_that_comes_back_keeps_the_newest_id_it_was_given(ledger):
    publish(ledger, FIRST)
    publish(ledger, FIRST, anew=True)
    assert ledger.slot(FIRST, lambda ident: ident.endswith("-2")) is None  # the first is deleted
    assert ledger.ids("wandb", FIRST.destination) == {FIRST.run_id: f"{FIRST.stem}-2"}


def test_what_was_begun_only_is_not_known_to_be_there(ledger):
    with pytest.raises(RuntimeError), ledger.claim(FIRST, yes):
        raise RuntimeError("the connection is lost")
    assert ledger.ids("wandb", FIRST.destination) == {}
