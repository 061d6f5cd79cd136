"""One self-contained page: the same rows and marks as the tables, to filter, sort and open.

Nothing is fetched: the assets beside this file, plotly and the data are written into the page, and
its policy forbids the network. What a Record holds enters as packed JSON and is shown as text only.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bitsweep.record import Record
from bitsweep.report.curves import Curve
from bitsweep.report.page import details, origins, payload, sections
from bitsweep.store import Store

ASSETS = Path(__file__).parent
SCRIPTS = (
    "basics", "data", "front", "state", "filters", "looks", "chart", "over", "best", "heat",
    "table", "panel", "record", "sections", "main",
)  # fmt: skip
"""In this order they are one script: each uses what stands in those before it."""

LEVEL = 4
"""Of compression: 6 takes twice as long for a page that is 4 % smaller."""


def render(
    frame: pd.DataFrame,
    title: str,
    question: str = "",
    small: Sequence[str] = (),
    merged: Sequence[tuple[str, str]] = (),
    curves: Sequence[Curve] = (),
    records: Sequence[Record] = (),
    stores: Mapping[str, Store] | None = None,
) -> str:
    """The page as text.

    ``small``: the fine print; ``merged``: label and reason of such points; ``curves``: errors of
    the hidden states by depth; ``records``: those of ``frame``, for what a row was made with;
    ``stores``: of each experiment, for the plan by layer and the generations of the points on or
    near the front.
    """
    from plotly.offline import get_plotlyjs

    content = {
        "title": title,
        "question": question,
        "small": [*small],
        "merged": [*merged],
        **payload.of(frame),
        "records": origins.of(frame, records),
        "details": details.of(frame, stores or {}),
        **sections.of(frame, curves),
    }
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    page = _asset("page.html")
    for mark, text in (
        ("__TITLE__", html.escape(title)),
        ("__STYLE__", _asset("page.css")),
        ("__DATA__", packed(to_json(content))),
        ("__PLOTLY__", packed(get_plotlyjs())),
        ("__SCRIPT__", script),  # last: the marks must not be looked for inside it
    ):
        before, _, after = page.partition(mark)
        page = before + text + after
    return page


def to_json(value: Any) -> str:
    return json.dumps(
        value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )


def packed(text: str) -> str:
    """``text`` compressed, in letters and digits: nothing in it can end an element."""
    body = bytearray(gzip.compress(text.encode("utf-8"), LEVEL, mtime=0))
    body[9] = 255  # the system, unknown: some Pythons write theirs there, others do not
    return base64.b64encode(body).decode("ascii")


def unpacked(text: str) -> str:
    """What :func:`packed` was given."""
    return gzip.decompress(base64.b64decode(text)).decode("utf-8")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
