"""Tasks through lm-eval, the model handed over in memory: accuracy with a paired interval.

Never through lm-eval's result cache, which is not keyed by the model and would give one point
another's answers. Its perplexities follow another protocol than ours; see docs/protocols.md.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from bitsweep import intervals, pace
from bitsweep.artifacts import Artifacts, digest
from bitsweep.data import Data, Reference, questions
from bitsweep.probes import check_counts
from bitsweep.record import Delta, Kind, Measurement, Metric

if TYPE_CHECKING:
    from bitsweep.models import Model

Answers = dict[str, dict[str, dict[str, Any]]]
"""Task -> metric -> ``items`` (a number each; none where it is no mean), ``value``, ``higher``."""


@dataclass(frozen=True)
class Tasks:
    """``acc/<task>``, ``acc_norm/<task>`` and whatever else the data's ``questions`` report.

    ``limit`` takes the first items of each task. ``batch_size`` is how many answers are scored at
    a time; it moves numbers by float noise only.
    """

    limit: int | None = None
    batch_size: int = 16

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quality"

    def __post_init__(self) -> None:
        check_counts("tasks", self, "limit", "batch_size")

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        asked = {name: questions.identity(name, data, artifacts) for name in data.questions}
        return {"limit": self.limit, "questions": asked}

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        data, artifacts = reference.data, reference.artifacts
        if not data.questions:
            return Measurement([])
        tasks = questions.load(data, artifacts)
        protocol = {"probe": "tasks", "version": self.version, **self.identity(data, artifacts)}
        full = reference.get(protocol, lambda source: self._answers(source, tasks))
        answers = self._answers(model, tasks)
        measurement = Measurement([])
        for task, metrics in answers.items():
            how = self._signature(task, protocol)
            for name, found in metrics.items():
                metric = _metric(f"{name}/{task}", found, full[task][name], f"{name}|{how}")
                measurement.metrics.append(metric)
                if found["items"]:
                    measurement.details.append(
                        {
                            "metric": metric.name,
                            "items": found["items"],
                            "full_precision": full[task][name]["items"],
                        }
                    )
        return measurement

    def _answers(self, model: Model, tasks: Mapping[str, Any]) -> Answers:
        from lm_eval.evaluator import evaluate

        loaded = {"tasks": dict(tasks), "groups": {}, "group_map": {}}
        with questions.quiet(), _handed_over(model, self.batch_size) as lm:
            result = evaluate(
                lm=lm, task_dict=loaded, limit=self.limit, bootstrap_iters=0, log_samples=True
            )
        return {task: _by_metric(task, result) for task in tasks}

    def _signature(self, task: str, protocol: Mapping[str, Any]) -> str:
        asked = protocol["questions"].get(task)
        content = digest(asked)[:12] if asked else "-"
        limit = "all" if self.limit is None else self.limit
        package = version("lm-eval")
        return f"task:{task}|sha:{content}|limit:{limit}|lm_eval:{package}|v{self.version}"


@contextlib.contextmanager
def _handed_over(model: Model, batch_size: int) -> Iterator[Any]:
    """The model as lm-eval takes it. It would tie weights anew, and so undo an untied,
    quantized head, and give the tokenizer a padding token: both are kept from it."""
    from lm_eval.models.huggingface import HFLM

    module = model.module
    module.tie_weights = lambda *args, **kwargs: None
    try:
        lm = HFLM(
            pretrained=module,
            backend="causal",
            tokenizer=copy.deepcopy(model.tokenizer),
            batch_size=batch_size,
            max_length=model.max_positions,
            softmax_dtype="float32",
        )
        lm._device = model.device
        for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(lm, kind, _counted(lm, getattr(lm, kind)))
        yield lm
    finally:
        del module.tie_weights


def _counted(lm: Any, ask: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """``ask`` of lm-eval's, its requests counted as their answers come: it tells each to the hook
    by which it would fill a cache, and has no other ear."""

    def asked(requests: list[Any], **options: Any) -> list[Any]:
        steps = pace.of(itertools.repeat(None), len(requests), "answers")
        next(steps)
        lm.set_cache_hook(SimpleNamespace(add_partial=lambda *answer: next(steps)))
        return ask(requests, **options)

    return asked


def _by_metric(task: str, result: Any) -> dict[str, dict[str, Any]]:
    """What lm-eval found, by metric; a filter's name joins the metric's where there are several."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in result["results"][task].items():
        metric, comma, selector = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        name = metric if selector == "none" else f"{metric}_{selector}"
        items = [row.get(metric) for row in result["samples"][task] if row["filter"] == selector]
        mean = all(isinstance(item, int | float) for item in items) and np.isclose(
            np.mean(items), value
        )
        found[name] = {
            "items": [float(item) for item in items] if mean else [],
            "value": float(value),
            "higher": bool((result["higher_is_better"].get(task) or {}).get(metric, True)),
        }
    return found


def _metric(name: str, found: Mapping[str, Any], full: Mapping[str, Any], signature: str) -> Metric:
    better: Literal["lower", "higher"] = "higher" if found["higher"] else "lower"
    if len(found["items"]) < 2 or len(full["items"]) != len(found["items"]):
        return Metric(name, found["value"], "", better, signature)
    items = np.array(found["items"])
    spread = intervals.mean(items)
    change = intervals.mean_difference(items, np.array(full["items"]))
    delta = Delta("difference", change.value, change.lo, change.hi)
    signature = f"{signature}|items:{len(items)}"
    return Metric(name, spread.value, "", better, signature, spread.lo, spread.hi, delta)
