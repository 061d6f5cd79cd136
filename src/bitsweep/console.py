"""A terminal that shows what a Record holds and never obeys it: names come from folders."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console as Rich
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

COMMANDING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and those that turn the direction of a line."""


class Console(Rich):
    """Rich's, with a sign in the place of each character that a terminal would take for a command.

    Its own colours are no part of a text, and stay.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = COMMANDING.sub("\ufffd", segment.text)
            same = segment.control or text == segment.text
            yield segment if same else Segment(text, segment.style)
