"""Texts and task sets as a data YAML names them, and what is read of them."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from bitsweep.artifacts import Artifacts, digest, plain
from bitsweep.data.places import Keys, Place, Row, generated_text, table_rows

ROUGE = ("words", "unicode", "characters")
BLEU = ("13a", "zh", "char", "intl", "ja-mecab", "none")


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
    keys: Keys = dataclasses.field(default=Keys(), init=False, repr=False, compare=False)

    @property
    def place(self) -> Place:
        return Place(self.name, self.path, self.keys, self.split)

    def check(self) -> None:
        """Raise UserError for a file that is not there and numbers that are none, unread."""
        self.place.check()
        self.place.check_number("rows", self.rows)
        self.place.check_number("max_chars", self.max_chars)

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
        return {"source": self, "content": self.place.content()}

    def _read(self, artifacts: Artifacts) -> str:
        place = self.place
        if place.is_generated:
            text = generated_text(place, self.rows, artifacts)
        elif place.is_file and not place.is_table:
            text = place.text()
        else:
            text = self.join.join(self._fields())
        if self.fold_newlines:
            text = re.sub("\n+", "\n", text)
        text = text[: self.max_chars]
        if not text.strip():
            raise place.mistake(f"the text {self.name} is empty; give another file")
        return text

    def _fields(self) -> Iterator[str]:
        place = self.place
        rows = hub_rows(self) if self.split is not None else place.rows()
        for row in islice(rows, self.rows):
            yield place.word(row, "field", self.field)


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
    keys: Keys = dataclasses.field(default=Keys(), init=False, repr=False, compare=False)

    @property
    def place(self) -> Place:
        return Place(self.name, self.path, self.keys)

    def check(self) -> None:
        """Raise UserError for a missing file, or an option that is none."""
        self.place.check()
        self.place.check_number("rows", self.rows)
        self.place.check_number("max_new_tokens", self.max_new_tokens)
        for name, known in (("rouge", ROUGE), ("bleu_tokenize", BLEU)):
            if getattr(self, name) not in known:
                raise self.place.mistake(f"use {', '.join(known)}", name, getattr(self, name))

    def items(self, artifacts: Artifacts) -> list[Item]:
        """All items in the order of the file, equal prompts merged."""
        place = self.place
        merged: dict[str, list[str]] = {}
        for row in table_rows(place, self.rows, artifacts):
            asked = str(place.column(row, "prompt", self.prompt))
            prompt = self.template.replace("{prompt}", asked)
            merged.setdefault(prompt, []).extend(self._answers(row))
        if not merged:
            raise place.mistake(f"the task set {self.name} has no items")
        items = [Item(prompt, tuple(references)) for prompt, references in merged.items()]
        return items if place.is_generated else items[: self.rows]

    def _answers(self, row: Row) -> list[str]:
        """One or several; a number is none."""
        answers = self.place.column(row, "reference", self.reference)
        if isinstance(answers, list) and answers and all(isinstance(each, str) for each in answers):
            return answers
        return [self.place.word(row, "reference", self.reference)]

    def identity(self, artifacts: Artifacts) -> dict[str, Any]:
        """Hash of the items, and how texts are generated and split."""
        options = ("max_new_tokens", "stop", "bleu_tokenize", "rouge")
        items = digest(self.items(artifacts))
        return {"sha256": items, **{key: getattr(self, key) for key in options}}


S = TypeVar("S", TextSource, TaskSet)


def keyed(source: S, keys: Keys) -> S:
    """``source``, just made, whose mistakes are told by ``keys``: they identify nothing."""
    object.__setattr__(source, "keys", keys)
    return source


def hub_rows(source: TextSource) -> Iterator[Row]:
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
        raise source.place.mistake(
            f"the data set {source.name} can not be read from the hub "
            f"({what[:160]}); connect once so that it is cached, or use a file: data=text "
            "data.path=FILE"
        ) from error
