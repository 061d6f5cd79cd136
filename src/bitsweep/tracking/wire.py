"""Workspaces and reports of wandb-workspaces as what is sent of them, and back, and there.

The library reads a specification from an address only; from a file it goes through the same models.
"""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2 import internal as report_models
from wandb_workspaces.workspaces import internal as models

Spec = dict[str, Any]


def spec_of(made: ws.Workspace | wr.Report) -> Spec:
    """What is sent of it."""
    spec: Spec = made._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return spec


def read_workspace(
    spec: Spec,
    entity: str = "",
    project: str = "",
    title: str = "",
    name: str = "",
    ident: str = "",
) -> ws.Workspace:
    """The library's own object of a specification. Raises ValueError where it does not fit."""
    _known(spec)
    model = models.View(
        entity=entity,
        project=project,
        display_name=title,
        name=name,
        id=ident,
        spec=models.WorkspaceViewspec.model_validate(spec),
    )
    return ws.Workspace._from_model(model)


def read_report(
    spec: Spec,
    entity: str = "",
    project: str = "",
    title: str = "",
    description: str = "",
    ident: str = "",
) -> wr.Report:
    """The library's own object of a specification. Raises ValueError where it does not fit."""
    _known(spec)
    model = report_models.ReportViewspec(
        id=ident,
        display_name=title,
        description=description,
        project=report_models.Project(name=project, entity_name=entity),
        spec=spec,
    )
    made = wr.Report._from_model(model)
    made.width = spec["width"]  # which the library forgets
    return made


def _known(value: Any) -> None:
    """Whether the library knows every panel; it would pass on what it does not know."""
    if isinstance(value, dict):
        kind = value.get("viewType")
        if kind is not None and kind not in report_models.panel_type_mapping:
            raise ValueError(f"no panel is called {kind}")
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        _known(item)


def save_workspace(spec: Spec, entity: str, project: str, name: str, title: str) -> str:
    """Save or replace the view ``name``; its address."""
    try:
        ident = str(models.get_view_dict(entity, project, name)["id"])
    except ValueError:  # there is none of that name
        ident = ""
    made = read_workspace(spec, entity, project, title, f"nw-{name}-v", ident)
    return str(made.save().url)


def save_report(
    spec: Spec, entity: str, project: str, ident: str, title: str, description: str
) -> str:
    """Save a report, in place of the one with the id ``ident`` where that is not empty."""
    made = read_report(spec, entity, project, title, description, ident)
    return str(made.save().url)
