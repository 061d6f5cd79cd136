"""The page in a real chromium: a thousand points, filters, sorting, a row, a link, hostile text.

Each test reads what a reader sees; none asks the page's script for its own opinion but where the
front is held against the tables'.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import records
from browser import Browser, executable
from test_page import ATTACK, attacked

from bitsweep import report
from bitsweep.record import Record
from bitsweep.report import labels, page, tables
from bitsweep.report.frame import frame
from bitsweep.report.front import front
from bitsweep.store import Store

pytestmark = pytest.mark.skipif(
    executable() is None, reason="needs chromium: apt-get install chromium"
)

READY = "document.documentElement?.dataset.ready === 'yes'"
SECONDS = 3.0
METHODS = ("rtn", "hqq", "gptq", "awq", "rotate + gptq", "smooth + awq")
COUNT = "document.getElementById('count').textContent"


def many(count: int) -> list[Record]:
    """``count`` points of one model, the reference first: noise decides who is on the front."""
    noise = random.Random(4)
    made = [record for record in records.grid(timing=False) if record.status != "ok"]
    made.insert(0, next(r for r in records.grid(timing=False) if r.point["bits"] is None))
    while len(made) < count:
        method, bits = noise.choice(METHODS), noise.choice([2, 3, 4, 8])
        group, seed = noise.choice([32, 64, 128]), len(made)
        base = records.quality("rtn", bits, group, "uniform")
        better = noise.uniform(0.5, 1.5)
        for index, metric in enumerate(base):
            if metric.name.startswith("ppl/") and metric.delta and metric.value:
                text, half = metric.name.partition("/")[2], 0.002 * noise.random()
                value = metric.value / metric.delta.value
                value *= 1 + (metric.delta.value - 1) * better
                base[index] = records.ppl(value, value * (1 - half), value * (1 + half), text)
        label = f"{method} w{bits}g{group} uniform number {seed}"
        point = {"seed": seed, "label": label}
        made.append(records.record(method, bits, group, metrics=base, **point))
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def rows() -> list[Record]:
    return many(1000)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, rows: list[Record]) -> str:
    """The page of a thousand points, each with a plan and two generations on disk."""
    folder = tmp_path_factory.mktemp("results") / "many"
    store = Store(folder)
    store.prepare()
    for row in rows:
        row.experiment = "many"
        said = {"metric": "bleu/translation", "prompt": "English: a cat\nGerman:"}
        texts = [("Eine Katze", "Eine Katze"), ("Ein Hund", "Eine Katze")]
        store.put(
            row,
            [
                {"plan": {"layers.0.q_proj": row.plan["summary"]}},
                *({**said, "text": text, "full_precision": full} for text, full in texts),
            ]
            if row.status == "ok"
            else [],
        )
    table = frame(rows)
    text = page.render(table, "many", "Which?", records=rows, stores={"many": store})
    (folder / "index.html").write_text(text, encoding="utf-8")
    return f"file://{folder / 'index.html'}"


def written(folder: Path, rows: list[Record]) -> str:
    """The address of a page of these rows alone."""
    path = folder / "index.html"
    path.write_text(page.render(frame(rows), "some", records=rows), encoding="utf-8")
    return f"file://{path}"


def texts(browser: Browser, selector: str) -> list[str]:
    return list(
        browser.run(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
        )
    )


def press(browser: Browser, field: str, chip: str) -> None:
    """Press a chip of a filter with the pointer."""
    browser.run(
        "(() => { document.querySelectorAll('[data-here]').forEach(e => delete e.dataset.here);"
        "[...document.querySelectorAll('#filters fieldset')]"
        f".find(f => f.querySelector('legend').textContent === {json.dumps(field)})"
        f".querySelectorAll('button').forEach(b => {{ if (b.textContent === {json.dumps(chip)}) "
        "b.dataset.here = '' }); })()"
    )
    browser.click("[data-here]")


def column(browser: Browser, head: str) -> list[str]:
    """What the rows in sight say under a head."""
    heads = [name.rstrip(" ↑↓") for name in texts(browser, "#table thead button")]
    place = heads.index(head) + 1
    return texts(browser, f"#table tbody tr[data-row] td:nth-child({place})")


def test_a_thousand_points_load_within_three_seconds_without_a_request_or_a_complaint(
    browser: Browser, url: str
) -> None:
    before = browser.seconds()
    wall = browser.open(url, READY)
    assert min(wall, browser.seconds() - before) < SECONDS
    assert browser.run(COUNT) == "999 points"
    assert browser.run("document.querySelectorAll('#chart .point').length") > 900
    assert browser.complaints() == []


def test_a_filter_leaves_its_points_and_a_second_press_brings_all_back(
    browser: Browser, url: str, rows: list[Record]
) -> None:
    browser.open(url, READY)
    press(browser, "bits", "4")
    four = sum(row.point["bits"] == 4 for row in rows)
    assert browser.run(COUNT) == f"{four} of 999 points"
    assert {w for w in column(browser, "weights") if w.startswith("w")} <= {
        "w4g32", "w4g64", "w4g128", "w4g48",
    }  # fmt: skip
    press(browser, "method", "awq")
    assert int(browser.run(COUNT).split()[0]) == sum(
        row.point["bits"] == 4 and row.point["method"] == "awq" for row in rows
    )
    press(browser, "bits", "4")
    press(browser, "method", "awq")
    assert browser.run(COUNT) == "999 points"


def test_a_head_sorts_and_only_the_rows_in_sight_are_in_the_page(
    browser: Browser, url: str
) -> None:
    browser.open(url, READY)
    browser.click("#table thead th:nth-child(5) button")
    head = texts(browser, "#table thead button")[4].rstrip(" ↑↓")
    shown = [float(text) for text in column(browser, head) if text]
    assert shown == sorted(shown)
    assert 10 < len(shown) < 80
    browser.click("#table thead th:nth-child(5) button")
    shown = [float(text) for text in column(browser, head) if text]
    assert shown == sorted(shown, reverse=True)
    last = (
        "[...document.querySelectorAll('#table tr[data-row]')].at(-1).getAttribute('aria-rowindex')"
    )
    browser.run("document.getElementById('scroller').scrollTop = 1e9")
    browser.wait(f"{last} === '1001'")


def test_a_row_opens_with_metrics_provenance_command_plan_and_generations(
    browser: Browser, url: str
) -> None:
    browser.open(url, READY)
    browser.run("document.getElementById('search').focus()")
    browser.click("#best tbody tr:nth-child(2) button")
    browser.wait("!document.getElementById('panel').hidden")
    said = browser.run("document.getElementById('panel').textContent")
    for part in ("0123456789ab", "AMD EPYC x2", "torch 2.13.0", "bitsweep sweep demo",
                 "bitsweep show ", "layers.0.q_proj", "1 of 2 the same", "Ein Hund",
                 "ppl|text:in_domain"):  # fmt: skip
        assert part in said, part
    assert browser.run("document.activeElement.id") == "panel-title"
    browser.key("Escape", 27)
    assert browser.run("document.getElementById('panel').hidden")
    assert browser.complaints() == []


def test_a_click_on_a_point_of_the_front_opens_it(browser: Browser, url: str) -> None:
    browser.open(url, READY)
    browser.run("document.querySelector('#chart .scatterlayer .trace:last-child .point').id = 'it'")
    browser.click("#it")
    browser.wait("!document.getElementById('panel').hidden")
    assert "on the front" in browser.run("document.querySelector('#panel .tag').textContent")
    assert browser.run("document.querySelectorAll('#over circle').length") == 1


SEEN = (
    "[location.hash, ...['count', 'table', 'panel'].map("
    "id => document.getElementById(id).textContent), document.getElementById('x').value]"
)


def test_the_link_restores_filters_axes_sorting_columns_and_the_open_row(
    browser: Browser, url: str
) -> None:
    browser.open(url, READY)
    press(browser, "bits", "3")
    browser.run(
        "(() => { const x = document.getElementById('x'); "
        "x.value = 'bits_per_weight'; x.onchange(); })()"
    )
    browser.click("#table thead th:nth-child(5) button")
    browser.click("#choose")
    browser.run(
        "[...document.querySelectorAll('#columns label')]"
        ".find(l => l.textContent.includes('run_id')).click()"
    )
    browser.click("#table tbody tr[data-row] button")
    before = browser.run(SEEN)
    assert "run_id" in before[2]
    assert before[3] != ""
    assert before[4] == "bits_per_weight"
    browser.open(url + before[0], READY)
    assert browser.run(SEEN) == before


def test_back_undoes_a_step(browser: Browser, url: str) -> None:
    browser.open(url, READY)
    press(browser, "bits", "4")
    press(browser, "bits", "3")
    both = browser.run(COUNT)
    browser.click("#table tbody tr:nth-child(2) button")
    browser.run("history.back()")
    browser.wait("document.getElementById('panel').hidden")
    assert browser.run(COUNT) == both
    browser.run("history.back()")
    browser.wait(f"{COUNT} !== {json.dumps(both)}")
    browser.run("history.back()")
    browser.wait(f"{COUNT} === '999 points'")


def test_the_front_in_the_browser_is_the_tables_front(
    browser: Browser, url: str, rows: list[Record]
) -> None:
    table = frame(rows)
    browser.open(url, READY)
    for x, y in (
        ("file_mib", "ppl/in_domain"),
        ("bits_per_weight", "ppl/out_of_domain"),
        ("file_mib", "top1/in_domain"),
        ("kl_mean/in_domain", "bleu/translation"),
    ):
        there = browser.run(
            "(() => { const m = front(rowsOf(state.model), "
            f"{json.dumps(x)}, {json.dumps(y)}); "
            "return Array.from({length: data.count}, (_, i) => m.get(i) || ''); })()"
        )
        assert there == list(front(table, x, y)), (x, y)
        assert "front" in there


def test_speeds_within_noise_are_tied_and_those_of_a_disturbed_machine_say_so(
    browser: Browser, tmp_path: Path
) -> None:
    points = ((8, 3.19, 0.46, 3.36), (4, 2.0, 1.9, 2.1), (3, 0.4, 0.35, 0.45), (2, 0.3, 0.2, 0.4))
    made = []
    for bits, value, lo, hi in points:
        speed = replace(records.number("decode_vs_bf16", value), lo=lo, hi=hi)
        made.append(
            records.record("rtn", bits, metrics=records.quality("rtn", bits, 64, "uniform"))
        )
        made.append(records.record("rtn", bits, kind="timing", metrics=[speed]))
    table = frame(made)
    marks = front(table, "decode_vs_bf16", "ppl/in_domain")
    assert dict(zip(table["bits"], marks, strict=True)) == {
        8: "front", 4: "tied", 3: "dominated", 2: "dominated"
    }  # fmt: skip
    browser.open(written(tmp_path, made), READY)
    there = browser.run(
        "(() => { const m = front(rowsOf(state.model), 'decode_vs_bf16', 'ppl/in_domain');"
        "return Array.from({length: data.count}, (_, i) => m.get(i)); })()"
    )
    assert there == list(marks)
    assert column(browser, "decode speed, × bf16") == ["3.1900 noisy", "2", "0.40000", "0.30000"]


def test_a_change_in_the_browser_is_the_tables(browser: Browser, tmp_path: Path) -> None:
    """To the last digit, though the page has fewer: 0.01353 is 0.014, and 0.0135 might not be."""
    ratios = (1.0001353233, 1.0000347951, 0.99994, 1.00449, 1.0453, 1.777, 3.4567, 12.3456)
    rows = [records.record("full_precision", None, None, None, metrics=[records.ppl(2.6131)])]
    for k, ratio in enumerate(ratios):
        ends = (2.6131 * (1 + (ratio - 1) * side) for side in (1, 0.9, 1.1))
        rows.append(records.record(f"m{k}", 4, 64, metrics=[records.ppl(*ends)]))
    table = frame(rows)
    browser.open(written(tmp_path, rows), READY)
    shown = browser.run(
        "Array.from({length: data.count}, (_, i) => changeText('ppl/in_domain', i))"
    )
    there = [tables.change(row, "ppl/in_domain", "ratio") for row in labels.rows(table)]
    assert [text.replace(" %", "") for text in shown] == there
    assert "+0.014 " in shown[1]


def test_the_keyboard_alone_finds_sorts_and_opens(browser: Browser, url: str) -> None:
    browser.open(url, READY)
    browser.run("document.querySelector('#filters button').focus()")
    browser.key("Enter", 13, "\r")
    assert " of 999 points" in browser.run(COUNT)
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    browser.run("document.querySelector('#table tbody button').focus()")
    before = browser.run("document.activeElement.closest('tr').getAttribute('aria-rowindex')")
    for _ in range(40):
        browser.key("ArrowDown", 40)
    after = browser.run("document.activeElement.closest('tr').getAttribute('aria-rowindex')")
    assert int(after) == int(before) + 40
    browser.key("Enter", 13, "\r")
    browser.wait("!document.getElementById('panel').hidden")


def test_a_row_that_is_closed_has_the_focus_again(browser: Browser, url: str) -> None:
    browser.open(url, READY)
    row = "document.activeElement.closest('tr')?.getAttribute('aria-rowindex')"
    browser.run("document.querySelector('#table tbody tr:nth-child(7) button').focus()")
    before = browser.run(row)
    browser.key("Enter", 13, "\r")
    browser.wait("!document.getElementById('panel').hidden")
    browser.key("Escape", 27)
    assert browser.run(row) == before


def test_a_print_has_every_row_and_no_gap(browser: Browser, tmp_path: Path) -> None:
    browser.open(written(tmp_path, many(200)), READY)
    lines = "document.querySelectorAll('#table tbody tr').length"
    few = browser.run(lines)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run(lines) == 200
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(lines) == few < 100


def test_a_refused_point_says_why_when_its_cell_is_focused(browser: Browser, url: str) -> None:
    browser.open(url, READY)
    browser.run("PARTS.forEach(settle)")
    browser.run(
        "[...document.querySelectorAll('#maps button.none')]"
        ".find(b => b.textContent === 'refused').focus()"
    )
    assert "group_size=48 does not divide" in browser.run(
        "document.getElementById('maps-said').textContent"
    )


def test_a_heat_map_of_many_methods_can_be_shown_whole(browser: Browser, tmp_path: Path) -> None:
    numbers = records.quality("rtn", 4, 64, "uniform")
    rows = [records.record(f"method {k}", 4, 64, metrics=numbers) for k in range(70)]
    browser.open(written(tmp_path, rows), READY)
    lines = "document.querySelectorAll('#maps tbody tr').length"
    assert browser.run(lines) == 60
    browser.click("#maps > button")
    assert browser.run(lines) == 70


def test_the_best_of_each_column_of_the_heat_map_is_framed(
    browser: Browser, tmp_path: Path
) -> None:
    rows = [
        records.record(method, 4, 64, metrics=records.quality(method, 4, 64, "uniform"))
        for method in ("rtn", "hqq", "gptq")  # of rising quality: records.GAIN
    ]
    browser.open(written(tmp_path, rows), READY)
    assert texts(browser, "#maps tr:has(.best) th") == ["gptq"]


def test_a_reason_stands_once_in_an_open_row_and_leaves_the_names_their_room(
    browser: Browser, tmp_path: Path
) -> None:
    rows = [
        row
        for row in records.grid()
        if row.point["method"] == "rtn" and row.point["group_size"] == 64
    ]
    for row in rows:  # as long as one of several engines
        for name, metric in row.metrics.items():
            if metric.reason:
                row.metrics[name] = replace(metric, reason=metric.reason + " and more" * 40)
    browser.open(written(tmp_path, rows), READY)
    browser.click("#table tbody tr:last-child button")  # 2 bits
    browser.wait("!document.getElementById('panel').hidden")
    said = browser.run("document.querySelector('#panel table').textContent")
    assert said.count("no packed kernel") == 1
    assert "and 2 more" in said
    assert browser.run("document.querySelector('#panel table td').offsetWidth") > 120


def test_filters_that_leave_nothing_say_so(browser: Browser, url: str) -> None:
    browser.open(url + "#is.bits=7", READY)
    assert browser.run(COUNT) == "0 of 999 points"
    assert "no point that passes" in browser.run("document.querySelector('#chart').textContent")
    browser.click("#clear")
    assert browser.run(COUNT) == "999 points"
    assert browser.complaints() == []


def test_a_link_to_an_axis_that_is_gone_hides_nothing(browser: Browser, url: str) -> None:
    browser.open(url + "#is.colour=red&is.bits=4", READY)
    four = browser.run(COUNT)
    browser.open(url + "#is.bits=4", READY)
    assert browser.run(COUNT) == four != "0 of 999 points"


def test_policies_stand_in_the_order_of_their_numbers(browser: Browser, tmp_path: Path) -> None:
    names = ["budget 3 of 2,4", "budget 3.25 of 2,4", "budget 3.5 of 2,4", "budget 10 of 2,4"]
    rows = [
        records.record("rtn", 4, 64, name, metrics=records.quality("rtn", 4, 64, name))
        for name in names[::-1]
    ]
    browser.open(written(tmp_path, rows), READY)
    assert [text for text in texts(browser, "#filters .chip") if "budget" in text] == names


def _hover_a_point(browser: Browser) -> None:
    """The chart may still be settling beside a panel that opened: its points move meanwhile."""
    for _ in range(40):
        at = browser.run(
            "(() => { const p = document.querySelector('#chart .scatterlayer .point'); "
            "p.scrollIntoView({block: 'center'}); const b = p.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for x, y in ((1, 1), at):
            browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        time.sleep(0.25)
        if browser.run("document.querySelectorAll('#chart .hoverlayer text').length"):
            return
    raise AssertionError("no point shows what it is")


def test_markup_in_every_string_is_text(browser: Browser, tmp_path: Path) -> None:
    rows = attacked(records.grid(timing=False))
    store = Store(tmp_path / ATTACK.replace("/", "-"))
    store.prepare()
    said = {"metric": f"bleu/{ATTACK}", "prompt": ATTACK, "references": [ATTACK]}
    for row in rows:
        row.experiment = ATTACK
        store.put(
            row, [{"plan": {ATTACK: ATTACK}}, {**said, "text": ATTACK, "full_precision": "x"}]
        )
    path = tmp_path / "index.html"
    path.write_text(
        page.render(
            frame(rows), ATTACK, ATTACK, [ATTACK], [(ATTACK, ATTACK)], (), rows, {ATTACK: store}
        ),
        encoding="utf-8",
    )
    browser.open(f"file://{path}", READY)
    browser.run("PARTS.forEach(settle)")
    scripts = browser.run("document.querySelectorAll('script').length")
    browser.click("#table tbody tr:nth-child(2) button")
    browser.wait("!document.getElementById('panel').hidden")
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for place in ("title", "question", "footer", "missing", "panel", "table", "filters"):
        assert ATTACK in browser.run(f"document.getElementById('{place}').textContent"), place
    _hover_a_point(browser)
    assert "<script>" in browser.run("document.querySelector('#chart .hoverlayer').textContent")
    assert browser.run("document.querySelectorAll('script').length") == scripts
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.complaints() == []


def test_a_phone_has_no_sideways_scroll_and_the_dark_scheme_is_the_systems(
    browser: Browser, url: str
) -> None:
    try:
        browser.size(390, 844)
        browser.colours("dark")
        browser.open(url, READY)
        browser.run("PARTS.forEach(settle)")
        assert browser.run("document.documentElement.scrollWidth") <= 390
        dark = browser.run("getComputedStyle(document.body).backgroundColor")
        browser.click("#theme")
        assert browser.run("getComputedStyle(document.body).backgroundColor") != dark
        assert "theme=light" in browser.run("location.hash") or browser.run(
            "localStorage.getItem('bitsweep-theme')"
        )
    finally:
        browser.run("localStorage.clear()")
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.colours("light")


def test_the_report_of_an_experiment_has_the_page(browser: Browser, tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    store.prepare()
    for row in records.grid():
        store.put(row, [{"plan": {"layers.0.q_proj": "w4g64"}}] if row.status == "ok" else [])
    written = report.write(tmp_path / "demo")
    browser.open(f"file://{written.page}", READY)
    assert browser.run(COUNT) == "26 points"
    assert browser.complaints() == []
