"""``bitsweep show`` and the terminal: everything is there, and nothing is obeyed."""

from pathlib import Path

import pytest
import records

from bitsweep import cli, report
from bitsweep.store import Store

ATTACK = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202eabc"
COMMANDS = "\x1b\x07\x9b\u202e"


def attacked(folder: Path) -> list[str]:
    """Records with commands to a terminal in every string; their run_ids."""
    store = Store(folder / "evil")
    rows = records.grid()
    for row in rows:
        row.experiment = "evil"
        row.point |= dict.fromkeys(("model", "policy", "label", "transforms"), ATTACK)
        row.reason = row.reason and ATTACK
        row.provenance |= {"device": ATTACK, "command": ATTACK}
        said = {"metric": ATTACK, "prompt": ATTACK, "text": ATTACK, "full_precision": "x"}
        store.put(row, [{"plan": {ATTACK: ATTACK}}, said] if row.status == "ok" else [])
    return [row.run_id for row in rows]


def test_no_name_commands_the_terminal(tmp_path: Path, capsys):
    ids = attacked(tmp_path)
    report.summary(report.write(tmp_path / "evil"))
    for run_id in (ids[0], ids[-1]):
        assert cli.dispatch(["show", run_id, "--results-dir", str(tmp_path)]) == cli.OK
    text = capsys.readouterr().out
    assert "red" in text
    assert not set(COMMANDS) & set(text)


def test_show_names_every_metric_whole_and_a_difference_with_its_sign(tmp_path: Path, capsys):
    name = "acc_norm/a_task_with_a_very_long_name_that_no_terminal_of_eighty_columns_holds"
    off = records.Delta("difference", -0.25, -0.5, 0.125)
    metric = records.Metric(name, 0.5, "", "higher", "acc|v1", 0.25, 0.75, off)
    record = records.record("rtn", 4, metrics=[metric, records.ppl(2.6131 * 2, 2.6131, 7.8393)])
    Store(tmp_path / "demo").put(record, [])
    cli.dispatch(["show", record.run_id, "--results-dir", str(tmp_path)])
    text = capsys.readouterr().out
    assert f"  {name}  0.5 " in text
    assert " -0.25 [-0.5, +0.125]" in text
    assert " × 2 [1, 3]" in text


def test_show_prints_as_many_texts_of_each_task_as_asked(tmp_path: Path, capsys):
    said = [
        {"metric": task, "prompt": f"{task} {n}", "text": "a", "full_precision": "a" * (n % 2 + 1)}
        for task in ("bleu/one", "bleu/two")
        for n in range(5)
    ]
    record = records.record("rtn", 4, metrics=[records.ppl(3)])
    Store(tmp_path / "demo").put(record, said)
    place = ["--results-dir", str(tmp_path)]
    for asked, shown in (([], 3), (["--texts", "5"], 5), (["--texts", "0"], 0)):
        cli.dispatch(["show", record.run_id, *asked, *place])
        text = capsys.readouterr().out
        for task in ("bleu/one", "bleu/two"):
            assert f"{task}: 3 of 5 texts are the original's" in text
            assert text.count(f"prompt     {task}") == shown


@pytest.mark.parametrize("asked", [["show", "evil"], ["export", "evil", "--to", "gptq"]])
def test_an_experiment_in_place_of_a_run_id_is_told_where_those_are(asked, tmp_path: Path, capsys):
    attacked(tmp_path)
    assert cli.dispatch([*asked, "--results-dir", str(tmp_path)]) == cli.MISTAKE
    said = capsys.readouterr().err
    assert f"{asked[0]} evil: takes a RUN_ID" in said
    assert f"bitsweep recommend evil --results-dir {tmp_path}" in said
