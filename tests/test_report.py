"""A report is made of the JSON alone: loaded, written, and written again to the same bytes."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

import pytest
import records
from rich.console import Console

from bitsweep import cli, report
from bitsweep.errors import UserError
from bitsweep.report import frame, origin, sheet, tables
from bitsweep.store import Store


def filled(folder: Path, rows: list | None = None) -> Path:
    store = Store(folder)
    store.prepare()
    for record in rows or records.grid(folder.name):
        store.put(record, [])
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> report.Report:
    folder = filled(tmp_path_factory.mktemp("results") / "demo")
    return report.write(folder, question="Is it so?", command="bitsweep sweep demo")


def contents(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("tables/*"), *folder.glob("figures/*"), folder / "index.html"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_load_reads_every_experiment_that_matches(tmp_path: Path):
    for name in ("one", "two"):
        filled(tmp_path / name)
    assert len(report.load(tmp_path / "one")) == 27
    assert set(report.load(f"{tmp_path}/*")["experiment"]) == {"one", "two"}


def test_no_records_is_a_mistake_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere: no Records there; run `bitsweep sweep NAME`"):
        report.load(tmp_path / "nowhere")


def test_tables_figures_and_page_regenerate_byte_for_byte(written: report.Report):
    before = contents(written.folder)
    assert len(before) == 5 * 3 + 3 * 2 + 1
    for name in before:
        (written.folder / name).unlink()
    report.write(written.folder, question="Is it so?")
    assert contents(written.folder) == before


def test_the_readme_is_made_once_and_then_left_alone(tmp_path: Path):
    folder = filled(tmp_path / "demo", [records.record("rtn", 4, metrics=[records.ppl(3)])])
    report.write(folder, question="Is it so?", command="bitsweep sweep demo")
    readme = folder / "README.md"
    for part in ("Is it so?", "```bash\nbitsweep sweep demo\n```", "AMD EPYC x2"):
        assert part in readme.read_text()
    readme.write_text("The answer is yes.")
    report.write(folder, question="Is it so?")
    assert readme.read_text() == "The answer is yes."


def test_tables_say_what_they_were_made_from(written: report.Report):
    for name in ("main.md", "main.tex"):
        text = (written.folder / "tables" / name).read_text()
        assert "51 records, sha256 " in text
        assert "commit 0123456789; bitsweep 0.1.0" in text
        assert "2026" not in text


def test_a_table_that_no_longer_applies_is_removed(tmp_path: Path):
    folder = filled(tmp_path / "demo", [records.record("rtn", 4, metrics=[records.ppl(3)])])
    (folder / "tables").mkdir()
    (folder / "tables" / "latency.md").write_text("old")
    report.write(folder)
    assert not (folder / "tables" / "latency.md").exists()


def test_two_experiments_are_reported_together_beside_them(tmp_path: Path):
    one = filled(tmp_path / "one", [records.record("rtn", 4, metrics=[records.ppl(3)])])
    two = filled(tmp_path / "two", [records.record("rtn", 3, metrics=[records.ppl(4)])])
    made = report.write(one, two)
    assert made.folder == tmp_path / "one+two"
    assert len(made.frame) == 2


def test_a_file_that_is_no_record_costs_no_report(tmp_path: Path, capsys):
    folder = filled(tmp_path / "demo", [records.record("rtn", 4, metrics=[records.ppl(3)])])
    (folder / "records" / "bad.json").write_text('{"schema": 1')
    assert len(report.write(folder).frame) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bitsweep: {folder}/records/bad.json: not a Record (")


def test_a_point_of_two_experiments_is_a_row_of_each(tmp_path: Path):
    rows = [records.record("rtn", 4, metrics=[records.ppl(3), records.number("file_mib", 2)])]
    one, two = (filled(tmp_path / name, rows) for name in ("one", "two"))
    for folder in (one, two):
        rows[0].experiment = folder.name
        filled(folder, rows)
    table = report.write(one, two).frame
    assert list(table["experiment"]) == ["one", "two"]
    assert table["run_id"].nunique() == 1


def test_a_reader_can_check_the_digest_of_records_with_sha256sum(tmp_path: Path):
    filled(tmp_path / "e", many(3))
    folder = tmp_path / "e" / "records"
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
    ]
    said = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    read = report.collect(tmp_path / "e")
    assert origin.origin(read).startswith(f"3 records, sha256 {said};")
    assert origin.origin(read[::-1]) == origin.origin(read)


def many(count: int) -> list:
    """Measured points that differ in their seeds, each with numbers of its own."""
    rows = []
    for seed in range(count):
        drawn = random.Random(seed)
        metrics = [
            *(records.ppl(v, 0.99 * v, 1.01 * v) for v in [drawn.uniform(2.7, 9)]),
            records.number("file_mib", drawn.uniform(1, 9), better="lower"),
        ]
        rows.append(records.record("gptq", 4, seed=seed, metrics=metrics))
    return rows


def test_ten_times_the_records_take_about_ten_times_as_long():
    def seconds(count: int) -> float:
        rows = many(count)
        started = time.process_time()
        made = tables.sheets(frame.frame(rows), origin.origin(rows))
        for each in made.values():
            for render in (sheet.markdown, sheet.as_csv, sheet.latex):
                render(each)
        return time.process_time() - started

    seconds(20)
    assert seconds(2000) < 25 * seconds(200)


def test_a_table_of_thousands_shows_the_front_and_its_csv_has_all():
    rows = many(tables.MOST_LINES + 1)
    main = tables.sheets(frame.frame(rows), "")["main"]
    assert len(main.values) == tables.MOST_LINES + 1
    assert {line.cells[-1] for line in main.lines} <= {"front", "tied"}
    left = tables.MOST_LINES + 1 - len(main.lines)
    assert main.notes[0] == (
        f"{left:,} more rows, none on the front or tied, stand in this table's CSV."
    )


def test_merged_points_are_kept_for_the_report(tmp_path: Path):
    pairs = [("hqq w4g64-sym", "same point as hqq w4g64: hqq ignores symmetric")]
    report.keep_merged(tmp_path, pairs)
    assert report.read_merged(tmp_path) == pairs
    report.keep_merged(tmp_path, [])
    assert report.read_merged(tmp_path) == []


def test_a_sweep_ends_in_its_front_its_failures_and_the_next_command(written: report.Report):
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    report.summary(written, console, next_command="bitsweep show 0123")
    text = console.export_text()
    assert "gptq            w2g64" in text
    assert "failed (1): hqq w2g128 uniform: RuntimeError: out of memory" in text
    assert "refused: 1" in text
    assert str(written.page) in text
    assert "next   bitsweep show 0123" in text


def test_show_prints_the_texts_among_the_details(tmp_path: Path, capsys):
    record = records.record("rtn", 4, metrics=[records.ppl(3)])
    said = {"metric": "bleu/t", "prompt": "Once", "text": "a cat", "full_precision": "a dog"}
    Store(tmp_path / "demo").put(record, [{"prompt": 128, "batch": 1}, said])
    place = ["--results-dir", str(tmp_path)]
    assert cli.dispatch(["show", record.run_id[:8], *place]) == cli.OK
    text = capsys.readouterr().out
    assert "bleu/t: 0 of 1 texts are the original's" in text
    assert "prompt     Once\n  this point a cat\n  original   a dog" in text
