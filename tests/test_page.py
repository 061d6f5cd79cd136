"""The page: whole in one file, and what a Record holds is text in it, never markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import records

from bitsweep.record import Record
from bitsweep.report import page
from bitsweep.report.frame import frame
from bitsweep.report.page import origins, payload
from bitsweep.store import Store

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def attacked(rows: list[Record], attack: str = ATTACK) -> list[Record]:
    """``rows`` with ``attack`` in every string that is not a word of ours."""
    for row in rows:
        row.point |= {
            k: attack for k, v in row.point.items() if isinstance(v, str) and k != "method"
        }
        row.reason = row.reason and attack
        row.point["method"] = row.point["method"].replace("rtn", attack)
        row.provenance |= dict.fromkeys(("command", "device", "utc", "commit"), attack)
    return rows


def rendered(rows: list[Record], **options: Any) -> str:
    return page.render(frame(rows), options.pop("title", "demo"), records=rows, **options)


def content(text: str) -> dict[str, Any]:
    """The data as the page's script reads it."""
    return dict(json.loads(page.unpacked(Elements(text).scripts[0])))


def strings(column: dict[str, list[Any]]) -> list[Any]:
    return [None if i < 0 else column["v"][i] for i in column["i"]]


def test_a_record_full_of_markup_is_shown_as_text():
    text = rendered(attacked(records.grid(timing=False)), title=ATTACK, question=ATTACK)
    plain = Elements(rendered(records.grid(timing=False)))
    found = Elements(text)
    assert len(found.scripts) == len(plain.scripts) == 3
    assert not any(tag == "img" for tag, _ in found.tags)
    assert content(text)["title"] == ATTACK
    assert ATTACK in content(text)["columns"]["label"]["v"]


def test_nothing_is_fetched():
    text = rendered(records.grid(timing=False))
    assert "default-src 'none'" in text
    for tag, attributes in Elements(text).tags:
        assert tag not in ("link", "iframe")
        assert "src" not in attributes


def test_every_point_is_on_the_page_with_its_status_and_reason():
    found = payload.of(frame(records.grid()))
    status, reason = (strings(found["columns"][name]) for name in ("status", "reason"))
    assert found["count"] == len(status) == 27
    assert set(status) == {"ok", "refused", "failed"}
    assert all(why for said, why in zip(status, reason, strict=True) if said != "ok")


def test_the_page_has_the_numbers_of_the_frame_to_seven_digits():
    table = frame(records.grid())
    found = payload.of(table)["numbers"]["ppl/in_domain"]
    for key, column in (("v", "ppl/in_domain"), ("d", "ppl/in_domain.delta")):
        for here, there in zip(found[key], table[column], strict=True):
            assert (here is None) == (there != there)
            assert here is None or abs(here / there - 1) < 1e-6


def test_latencies_of_other_shapes_stand_in_their_table_alone():
    rows = records.grid()
    timed = next(row for row in rows if row.kind == "timing" and row.metrics["decode_ms"].value)
    timed.metrics["decode_ms/b4p512t1"] = records.number("decode_ms/b4p512t1", 3.0, "ms", "lower")
    names = payload.measured(frame(rows))
    assert "decode_ms" in names
    assert "decode_ms/b4p512t1" not in names


def test_a_row_says_how_to_make_it_again_without_the_paths_of_this_machine():
    rows = records.grid(timing=False)
    rows[0].provenance["command"] = "bitsweep run model.path=/home/me/secret/llama bits=4"
    rows[0].model["path"] = "/home/me/secret/llama"
    found = content(rendered(rows))["records"]
    assert "bitsweep run model.path=…/llama bits=4" in found["command"]["v"]
    assert "secret" not in json.dumps(found)


def test_a_relative_path_and_a_hub_name_stay_as_they_were_typed():
    command = "bitsweep run model.path=models/llama data=a/b 'method.clip=mse'"
    assert origins.without_paths(command) == command


def test_points_near_the_front_have_their_plan_and_generations(tmp_path: Path):
    rows = [row for row in records.grid(timing=False) if row.status == "ok"]
    store = Store(tmp_path / "demo")
    store.prepare()
    for row in rows:
        said = {"metric": "bleu/t", "prompt": "Say", "text": row.run_id, "full_precision": "same"}
        store.put(row, [{"plan": {"layers.0": "w4g64"}}, {"probe": "generation", **said}])
    found = content(rendered(rows, stores={"demo": store}))["details"]
    table = frame(rows)
    assert found["left"] == 0
    assert set(found["plans"]) == set(found["texts"]) == {str(i) for i in range(len(table))}
    assert [found["words"][i] for i in found["plans"]["0"]] == ["layers.0", "w4g64"]
    task = found["texts"]["0"][0]
    assert (task["task"], task["all"], task["same"]) == ("bleu/t", 1, 0)
    assert [found["words"][i] for i in task["rows"][0]] == ["Say", table["run_id"][0], "same", ""]


def test_details_stop_at_their_limit_nearest_to_the_front_first(
    tmp_path: Path, monkeypatch: Any
) -> None:
    from bitsweep.report.front import front
    from bitsweep.report.page import details

    rows = [row for row in records.grid(timing=False) if row.status == "ok"]
    table = frame(rows)
    marks = front(table, "file_mib", "ppl/in_domain")
    near = {str(i) for i, mark in enumerate(marks) if mark in ("reference", "front")}
    monkeypatch.setattr(details, "MOST_POINTS", len(near))
    store = Store(tmp_path / "demo")
    store.prepare()
    for row in rows:
        store.put(row, [{"plan": {"layers.0": "w4g64"}}])
    found = details.of(table, {"demo": store})
    assert len(found["plans"]) == len(near)
    assert found["left"] == len(rows) - len(near)
    bits = front(table, "bits_per_weight", "ppl/in_domain")
    kept = marks.isin(["reference", "front"]) | bits.isin(["reference", "front"])
    assert all(kept[int(place)] for place in found["plans"])
