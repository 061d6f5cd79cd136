"""What a point is measured on: texts, task sets, questions; tokens, windows and the Reference.

A data YAML (``conf/data/*.yaml``) is one :class:`Data`. All text of a perplexity is one stream of
tokens cut into windows that do not overlap, the protocol of the GPTQ papers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bitsweep import pace
from bitsweep.artifacts import Artifacts
from bitsweep.data.places import Keys
from bitsweep.data.sources import Item, TaskSet, TextSource, keyed
from bitsweep.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from bitsweep.models import Model

__all__ = [
    "Data",
    "Item",
    "Keys",
    "Reference",
    "TaskSet",
    "TextSource",
    "check_calibration",
    "make",
    "make_text",
    "tokens",
    "windows",
]

T = TypeVar("T")

LONGEST_WINDOW = 2048
"""The papers' window; ``window: null`` takes it, or the model's context where that is shorter."""

OWN_TEXT = "text"
"""The data set of one's own text, of which ``data.path`` is the only text's."""

SHORTHANDS = ("root", "path", "calibration_path")
"""Keys of a data YAML that only its own interpolations read, so that overrides stay short."""


@dataclass(frozen=True)
class Data:
    """What is measured: ``texts`` (perplexity, KL), ``tasks`` (generation), ``questions``.

    ``questions`` are lm-eval task names; those of ``conf/tasks`` read their files in ``tasks_dir``.
    ``window`` in tokens (None: the smaller of 2048 and the model's context). ``bos``: ``none``, or
    ``stream`` for one begin token before the whole text; never one a window, which is what
    llama.cpp does and lowers perplexity.
    """

    name: str
    texts: Mapping[str, TextSource] = field(default_factory=dict)
    tasks: Mapping[str, TaskSet] = field(default_factory=dict)
    questions: tuple[str, ...] = ()
    calibration: TextSource | None = None
    window: int | None = None
    bos: str = "none"
    tasks_dir: str | None = None

    def check(self) -> None:
        """Raise UserError for anything missing or unusable, reading no text; before a sweep."""
        from bitsweep.data import questions

        for text in self.texts.values():
            text.check()
        for task in self.tasks.values():
            task.check()
        if self.bos not in ("none", "stream"):
            raise UserError(f"data.bos={self.bos}: use none or stream")
        if self.window is not None and self.window < 2:
            raise UserError(f"data.window={self.window}: a window needs at least 2 tokens")
        if self.tasks_dir is not None and not Path(self.tasks_dir).is_dir():
            raise UserError(f"data.tasks_dir={self.tasks_dir}: no such folder")
        questions.check(self)

    def window_of(self, model: Model) -> int:
        """The window in tokens for ``model``.

        Raises:
            UserError: longer than the model's context; change ``data.window``.
        """
        if self.window is None:
            return min(LONGEST_WINDOW, model.max_positions)
        if self.window > model.max_positions:
            raise UserError(
                f"data.window={self.window}: {model.source.name} has a context of "
                f"{model.max_positions}; use that or less"
            )
        return self.window


def make(name: str, config: Mapping[str, Any]) -> Data:
    """A Data from the plain values of its YAML.

    Raises:
        UserError: an unknown key, a wrong type, a text without a path; the message names the key.
    """
    from bitsweep.typed import build, show

    values = {key: value for key, value in config.items() if key not in (*SHORTHANDS, "name")}
    own, other = ("data.path", "data.calibration_path") if name == OWN_TEXT else ("", "")
    keys = Keys("data.calibration", other)
    calibration = values.pop("calibration", None) or {}
    if not isinstance(calibration, Mapping):
        given = show(calibration)
        raise UserError(
            f"data.calibration={given}: takes a mapping; write {keys.of('path')}={given}"
        )
    texts = {
        key: make_text(key, text, Keys(f"data.texts.{key}", own))
        for key, text in _named("texts", values).items()
    }
    tasks = {}
    for key, task in _named("tasks", values).items():
        where = f"data.tasks.{key}"
        tasks[key] = keyed(build(TaskSet, where, {"name": key, **task}), Keys(where))
    data = build(Data, "data", {"name": name, **values})
    return dataclasses.replace(
        data,
        texts=texts,
        tasks=tasks,
        calibration=make_text(name, calibration, keys) if calibration.get("path") else None,
    )


def make_text(name: str, config: Mapping[str, Any], keys: Keys) -> TextSource:
    """A TextSource from plain values; ``name`` holds where they give none of their own.

    ``keys`` say where a user types them.
    """
    from bitsweep.typed import build, fit

    key = keys.of("path")
    if config.get("path") is None:
        raise UserError(f"{key}=null: the text {name} needs a file; give {key}=FILE")
    values = {"name": name, **config, "path": fit(key, config["path"], str)}
    return keyed(build(TextSource, keys.where, values), keys)


def _named(key: str, values: dict[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Take the mapping ``key`` out of ``values``; an entry that is null is left out."""
    value = values.pop(key, None) or {}
    if not isinstance(value, Mapping) or not all(
        isinstance(each, Mapping | None) for each in value.values()
    ):
        raise UserError(f"data.{key}: takes a mapping from names to their settings")
    return {name: each for name, each in value.items() if each is not None}


def check_calibration(calibration: TextSource, data: Data, artifacts: Artifacts) -> None:
    """Refuse to calibrate on what is measured.

    Raises:
        UserError: the same place (if only a part of it), the same text, or one inside the other.
    """
    for name, evaluation in data.texts.items():
        same = calibration.same_place(evaluation)
        if not same and calibration.split is None and evaluation.split is None:
            one, other = calibration.text(artifacts), evaluation.text(artifacts)
            same = one in other or other in one
        if same:
            raise UserError(
                f"calibration={calibration.name}: this is the evaluation text {name} of "
                f"data={data.name}; calibrate on another text "
                "(calibration=text calibration.source.path=FILE)"
            )


# ------------------------------------------------------------------------------------ tokens


def tokens(source: TextSource, model: Model, artifacts: Artifacts) -> Tensor:
    """The text as one stream of tokens, int64 ``(n,)``, none special; see :func:`stream`."""
    return stream(source, model, artifacts)["tokens"]


def stream(
    source: TextSource, model: Model, artifacts: Artifacts, bos: str = "none"
) -> dict[str, Tensor]:
    """The text as ``tokens`` int64 ``(n,)`` and ``bytes`` int64 ``(n,)``, cached by content.

    ``bytes[i]`` is how many bytes of the text (UTF-8) end with token ``i``; it is absent for a
    tokenizer that does not say where its tokens lie. No special tokens, but for one begin token
    before all when ``bos`` is ``stream``.
    """
    key = {
        "text": source.sha256(artifacts),
        "tokenizer": model.tokenizer_sha256,
        "bos": bos,
        "version": 1,
    }
    return artifacts.get("tokens", key, lambda: _encode(source.text(artifacts), model, bos))


def _encode(text: str, model: Model, bos: str) -> dict[str, Tensor]:
    import numpy as np
    import torch

    tokenizer = model.tokenizer
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids = encoded["input_ids"]
    begin: list[int] = []
    if bos == "stream":
        if tokenizer.bos_token_id is None:
            raise UserError("data.bos=stream: this tokenizer has no begin token; use data.bos=none")
        begin = [tokenizer.bos_token_id]
    result = {"tokens": torch.tensor(begin + ids, dtype=torch.int64)}
    if fast:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
        up_to = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
        ends = np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64)
        ends = np.maximum.accumulate(np.concatenate([[0] * len(begin), ends]).astype(np.int64))
        result["bytes"] = torch.from_numpy(up_to[ends])
    return result


def windows(stream: Tensor, window: int) -> Tensor:
    """``stream`` cut into windows ``(n, window)`` that do not overlap, without the short tail."""
    count = stream.shape[0] // window
    return stream[: count * window].view(count, window)


# ------------------------------------------------------------------------------------ Reference


class Reference:
    """The full-precision model's own losses, log-probabilities, generations and answers.

    Measured once for a checkpoint, tokenizer, protocol, compute dtype and kind of device, whichever
    point needs them first; every point is compared with these.

    ``unrounded`` is the full-precision model as the point's transforms left it, just before it was
    quantized: what probes of the rounding itself compare with.
    """

    def __init__(self, model: Model, data: Data, artifacts: Artifacts) -> None:
        self.model = model
        self.data = data
        self.artifacts = artifacts
        self.unrounded = model
        self._left: dict[str, tuple[Model, Any]] = {}

    def get(self, protocol: Mapping[str, Any], measure: Callable[[Model], T]) -> T:
        """What ``measure`` says of the full-precision model (tensors or a JSON value)."""
        source = self.model.source
        key = {
            "protocol": protocol,
            "checkpoint": self.model.checkpoint,
            "tokenizer": self.model.tokenizer_sha256,
            "dtype": source.dtype,
            "device": str(source.device).partition(":")[0],
        }

        def make() -> T:
            with pace.named("full precision"):
                return measure(self.model)

        return self.artifacts.get("reference", key, make)

    def leave(self, model: Model, key: str, value: object) -> None:
        """Leave for a later probe of this run what it would else compute of ``model`` again."""
        self._left[key] = (model, value)

    def found(self, model: Model, key: str) -> Any:
        """What an earlier probe of this run left of ``model``, or None."""
        owner, value = self._left.get(key, (None, None))
        return value if owner is model else None
