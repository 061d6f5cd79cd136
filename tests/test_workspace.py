"""The view in W&B as code: what its file says, that it can be read back, and that it is applied."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import records
import wandb_server
from offline import log_out, runs

from bitsweep import report
from bitsweep.errors import UserError
from bitsweep.record import Record
from bitsweep.tracking import flat, workspace
from bitsweep.tracking.workspace import Specification

pytest.importorskip("wandb_workspaces")

ROOT = Path(__file__).parent.parent
COMMITTED = [
    name
    for name in ("demo", "methods", "policies", "latency", "memory", "sensitivity")
    if (ROOT / "results" / name / "records").is_dir()
]


def specified(found: list[Record] | None = None, **options: Any) -> Specification:
    return workspace.specification(found or records.grid(), "demo", "bitsweep", "me", **options)


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a specification, from the outside in."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


def panels(value: Any, kind: str) -> list[dict[str, Any]]:
    return [item["config"] for item in walk(value) if item.get("viewType") == kind]


def grids(made: Specification) -> list[dict[str, Any]]:
    """Panel grids of the report, those under a folded heading as well."""
    return [i["metadata"] for i in walk(made.report.spec) if i.get("type") == "panel-grid"]


def chosen(runs: dict[str, Any]) -> dict[str, tuple[str, list[Any]]]:
    """``section:name`` -> operator and values of the filter of a set of runs."""
    terms = runs["filters"]["filters"]
    assert [term.get("connector") for term in terms] == [None] + ["AND"] * (len(terms) - 1)
    assert not any(term["disabled"] for term in terms)
    return {
        f"{term['key']['section']}:{term['key']['name']}": (term["op"], term["value"])
        for term in terms
    }


def timed(method: str, mib: float, speed: float) -> Record:
    """A timing Record of random weights: no quality, and a size of its own."""
    numbers = [
        records.number("decode_mib", mib, "MiB", "lower"),
        records.number("decode_vs_bf16", speed),
    ]
    return records.record(method, 4, int(mib), kind="timing", metrics=numbers)


def test_the_front_is_size_against_perplexity_with_the_minimum_so_far_as_its_line():
    made = specified()
    (view,) = made.workspaces
    (front,) = panels(view.spec, "Scatter Plot")
    assert (front["xAxis"], front["yAxis"]) == ("summary:file_mib", "summary:ppl/in_domain")
    assert front["showMinYAxisLine"] is True
    assert "showMaxYAxisLine" not in front
    for same in panels(made.report.spec, "Scatter Plot"):
        assert (same["xAxis"], same["yAxis"]) == (front["xAxis"], front["yAxis"])
        assert same["showMinYAxisLine"] is True


def test_a_metric_of_which_more_is_better_has_the_maximum_so_far_as_its_line():
    made = specified([timed("rtn", 100, 2.0), timed("rtn", 200, 1.5)])
    (front,) = panels(made.workspaces[0].spec, "Scatter Plot")
    assert (front["xAxis"], front["yAxis"]) == ("summary:decode_mib", "summary:decode_vs_bf16")
    assert front["showMaxYAxisLine"] is True
    assert "showMinYAxisLine" not in front


def test_parts_quantized_alone_have_no_front():
    rows = [records.record("full_precision", None, None, None, metrics=[records.ppl(2.6)])]
    for part, value in (("0.mlp", 2.7), ("1.mlp", 2.9)):
        numbers = [records.ppl(value), records.number("file_mib", 10 + value, "MiB", "lower")]
        rows.append(records.record("rtn", 4, 64, f"only {part}", metrics=numbers))
        rows[-1].plan["notes"] = {"only": part}
    (alone,) = panels(specified(rows).workspaces[0].spec, "Scatter Plot")
    assert "showMinYAxisLine" not in alone
    for row in rows[1:]:
        rows.append(records.record("gptq", 4, 64, metrics=list(row.metrics.values())))
        rows[-1].point_id = rows[-1].run_id = records.identifier(row.run_id)
    (view,) = specified(rows).workspaces
    assert panels(view.spec, "Scatter Plot")[0]["showMinYAxisLine"] is True
    runs = view.spec["section"]["runSets"][0]
    assert chosen(runs)["config:policy.value"] == ("NIN", ["only 0.mlp", "only 1.mlp"])


def test_numbers_that_span_more_than_a_factor_of_five_are_on_a_logarithmic_axis():
    rows = []
    for group, ppl, size in ((32, 5.0, 10.0), (64, 50.0, 11.0)):
        numbers = [records.ppl(ppl), records.number("file_mib", size, "MiB", "lower")]
        rows.append(records.record("rtn", 4, group, metrics=numbers))
    spec = specified(rows).workspaces[0].spec
    (front,) = panels(spec, "Scatter Plot")
    assert front["yAxisLogScale"] is True
    assert "xAxisLogScale" not in front
    columns = panels(spec, "Parallel Coordinates Plot")[0]["columns"]
    assert [column["accessor"] for column in columns if column.get("log")] == [
        "summary:ppl/in_domain"
    ]


def test_each_method_has_a_front_of_its_own_runs():
    made = specified()
    folded = [i for i in walk(made.report.spec) if i.get("collapsedChildren")]
    (heading,) = folded
    found = {}
    for grid in (block["metadata"] for block in heading["collapsedChildren"]):
        (runs,) = grid["runSets"]
        ((_, (method,)),) = [v for k, v in chosen(runs).items() if k == "config:method.value"]
        assert len(panels(grid, "Scatter Plot")) == 1
        assert panels(grid, "Scatter Plot")[0]["chartTitle"].endswith(f": {method}")
        found[method] = set(grid["customRunColors"].values())
    assert set(found) == {"gptq", "hqq", "rtn"}
    assert len({color for colors in found.values() for color in colors}) == 3
    assert all("config:method.value" not in chosen(g["runSets"][0]) for g in grids(made)[:2])


def test_only_good_runs_of_this_experiment_and_model_are_shown():
    made = specified()
    runs = [made.workspaces[0].spec["section"]["runSets"][0]]
    runs += [grid["runSets"][0] for grid in grids(made)]
    assert len(runs) == 6  # the workspace; all, bars, and three methods
    for filters in map(chosen, runs):
        assert filters["run:group"] == ("IN", ["demo"])
        assert filters["config:status.value"] == ("IN", ["ok"])
        assert filters["run:tags"] == ("NIN", ["superseded"])
        assert filters["config:model.value"] == ("IN", ["reference"])
    kinds = [chosen(one)["run:jobType"][1] for one in runs]
    assert kinds[:3] == [["quality", "timing"], ["quality"], ["timing"]]


def test_parallel_coordinates_go_over_the_grid_and_the_front():
    for spec in (specified().workspaces[0].spec, specified().report.spec):
        (parallel,) = panels(spec, "Parallel Coordinates Plot")
        assert [column["accessor"] for column in parallel["columns"]] == [
            "config:method.value",
            "config:bits.value",
            "config:group_size.value",
            "config:policy.value",
            "summary:file_mib",
            "summary:ppl/in_domain",
        ]


def test_decode_speed_is_a_bar_where_it_was_measured_one_panel_for_each_hardware():
    made = specified()
    assert [bar["metrics"] for bar in panels(made.workspaces[0].spec, "Bar Chart")] == [
        ["decode_vs_bf16"]
    ]
    assert not panels(specified(records.grid(timing=False)).report.spec, "Bar Chart")
    rows = records.grid()
    for row in rows:
        if row.kind == "timing" and row.point["method"] == "rtn":
            row.provenance["device"] = "another"
    bars = [grid for grid in grids(specified(rows)) if panels(grid, "Bar Chart")]
    where = [chosen(grid["runSets"][0])["config:machine.value"][1] for grid in bars]
    assert where == [["AMD EPYC x2"], ["another"]]


def test_bars_are_sorted_by_speed_and_the_other_runs_by_cost():
    made = specified()
    front, bars = (
        next(grid for grid in grids(made) if panels(grid, kind))["runSets"][0]["sort"]["keys"]
        for kind in ("Scatter Plot", "Bar Chart")
    )
    assert [(key["key"]["name"], key["ascending"]) for key in front] == [("file_mib", True)]
    assert [(key["key"]["name"], key["ascending"]) for key in bars] == [("decode_vs_bf16", False)]


def test_runs_are_compared_side_by_side_in_what_differs():
    made = specified()
    for spec in (made.workspaces[0].spec, made.report.spec):
        assert panels(spec, "Run Comparer") == [{"diffOnly": "split"}]


def test_a_model_has_a_workspace_and_a_heading_and_the_report_says_how_to_read():
    rows = [*records.grid(timing=False), *second_model()]
    made = specified(rows, question="Which <method>?", command="bitsweep publish demo --workspace")
    assert [view.title for view in made.workspaces] == [
        "demo fronts: other",
        "demo fronts: reference",
    ]
    assert len({view.name for view in made.workspaces}) == 2
    text = json.dumps(made.report.spec)
    for said in ("Which <method>?", "bitsweep publish demo --workspace", "How to read"):
        assert said in text
    headings = [
        item["children"][0]["text"] for item in walk(made.report.spec) if item.get("level") == 2
    ]
    assert headings == ["How to read", "other", "reference"]


def second_model(name: str = "other") -> list[Record]:
    rows = []
    for bits in (4, 8):
        numbers = records.quality("rtn", bits, 64, "uniform")
        rows.append(records.record("rtn", bits, 64, model=name, metrics=numbers))
    return rows


def test_two_checkpoints_of_one_name_are_told_apart_by_their_hash():
    rows = [*records.grid(timing=False), *second_model("reference")]
    for row in rows[-2:]:
        row.model["sha256"] = "f" * 64
        row.point_id = row.run_id = records.identifier(row.run_id)
    made = specified(rows)
    assert [view.title for view in made.workspaces] == [
        "demo fronts: reference@" + sha[:8]
        for sha in sorted([rows[0].model["sha256"], "f" * 64], key=lambda s: s[:8])
    ]
    for view in made.workspaces:
        (sha,) = chosen(view.spec["section"]["runSets"][0])["config:checkpoint_sha256.value"][1]
        assert view.title.endswith(sha[:8])


def test_colours_are_those_of_the_runs_as_they_are_called_over_there():
    rows = records.grid(timing=False)
    first = rows[1].run_id
    colors = specified(rows, ids={first: "abc-7"}).workspaces[0].spec["section"]["customRunColors"]
    assert "abc-7" in colors
    assert f"{first[:32]}-1" not in colors
    assert f"{rows[2].run_id[:32]}-1" in colors
    assert len(colors) == 25


def published(found: list[Record]) -> set[str]:
    """Every name that these Records have over there, as panels write it."""
    names = set()
    for record in found:
        names |= {f"summary:{name}" for name in flat.numbers(record)}
        names |= {f"config:{name}" for name in flat.config(record)}
    return names | {"run:displayName", "run:group", "run:jobType", "run:tags"}


def named(spec: dict[str, Any]) -> set[str]:
    """Every name of a run that a specification looks up."""
    found = set()
    for item in walk(spec):
        found |= {item[key] for key in ("xAxis", "yAxis", "accessor") if ":" in item.get(key, "")}
        found |= {f"summary:{name}" for name in item.get("metrics", [])}
        found |= set(item.get("columnOrder", []))
        found |= set(re.findall(r"\$\{(.*?)\}", item.get("legendTemplate", "")))
        if "key" in item:
            found.add(f"{item['key']['section']}:{item['key']['name']}")
    return {name.removesuffix(".value") for name in found}


@pytest.mark.parametrize("name", COMMITTED)
def test_every_name_is_one_that_a_record_of_the_experiment_publishes(name):
    found = report.collect(ROOT / "results" / name)
    made = workspace.specification(found, name, "bitsweep")
    known = published(found)
    looked_up = named(made.report.spec).union(*(named(view.spec) for view in made.workspaces))
    assert looked_up >= {"config:method", "config:policy", "summary:file_mib"} or name == "latency"
    assert looked_up <= known
    specs = [made.report.spec, *(view.spec for view in made.workspaces)]
    together = [{front["xAxis"], front["yAxis"]} for front in panels(specs, "Scatter Plot")]
    together += [
        {column["accessor"].removesuffix(".value") for column in parallel["columns"]}
        for parallel in panels(specs, "Parallel Coordinates Plot")
    ]
    by_record = [published([record]) for record in found if record.status == "ok"]
    for axes in together:  # a panel joins nothing: one run must have them all
        assert any(axes <= names for names in by_record)


def test_the_file_read_by_the_librarys_own_models_is_the_same_view(tmp_path):
    from bitsweep.tracking import wire

    made = specified([*records.grid(), *second_model()], question="Which?")
    read = workspace.load(workspace.write(made, tmp_path))
    assert read == made
    for view in read.workspaces:
        loaded = wire.read_workspace(view.spec, wire.Place("me", "bitsweep", view.title))
        assert next(section.name for section in loaded.sections) == "Points"
        assert wire.spec_of(loaded) == view.spec
    assert wire.spec_of(wire.read_report(read.report.spec)) == read.report.spec


def test_the_file_has_no_random_id_and_no_date(tmp_path):
    first = workspace.write(specified(), tmp_path).read_bytes()
    shuffled = list(reversed(records.grid()))
    assert workspace.write(specified(shuffled), tmp_path).read_bytes() == first
    ids = [i["__id__"] for i in walk(json.loads(first)) if "viewType" in i]
    assert len(ids) == len(set(ids)) == 11
    assert b'"createdAt"' not in first


def test_a_value_with_an_equals_sign_or_a_quote_is_filtered_by_as_it_is(tmp_path):
    name = "it's a=b < c within_last 5 days"
    made = workspace.load(workspace.write(specified(second_model(name)), tmp_path))
    runs = made.workspaces[0].spec["section"]["runSets"][0]
    assert chosen(runs)["config:model.value"] == ("IN", [flat.plain(name)])
    assert made.workspaces[0].title == "demo fronts"


def test_titles_hold_none_of_the_symbols_that_the_app_refuses():
    from wandb_workspaces.utils.validators import validate_no_emoji

    rows = [*records.grid(timing=False), *second_model("a × b + c = 😀")]
    for view in specified(rows).workspaces:
        assert validate_no_emoji(view.title)
    assert specified(rows).workspaces[0].title == "demo fronts: a b c"


def test_no_path_of_this_machine_is_in_what_is_sent():
    made = specified(
        second_model("/home/me/models/llama"),
        command="bitsweep publish demo --workspace --results-dir /home/me/results",
    )
    sent = json.dumps([made.report.spec, *(view.spec for view in made.workspaces)])
    assert "llama" in sent
    assert "/home/me" not in sent


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "{",
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"Scatter Plot"', '"Scatter Plott"'),
        lambda text: text.replace('"xAxisLogScale"', '"xAxisLogSkale"'),
        lambda text: text.replace('"project": "bitsweep",', ""),
    ],
)
def test_a_file_that_would_lose_a_part_is_not_loaded(tmp_path, spoil):
    path = workspace.write(specified(), tmp_path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UserError, match=r"workspace.json: no view for W&B .* write it anew"):
        workspace.load(path)


def test_an_experiment_without_a_good_point_has_no_view():
    failed = records.record("rtn", 4, status="failed", reason="RuntimeError: no")
    with pytest.raises(UserError, match="publish demo --workspace: no point of it is ok"):
        specified([failed])


def test_without_the_library_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsweep.tracking.panels", None)
    monkeypatch.delattr("bitsweep.tracking.panels", raising=False)
    with pytest.raises(UserError, match=r"pip install 'bitsweep\[wandb-workspaces\]'"):
        specified()


def test_a_person_without_a_login_is_told_the_two_commands(tmp_path):
    made = specified(command="bitsweep publish demo --workspace tracker.project=mine")
    line = workspace.how_to_apply(made, workspace.write(made, tmp_path))
    assert line.endswith(": wandb login, then bitsweep publish demo --workspace "
                         "tracker.project=mine")  # fmt: skip


def test_publish_writes_the_view_of_the_runs_that_it_wrote(tmp_path, monkeypatch):
    from bitsweep import cli
    from bitsweep.store import Store

    log_out(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "results" / "demo")
    store.prepare()
    for record in records.grid():
        if record.point["method"] == "gptq" and record.point["bits"] in (4, 8):
            store.put(record, [])
    asked = ["demo", "--workspace", "tracker=wandb", "tracker.mode=offline", "tracker.project=mine"]
    assert cli.dispatch(["publish", *asked]) == cli.OK
    made = workspace.load(store.folder / "workspace.json")
    assert (made.project, made.entity) == ("mine", None)
    section = made.workspaces[0].spec["section"]
    filters = chosen(section["runSets"][0])
    written = [run for run in runs(tmp_path / ".bitsweep") if run["job_type"] != "report"]
    assert len(written) == 8
    assert {run["id"] for run in written} == set(section["customRunColors"])
    for run in written:
        assert run["group"] in filters["run:group"][1]
        assert run["job_type"] in filters["run:jobType"][1]
        assert run["config"]["status"] in filters["config:status.value"][1]
        assert run["config"]["model"] in filters["config:model.value"][1]
        front = {"file_mib", "ppl/in_domain"} <= set(run["summary"])
        assert front == (run["job_type"] == "quality")
        assert ("decode_vs_bf16" in run["summary"]) == (run["job_type"] == "timing")


APPLY = """
import sys
from bitsweep.errors import UserError
from bitsweep.tracking import workspace
try:
    for _ in range(2):
        done = workspace.apply(workspace.load(sys.argv[1]), timeout_s=int(sys.argv[2]))
        print(*done.workspaces, done.report)
except UserError as mistake:
    print(mistake, file=sys.stderr)
"""


def applied(path: Path, url: str, timeout_s: int = 20) -> subprocess.CompletedProcess[str]:
    """The file applied twice, in a process of its own: wandb reads its settings once."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": wandb_server.KEY,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", APPLY, str(path), str(timeout_s)]
    return subprocess.run(
        command, env=environment, cwd=path.parent, capture_output=True, text=True, timeout=60
    )


def test_a_server_that_is_not_reached_costs_one_line_and_the_file_is_kept(tmp_path):
    path = workspace.write(specified(), tmp_path)
    kept = path.read_bytes()
    done = applied(path, "http://127.0.0.1:9", timeout_s=1)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tracker=wandb: the view was not applied (")
    assert line.endswith("to try again: bitsweep publish demo --workspace")
    assert path.read_bytes() == kept


def test_a_view_that_is_applied_again_is_replaced_not_added(tmp_path):
    made = specified([*records.grid(), *second_model()])
    path = workspace.write(made, tmp_path)
    with wandb_server.serving() as server:
        done = applied(path, server.url)
    first, second = done.stdout.splitlines()
    assert first == second
    assert len(first.split()) == 3
    kept = list(server.views.values())
    assert [view["type"] for view in kept] == ["project-view", "project-view", "runs"]
    sent = [json.loads(view["spec"]) for view in kept]
    assert sent == [*(view.spec for view in made.workspaces), made.report.spec]
