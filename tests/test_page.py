"""The page: whole in one file, and what a Record holds is text in it, never markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import records

from bitsweep.record import Record
from bitsweep.report import page
from bitsweep.report.frame import frame

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


def attacked() -> list[Record]:
    rows = records.grid(timing=False)
    for row in rows:
        row.point |= {
            k: ATTACK for k, v in row.point.items() if isinstance(v, str) and k != "method"
        }
        row.reason = row.reason and ATTACK
        row.point["method"] = row.point["method"].replace("rtn", ATTACK)
    return rows


def rendered(rows: list[Record], **options: str) -> str:
    return page.render(frame(rows), options.get("title", "demo"), options.get("question", ""))


def test_a_record_full_of_markup_is_shown_as_text():
    text = rendered(attacked(), title=ATTACK, question=ATTACK)
    plain = Elements(rendered(records.grid(timing=False)))
    found = Elements(text)
    assert len(found.scripts) == len(plain.scripts) == 3
    assert not any(tag == "img" for tag, _ in found.tags)
    data = json.loads(found.scripts[1])
    assert data["title"] == ATTACK
    assert any(row["label"] == ATTACK for row in data["rows"])


def test_nothing_is_fetched():
    text = rendered(records.grid(timing=False))
    assert "default-src 'none'" in text
    for tag, attributes in Elements(text).tags:
        assert tag not in ("link", "iframe")
        assert "src" not in attributes


def test_the_page_marks_the_points_that_the_table_marks():
    from bitsweep.report.front import front

    table = frame(records.grid())
    marks = page.payload(table)["marks"]["file_mib|ppl/in_domain"]
    assert marks == dict(
        zip(table["run_id"], front(table, "file_mib", "ppl/in_domain"), strict=True)
    )


def test_every_point_is_on_the_page_with_its_status_and_reason():
    rows = page.payload(frame(records.grid()))["rows"]
    assert len(rows) == 27
    assert {row["status"] for row in rows} == {"ok", "refused", "failed"}
    assert all(row["reason"] for row in rows if row["status"] != "ok")
