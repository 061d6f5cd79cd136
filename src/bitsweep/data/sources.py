"""Where texts and task sets are read from: files, the hub, or the package's own generator.

One rule tells the three apart: ``pkg:reference/NAME`` is generated, a path with a ``split`` is a
hub data set, everything else is a file. Nothing here knows a model.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bitsweep.artifacts import Artifacts, digest, file_digest, plain
from bitsweep.errors import UserError

PACKAGE = "pkg:reference/"
GENERATED_TEXTS = {
    "evaluation": ("evaluation", "in"),
    "out_of_domain": ("evaluation", "out"),
    "calibration": ("calibration", "in"),
    "calibration_out_of_domain": ("calibration", "out"),
}
GENERATED_ITEMS = ("translation", "description", "summary", "questions")


@dataclass(frozen=True)
class TextSource:
    """One text: perplexity is measured on it, or it calibrates.

    ``path`` is a ``.txt`` file, a ``.jsonl``, ``.json`` or ``.csv`` file (``field`` of each row), a
    hub data set when ``split`` is given (then ``config``, ``files``, ``revision`` as in
    ``datasets.load_dataset``), or ``pkg:reference/NAME``. ``rows`` keeps the first so many rows or
    documents. Rows are joined by ``join``: the GPTQ papers use a blank line for WikiText-2 and a
    space for C4 and PTB. ``fold_newlines`` leaves one of each run of newlines (TinyStories).
    """

    name: str
    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    files: str | None = None
    rows: int | None = None
    field: str = "text"
    join: str = "\n\n"
    fold_newlines: bool = False
    max_chars: int | None = None

    def check(self, key: str = "path") -> None:
        """Raise UserError for a file that is not there, without reading anything.

        ``key`` is the one that the path came from, for the message.
        """
        check_path(self.name, self.path, self.split, key)

    def text(self, artifacts: Artifacts) -> str:
        """The whole text, read once a process.

        Raises:
            UserError: missing or unreadable file, hub out of reach, a row without the field, or
                an empty text; the message names the key to change.
        """
        return artifacts.remember("text", self._where(), lambda: self._read(artifacts))

    def sha256(self, artifacts: Artifacts) -> str:
        """SHA-256 of the text in UTF-8."""
        return hashlib.sha256(self.text(artifacts).encode("utf-8")).hexdigest()

    def identity(self, artifacts: Artifacts) -> dict[str, Any]:
        """What decides the text: its hash, or for a hub data set what names it (no network)."""
        if self.split is not None:
            return {key: value for key, value in plain(self).items() if key != "name"}
        return {"sha256": self.sha256(artifacts)}

    def same_place(self, other: TextSource) -> bool:
        """Whether both read the same file, data set split or generated text, if only in part."""
        keys = ("path", "config", "split", "files")
        return all(getattr(self, key) == getattr(other, key) for key in keys)

    def _where(self) -> dict[str, Any]:
        file = is_file(self.path, self.split)
        content = content_digest(self.name, self.path) if file else None
        return {"source": self, "content": content}

    def _read(self, artifacts: Artifacts) -> str:
        if self.path.startswith(PACKAGE):
            text = _generated_text(self, artifacts)
        elif is_file(self.path, self.split) and not is_table(self.path):
            text = _decoded(self.name, self.path)
        else:
            text = self.join.join(self._fields())
        if self.fold_newlines:
            text = re.sub("\n+", "\n", text)
        text = text[: self.max_chars]
        if not text.strip():
            raise UserError(f"path={self.path}: the text {self.name} is empty; give another file")
        return text

    def _fields(self) -> Iterator[str]:
        rows = hub_rows(self) if self.split is not None else file_rows(self.name, self.path)
        for row in islice(rows, self.rows):
            yield _field(row, self.field, self.name, self.path)


@dataclass(frozen=True)
class Item:
    """One input of a text-to-text task and every answer that counts as right."""

    prompt: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class TaskSet:
    """Text-to-text items for BLEU and ROUGE, in JSON lines or CSV, or ``pkg:reference/NAME``.

    ``prompt`` and ``reference`` name the fields; a reference is a string or a list of them, and
    rows of one prompt are one item with several references (E2E: ``prompt: mr, reference: ref``).
    ``template`` is what the model reads, ``{prompt}`` being the field. Generation ends at ``stop``,
    at the end token, or after ``max_new_tokens``. ``bleu_tokenize`` is sacrebleu's (``13a``,
    ``zh``, ``char``, ``intl``). ``rouge`` splits into ``words`` (rouge-score's own: lower case,
    a-z and 0-9 only), ``unicode`` (lower-case words of any alphabet) or ``characters`` (Chinese,
    of which the default keeps nothing).
    """

    name: str
    path: str
    prompt: str = "prompt"
    reference: str = "reference"
    template: str = "{prompt}"
    rows: int | None = None
    max_new_tokens: int = 64
    stop: str | None = "\n"
    bleu_tokenize: str = "13a"
    rouge: str = "words"

    def check(self) -> None:
        """Raise UserError for a missing file or an unknown way to split words."""
        check_path(self.name, self.path, None, f"data.tasks.{self.name}.path")
        if self.rouge not in ("words", "unicode", "characters"):
            raise UserError(
                f"data.tasks.{self.name}.rouge={self.rouge}: use words, unicode or characters"
            )
        if self.bleu_tokenize not in ("13a", "zh", "char", "intl", "ja-mecab", "none"):
            raise UserError(
                f"data.tasks.{self.name}.bleu_tokenize={self.bleu_tokenize}: "
                "use 13a, zh, char, intl, ja-mecab or none"
            )

    def items(self, artifacts: Artifacts) -> list[Item]:
        """All items in the order of the file, equal prompts merged."""
        rows = table_rows(self.name, self.path, self.rows, artifacts)
        merged: dict[str, list[str]] = {}
        for row in rows:
            prompt = self.template.replace(
                "{prompt}", str(_field(row, self.prompt, self.name, self.path))
            )
            answer = _field(row, self.reference, self.name, self.path)
            merged.setdefault(prompt, []).extend([answer] if isinstance(answer, str) else answer)
        if not merged:
            raise UserError(f"path={self.path}: the task set {self.name} has no items")
        items = [Item(prompt, tuple(references)) for prompt, references in merged.items()]
        return items if self.path.startswith(PACKAGE) else items[: self.rows]

    def identity(self, artifacts: Artifacts) -> dict[str, Any]:
        """Hash of the items, and how texts are generated and split."""
        options = ("max_new_tokens", "stop", "bleu_tokenize", "rouge")
        items = digest(self.items(artifacts))
        return {"sha256": items, **{key: getattr(self, key) for key in options}}


# ------------------------------------------------------------------------------------ tables


def table_rows(
    name: str, path: str, count: int | None, artifacts: Artifacts
) -> list[Mapping[str, Any]]:
    """Rows of a table file or of a generated set (``count`` items of it)."""
    if not path.startswith(PACKAGE):
        key = {"path": path, "content": content_digest(name, path)}
        return artifacts.remember("table", key, lambda: list(file_rows(name, path)))
    kind = _generated_name(name, path, GENERATED_ITEMS)
    if count is None:
        raise UserError(f"rows=null: {path} is endless; give {name} a number of rows")

    def make() -> list[Mapping[str, Any]]:
        from bitsweep.reference import text as generator

        if kind == "questions":
            return [dict(row) for row in generator.questions("evaluation", count)]
        items = generator.task_items(kind, "evaluation", count)  # type: ignore[arg-type]
        return [{"prompt": item["prompt"], "reference": item["target"]} for item in items]

    return artifacts.get("generated", {**_generator(), "what": kind, "count": count}, make)


def file_rows(name: str, path: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a ``.jsonl``, ``.json`` (a list) or ``.csv`` file.

    Only a newline ends a line: U+2028 and its like may stand inside a string of JSON.
    """
    text = _decoded(name, path)
    suffix = Path(path).suffix
    if suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text, newline=""))
        return
    if suffix == ".json":
        yield from _json(text, 1, name, path)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json(line, number, name, path)


def _json(text: str, line: int, name: str, path: str) -> Any:
    """The value of ``text``, which begins at ``line`` of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"path={path}: line {line + error.lineno - 1} of {name} is not JSON ({error.msg}); "
            "one object a line, or use a .txt file"
        ) from error


def hub_rows(source: TextSource) -> Iterator[Mapping[str, Any]]:
    """Rows of a hub data set.

    Raises:
        UserError: not reachable, not there, or a data set that is a script.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(
            source.path,
            source.config,
            data_files=None if source.files is None else {source.split: source.files},
            split=source.split,
            revision=source.revision,
        )
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(
            f"path={source.path}: the data set {source.name} can not be read from the hub "
            f"({what[:160]}); connect once so that it is cached, or use a file: data=text "
            "data.path=FILE"
        ) from error


# ------------------------------------------------------------------------------------ paths


def is_file(path: str, split: str | None) -> bool:
    return split is None and not path.startswith(PACKAGE)


def is_table(path: str) -> bool:
    return Path(path).suffix in (".jsonl", ".json", ".csv")


def check_path(name: str, path: str, split: str | None, key: str = "path") -> None:
    """Raise UserError when ``path`` is a file that can not be there."""
    if is_file(path, split) and not Path(path).is_file():
        raise UserError(
            f"{key}={path}: no such file for {name}; give an existing .txt, .jsonl or .csv file "
            "(a hub data set needs a split as well)"
        )


def content_digest(name: str, path: str) -> str:
    check_path(name, path, None)
    return file_digest(path)


def _decoded(name: str, path: str) -> str:
    check_path(name, path, None)
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"path={path}: {name} is not UTF-8 ({error.reason}); convert it") from error


def _field(row: Mapping[str, Any], field: str, name: str, path: str) -> Any:
    try:
        return row[field]
    except (KeyError, TypeError) as error:
        have = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
        raise UserError(
            f"field={field}: {name} ({path}) has no such field; it has {have}"
        ) from error


# ------------------------------------------------------------------------------------ generator


def _generated_text(source: TextSource, artifacts: Artifacts) -> str:
    kind = _generated_name(source.name, source.path, tuple(GENERATED_TEXTS))
    if source.rows is None:
        raise UserError(f"rows=null: {source.path} is endless; give a number of documents")
    count = source.rows

    def make() -> str:
        from bitsweep.reference import text as generator

        split, domain = GENERATED_TEXTS[kind]
        return generator.text(split, count, domain)  # type: ignore[arg-type]

    return artifacts.get("generated", {**_generator(), "what": kind, "count": count}, make)


def _generated_name(name: str, path: str, known: tuple[str, ...]) -> str:
    kind = path.removeprefix(PACKAGE)
    if kind not in known:
        raise UserError(f"path={path}: unknown for {name}; use {PACKAGE}{{{','.join(known)}}}")
    return kind


def _generator() -> dict[str, str]:
    """The generator's own code names what it makes."""
    from bitsweep.reference import text as generator

    return {"generator": file_digest(str(generator.__file__))}
