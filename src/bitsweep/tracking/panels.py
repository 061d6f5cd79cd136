"""Panels of wandb-workspaces, and the workspaces and reports made of them, as the app reads them.

The library gives panels random ids and looks a run set's project up on the server; here ids come
from where a panel stands, and a run set has no project of its own, which means the report's.
Filters are handed over as they are sent, since the library's text form of them loses values with
``=`` or a quote in them. Both use what the library keeps behind one underscore, where 0.4 has no
other door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from bitsweep.artifacts import digest
from bitsweep.record import Kind
from bitsweep.tracking.offline import SUPERSEDED
from bitsweep.tracking.view import Axis, Block, Front, Values
from bitsweep.tracking.wire import Spec, spec_of

SHOWN = 100
"""Bars of one panel at most."""
WIDTH = 24
Looks = Mapping[str, tuple[str, str]]
"""run_id of a Record -> id of its run over there, its colour."""


def workspace(block: Block, looks: Looks) -> Spec:
    """A saved view of one model: its front, its speed, its runs side by side."""
    sections = [_section("Points", _points(block), columns=2)]
    kinds, place = block.shown
    if block.speed is not None:
        where = (
            _said(place or block.hardware[0])
            if place or len(block.hardware) == 1
            else "all hardware"
        )
        sections.append(_section("Speed", [_bar(block.speed, block.engines, where)], columns=1))
    sections.append(_section("Side by side", [wr.RunComparer(diff_only="split")], columns=1))
    order = [ws.Ordering(ws.Summary(axis.name), not axis.higher) for axis in _ranked(block, kinds)]
    made = ws.Workspace(
        entity="",
        project="",
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=max(SHOWN, len(block.records))),
        runset_settings=ws.RunsetSettings(
            order=order,
            pinned_columns=_columns(block),
            run_settings={
                ident: ws.RunSettings(color=color) for ident, color in _colored(block, looks, kinds)
            },
        ),
    )
    _filter(made, made.runset_settings.filters, block, kinds, block.without, place)
    return spec_of(made)


def report(
    blocks: Sequence[Block], looks: Looks, experiment: str, question: str, command: str
) -> Spec:
    """A question, how to read, the command that makes it again, and panels for each model."""
    body: list[Any] = [wr.P(question)] if question else []
    body += [wr.H2("How to read"), wr.UnorderedList(items=_how_to_read(blocks))]
    body += [wr.P("Made by, and made anew by:"), wr.CodeBlock(code=command, language="markdown")]
    for block in blocks:
        body += _model(block, looks)
    made = wr.Report(project="", entity="", title=experiment, blocks=body, width="fluid")
    return spec_of(made)


def _how_to_read(blocks: Sequence[Block]) -> list[str]:
    fronts = [block.front for block in blocks if block.front is not None]
    lines = ["A point is a run: one measured point of the sweep. Colours are methods."]
    for front in dict.fromkeys((f.y.name, f.y.higher, f.x.name) for f in fronts):
        y, higher, x = front
        better = "higher" if higher else "lower"
        lines.append(f"{y} against {x}: {better} is better, as is further to the left.")
    if any(front.line for front in fronts):
        lines += [
            "The line joins the best so far from left to right: what lies on it is the front. "
            "Full precision is on the right, as that with which the others are compared.",
            "The line knows nothing of noise: bitsweep report says which points are tied with the "
            "front; their paired intervals are the columns that end in _delta_lo and _delta_hi.",
        ]
    if any(block.speed is not None for block in blocks):
        lines.append(
            "Quality and times of a point are two runs with one point_id. Times are compared "
            "within one machine and number of threads."
        )
    return [
        *lines,
        "Records on disk are the source of all this. The command below replaces this report, "
        "with whatever was edited in it.",
    ]


def _model(block: Block, looks: Looks) -> list[Any]:
    """The panel grids of one model."""
    panels = _points(block)
    for panel, left in zip(panels, (0, WIDTH // 2), strict=False):
        width = WIDTH // len(panels)
        panel.layout = wr.Layout(x=left, y=0, w=width, h=10)
    comparer = wr.RunComparer(diff_only="split", layout=wr.Layout(x=0, y=10, w=WIDTH, h=10))
    place = block.shown[1]
    kinds = (block.front.kind,) if block.front else block.kinds
    made: list[Any] = [
        wr.H2(block.title),
        _grid(block, [*panels, comparer], looks, block.title, kinds, block.without, place),
    ]
    made += _speeds(block, looks)
    if block.front is not None and len(block.front.methods) > 1:
        grids = [
            _grid(
                block,
                [_scatter(block.front, method, wr.Layout(x=0, y=0, w=WIDTH, h=10))],
                looks,
                f"{block.title} {method}",
                kinds,
                block.without,
                {"method": (method,), **place},
                hidden=True,
            )
            for method in block.front.methods
        ]
        made.append(wr.H3(f"{block.title}: one method at a time", collapsed_blocks=grids))
    return made


def _speeds(block: Block, looks: Looks) -> list[Any]:
    """A grid of bars for each machine and number of threads."""
    made: list[Any] = []
    for hardware in block.hardware:
        where = _said(hardware)
        if block.speed is not None:
            bar = _bar(block.speed, block.engines, where)
            bar.layout = wr.Layout(x=0, y=0, w=WIDTH, h=10)
            name = f"{block.title} {where}"
            made.append(_grid(block, [bar], looks, name, ("timing",), {}, hardware))
    return made


def _said(hardware: Mapping[str, Values]) -> str:
    """``AMD EPYC x2, 1 thread``."""
    words = {name: str(value) for name, (value,) in hardware.items()}
    if "threads" in words:
        words["threads"] += " thread" if words["threads"] == "1" else " threads"
    return ", ".join(words.values())


def _points(block: Block) -> list[Any]:
    """The front, where there is one, and how the point's columns go with its numbers."""
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(name)) for name in block.grid]
    columns += [
        wr.ParallelCoordinatesPlotColumn(
            wr.SummaryMetric(axis.name), display_name=axis.title, log=axis.log or None
        )
        for axis in block.numbers
    ]
    title = " × ".join(block.grid)
    parallel = wr.ParallelCoordinatesPlot(columns=columns, title=title)
    if block.front is None:
        return [parallel]
    return [_scatter(block.front, "all methods", wr.Layout()), parallel]


def _scatter(front: Front, of: str, layout: wr.Layout) -> wr.ScatterPlot:
    """The frontier line is the running minimum or maximum from left to right: costs are on x."""
    return wr.ScatterPlot(
        title=f"{front.y.name} against {front.x.name}: {of}",
        x=wr.SummaryMetric(front.x.name),
        y=wr.SummaryMetric(front.y.name),
        log_x=front.x.log or None,
        log_y=front.y.log or None,
        running_ymin=True if front.line and not front.y.higher else None,
        running_ymax=True if front.line and front.y.higher else None,
        layout=layout,
    )


def _bar(speed: Axis, engines: bool, where: str) -> wr.BarPlot:
    better = "higher" if speed.higher else "lower"
    return wr.BarPlot(
        title=f"{speed.title} ({better} is better), {where}",
        metrics=[speed.name],
        max_runs_to_show=SHOWN,
        max_bars_to_show=SHOWN,
        legend_template="${run:displayName}" + " ${config:engine}" * engines,
    )


def _section(name: str, panels: list[Any], columns: int) -> ws.Section:
    for index, panel in enumerate(panels):
        panel._id = _ident(name, index)
    layout = ws.SectionLayoutSettings(columns=min(columns, len(panels)), rows=1)
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)


def _grid(
    block: Block,
    panels: list[Any],
    looks: Looks,
    name: str,
    kinds: Sequence[Kind],
    without: Mapping[str, Values],
    also: Mapping[str, Values] | None = None,
    hidden: bool = False,
) -> wr.PanelGrid:
    """Panels over the runs of one model, of which ``also`` narrows the choice."""
    order = [wr.OrderBy(wr.SummaryMetric(a.name), not a.higher) for a in _ranked(block, kinds)]
    columns = _columns(block)
    runset = wr.Runset(name=name, order=order, pinned_columns=columns, lock_columns=True)
    runset._id = _ident("runs", name)
    _filter(runset, runset.filters, block, kinds, without, also)
    for index, panel in enumerate(panels):
        panel._id = _ident(name, index)
    return wr.PanelGrid(
        runsets=[runset],
        panels=panels,
        hide_run_sets=hidden,
        custom_run_colors=dict(_colored(block, looks, kinds, also or {})),
    )


def _filter(
    runs: Any,
    text: Any,
    block: Block,
    kinds: Sequence[Kind],
    without: Mapping[str, Values],
    also: Mapping[str, Values] | None = None,
) -> None:
    """Only this experiment's good runs; lists throughout, as W&B asks for in properties of runs."""
    terms = [
        expr.Metric("Group").isin(list(block.experiments)),
        expr.Metric("JobType").isin(list(kinds)),
        expr.Tags().notin([SUPERSEDED]),
        _column("status").isin(["ok"]),
    ]
    chosen = {**block.where, **(also or {})}
    terms += [_column(name).isin(list(values)) for name, values in chosen.items()]
    terms += [_column(name).notin(list(values)) for name, values in without.items()]
    runs._stashed_filters_v2 = expr.filters_tree_to_v2(expr.And(*terms).to_model())
    runs._stashed_filter_string = text


def _column(name: str) -> expr.Config:
    """A column of runs' config as the app itself names it in filters: W&B keeps its ``value``."""
    return expr.Config(f"{name}.value")


def _ranked(block: Block, kinds: Sequence[Kind]) -> list[Axis]:
    """What runs are sorted by: their cost, then their speed; where there are only times, that."""
    speed = [block.speed] if block.speed is not None and "timing" in kinds else []
    cost = [] if speed and "quality" not in kinds else block.numbers[:1]
    return [*cost, *speed]


def _columns(block: Block) -> list[str]:
    """The columns of the table of runs, as W&B writes them."""
    names = [*block.numbers, *([block.speed] if block.speed else [])]
    metrics = [name for axis in names for name in (axis.name, axis.delta) if name]
    hardware = ("engine", "threads") if block.engines else ()
    return [
        "run:displayName",
        *(f"config:{name}.value" for name in dict.fromkeys((*block.grid, *hardware))),
        *(f"summary:{name}" for name in dict.fromkeys(metrics)),
    ]


def _colored(
    block: Block,
    looks: Looks,
    kinds: Sequence[Kind] = ("quality", "timing"),
    also: Mapping[str, Values] | None = None,
) -> list[tuple[str, str]]:
    wanted = (also or {}).get("method")
    return [
        looks[record.run_id]
        for record in block.records
        if record.run_id in looks
        and record.kind in kinds
        and (wanted is None or record.point["method"] in wanted)
    ]


def _ident(*place: object) -> str:
    return digest([str(part) for part in place])[:12]
