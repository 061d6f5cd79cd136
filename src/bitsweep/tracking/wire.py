"""Workspaces and reports of wandb-workspaces as what is sent of them, and back, and there.

The library reads a specification from an address only; from a file it goes through the same models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2 import internal as report_models
from wandb_workspaces.workspaces import internal as models

Spec = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a view or a report is over there; in a file it is nowhere."""

    entity: str = ""
    project: str = ""
    title: str = ""


NOWHERE = Place()


def spec_of(made: ws.Workspace | wr.Report) -> Spec:
    """What is sent of it."""
    spec: Spec = made._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return spec


def read_workspace(
    spec: Spec, at: Place = NOWHERE, name: str = "", ident: str = ""
) -> ws.Workspace:
    """The library's own object of a specification. Raises ValueError where it does not fit."""
    _known(spec)
    model = models.View(
        entity=at.entity,
        project=at.project,
        display_name=at.title,
        name=name,
        id=ident,
        spec=models.WorkspaceViewspec.model_validate(spec),
    )
    return ws.Workspace._from_model(model)


def read_report(
    spec: Spec, at: Place = NOWHERE, description: str = "", ident: str = ""
) -> wr.Report:
    """The library's own object of a specification. Raises ValueError where it does not fit."""
    _known(spec)
    model = report_models.ReportViewspec(
        id=ident,
        display_name=at.title,
        description=description,
        project=report_models.Project(name=at.project, entity_name=at.entity),
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


def save_workspace(spec: Spec, at: Place, name: str) -> str:
    """Save or replace the view ``name``; its address."""
    try:
        ident = str(models.get_view_dict(at.entity, at.project, name)["id"])
    except ValueError:  # there is none of that name
        ident = ""
    return str(read_workspace(spec, at, f"nw-{name}-v", ident).save().url)


def save_report(spec: Spec, at: Place, description: str, ident: str) -> str:
    """Save a report, in place of the one with the id ``ident`` where that is not empty."""
    return str(read_report(spec, at, description, ident).save().url)
