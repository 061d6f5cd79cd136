"""What the path of a source names: a file, a hub data set, or text of the package's generator.

One rule tells the three apart: ``pkg:reference/NAME`` is generated, a path with a ``split`` is a
hub data set, everything else is a file. Nothing here knows a model.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsweep.artifacts import Artifacts, file_digest
from bitsweep.errors import UserError
from bitsweep.typed import show

PACKAGE = "pkg:reference/"
TEXTS = {
    "evaluation": ("evaluation", "in"),
    "out_of_domain": ("evaluation", "out"),
    "calibration": ("calibration", "in"),
    "calibration_out_of_domain": ("calibration", "out"),
}
ITEMS = ("translation", "description", "summary", "questions")
"""Names that the generator knows: texts, and sets of items."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Keys:
    """What a user types to change a source: ``data.texts.NAME`` and its fields.

    ``path`` is the path's key where that has another, as ``data.path``.
    """

    where: str = ""
    path: str = ""

    def of(self, field: str) -> str:
        if field == "path" and self.path:
            return self.path
        return f"{self.where}.{field}" if self.where else field


@dataclass(frozen=True)
class Place:
    """A path, what is called ``name`` there, and the ``keys`` that say so."""

    name: str
    path: str
    keys: Keys = Keys()
    split: str | None = None

    @property
    def is_generated(self) -> bool:
        return self.path.startswith(PACKAGE)

    @property
    def is_file(self) -> bool:
        return self.split is None and not self.is_generated

    @property
    def is_table(self) -> bool:
        return Path(self.path).suffix in (".jsonl", ".json", ".csv")

    def mistake(self, what: str, field: str = "path", value: Any = None) -> UserError:
        """One line that begins with a key of this source and its value."""
        given = self.path if field == "path" else show(value)
        return UserError(f"{self.keys.of(field)}={given}: {what}")

    def check_number(self, field: str, value: int | None) -> None:
        """Raise UserError for a number of things that is none."""
        if value is not None and value < 1:
            raise self.mistake("takes a whole number from 1", field, value)

    def check(self) -> None:
        """Raise UserError for a file that is not there, without reading anything."""
        if self.is_file and not Path(self.path).is_file():
            raise self.mistake(
                f"no such file for {self.name}; give an existing .txt, .jsonl or .csv file "
                "(a hub data set needs a split as well)"
            )

    def content(self) -> str | None:
        """SHA-256 of the file; None of what is no file."""
        if not self.is_file:
            return None
        self.check()
        return file_digest(self.path)

    def text(self) -> str:
        """The whole file."""
        self.check()
        try:
            return Path(self.path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise self.mistake(f"{self.name} is not UTF-8 ({error.reason}); convert it") from error

    def rows(self) -> Iterator[Row]:
        """Rows of a ``.jsonl``, ``.json`` (a list) or ``.csv`` file.

        Only a newline ends a line: U+2028 and its like may stand inside a string of JSON. A mark of
        byte order, as spreadsheets write it, is no part of the first column's name.
        """
        text = self.text().removeprefix("\ufeff")
        suffix = Path(self.path).suffix
        if suffix == ".csv":
            yield from self._csv(text)
        elif suffix == ".json":
            found = self._json(text, 1)
            if not isinstance(found, list):
                raise self.mistake(f"{self.name} is no list of objects; give one, or .jsonl")
            yield from found
        else:
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    yield self._json(line, number)

    def _csv(self, text: str) -> list[Row]:
        before = csv.field_size_limit(max(len(text), 1))  # a document may be longer than 131,072
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise self.mistake(f"{self.name} is not sound CSV ({error})") from error
        finally:
            csv.field_size_limit(before)

    def _json(self, text: str, line: int) -> Any:
        """The value of ``text``, which begins at ``line`` of the file."""
        try:
            value = json.loads(text)
            if "\\u" in text:  # seldom, and the only way in for half a pair of surrogates
                json.dumps(value, ensure_ascii=False).encode()
            return value
        except UnicodeEncodeError as error:
            raise self.mistake(
                f"line {line} of {self.name} has half a character (\\ud800 to \\udfff alone), "
                "which is no text; leave it out"
            ) from error
        except json.JSONDecodeError as error:
            raise self.mistake(
                f"line {line + error.lineno - 1} of {self.name} is not JSON ({error.msg}); "
                "one object a line, or use a .txt file"
            ) from error

    def column(self, row: Row, field: str, column: str) -> Any:
        """What ``row`` has in the ``column`` that the source's ``field`` names."""
        if not isinstance(row, Mapping) or column not in row:
            have = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            what = f"{self.name} ({self.path}) has no such field; it has {have}"
            raise self.mistake(what, field, column)
        return row[column]

    def word(self, row: Row, field: str, column: str) -> str:
        """:meth:`column`, where it has to be text."""
        value = self.column(row, field, column)
        if not isinstance(value, str):
            raise self.mistake(
                f"{self.name} ({self.path}) has a row with {show(value)} there; takes text",
                field,
                column,
            )
        return value

    def several(self, rows: int | None) -> int:
        """``rows`` of a generated set, which has no end of its own."""
        if rows is None:
            raise self.mistake(f"{self.path} is endless; give {self.name} a number", "rows")
        return rows

    def known(self, names: tuple[str, ...]) -> str:
        """Which of the generator's ``names`` this is."""
        kind = self.path.removeprefix(PACKAGE)
        if kind not in names:
            raise self.mistake(f"unknown for {self.name}; use {PACKAGE}{{{','.join(names)}}}")
        return kind


def table_rows(place: Place, count: int | None, artifacts: Artifacts) -> list[Row]:
    """Rows of a table file or of a generated set (``count`` items of it)."""
    if not place.is_generated:
        key = {"path": place.path, "content": place.content()}
        return artifacts.remember("table", key, lambda: list(place.rows()))
    kind, number = place.known(ITEMS), place.several(count)

    def make() -> list[Row]:
        from bitsweep.reference import text as generator

        if kind == "questions":
            return [dict(row) for row in generator.questions("evaluation", number)]
        items = generator.task_items(kind, "evaluation", number)  # type: ignore[arg-type]
        return [{"prompt": item["prompt"], "reference": item["target"]} for item in items]

    return artifacts.get("generated", {**_generator(), "what": kind, "count": number}, make)


def generated_text(place: Place, count: int | None, artifacts: Artifacts) -> str:
    """``count`` documents of the generator, as one text."""
    kind, number = place.known(tuple(TEXTS)), place.several(count)

    def make() -> str:
        from bitsweep.reference import text as generator

        split, domain = TEXTS[kind]
        return generator.text(split, number, domain)  # type: ignore[arg-type]

    return artifacts.get("generated", {**_generator(), "what": kind, "count": number}, make)


def _generator() -> dict[str, str]:
    """The generator's own code names what it makes."""
    from bitsweep.reference import text as generator

    return {"generator": file_digest(str(generator.__file__))}
