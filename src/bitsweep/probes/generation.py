"""Quality of greedy generations on task sets: BLEU and ROUGE.

Against the gold references, with a paired difference to full precision's own score; and against
full precision's own outputs (``bleu_fp``, ``rougeL_fp``), which says how much the texts changed
even where the model never could do the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bitsweep import intervals
from bitsweep.artifacts import Artifacts, digest
from bitsweep.data import Data, Item, Reference, TaskSet
from bitsweep.errors import UserError
from bitsweep.intervals import Array, Interval
from bitsweep.probes import check_counts
from bitsweep.probes._greedy import generate
from bitsweep.probes._overlap import ROUGE, Bleu, bleu, references_of, rouge, rouge_signature
from bitsweep.record import Delta, Kind, Measurement, Metric

if TYPE_CHECKING:
    from bitsweep.models import Model


@dataclass(frozen=True)
class Generation:
    """``bleu``, ``rouge1``, ``rouge2``, ``rougeL``, ``bleu_fp``, ``rougeL_fp`` of every task set.

    ``limit`` takes the first items only. ``chat: auto`` wraps a prompt in the tokenizer's chat
    template where it has one; ``never`` gives the bare prompt. Without a template a prompt starts
    with the special tokens that the tokenizer itself puts there.
    """

    limit: int | None = None
    chat: str = "auto"

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quality"

    def __post_init__(self) -> None:
        check_counts("generation", self, "limit")
        if self.chat not in ("auto", "never"):
            raise UserError(f"probes.generation.chat={self.chat}: use auto or never")

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        tasks = {name: task.identity(artifacts) for name, task in data.tasks.items()}
        return {"limit": self.limit, "chat": self.chat, "tasks": tasks}

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        measurement = Measurement([])
        for task in reference.data.tasks.values():
            items = task.items(reference.artifacts)[: self.limit]
            texts = self._texts(model, task, items)
            protocol = {
                "probe": "generation",
                "version": self.version,
                "chat": self.chat,
                "items": digest(items),
                "max_new_tokens": task.max_new_tokens,
                "stop": task.stop,
            }
            full = reference.get(protocol, partial(self._texts, task=task, items=items))
            full_scores = reference.get(
                {**protocol, "scores": [task.bleu_tokenize, task.rouge]},
                partial(_full_scores, texts=full, items=items, task=task),
            )
            measurement.metrics += _metrics(task, items, texts, full, full_scores)
            measurement.details += [
                {
                    "metric": f"bleu/{task.name}",
                    "prompt": item.prompt,
                    "text": text,
                    "full_precision": own,
                    "references": list(item.references),
                }
                for item, text, own in zip(items, texts, full, strict=True)
            ]
        return measurement

    def _texts(self, model: Model, task: TaskSet, items: list[Item]) -> list[str]:
        prompts = [self._tokens(model, item.prompt) for item in items]
        room = model.max_positions - task.max_new_tokens
        longest = max(len(prompt) for prompt in prompts)
        if longest > room:
            raise UserError(
                f"data.tasks.{task.name}.max_new_tokens={task.max_new_tokens}: a prompt of "
                f"{longest} tokens leaves no room for them in a context of {model.max_positions}; "
                f"use at most {max(0, model.max_positions - longest)}, or shorter prompts"
            )
        texts = generate(model, prompts, task.max_new_tokens, task.stop)
        return [text.strip() for text in texts]

    def _tokens(self, model: Model, prompt: str) -> list[int]:
        tokenizer = model.tokenizer
        if self.chat == "auto" and getattr(tokenizer, "chat_template", None):
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids
        ids = tokenizer(prompt)["input_ids"]
        # A tokenizer that also ends a text would tell the model that there is nothing to add.
        return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def gold_scores(texts: list[str], items: list[Item], task: TaskSet) -> dict[str, Tensor]:
    """Per item against its references: BLEU's counts ``(n, 10)`` and ROUGE ``(n, 3)``, float64."""
    gold = references_of(items)
    return {
        "bleu": torch.from_numpy(Bleu(task.bleu_tokenize).counts(texts, gold)),
        "rouge": torch.from_numpy(rouge(texts, gold, task.rouge)),
    }


def _full_scores(_: Model, texts: list[str], items: list[Item], task: TaskSet) -> dict[str, Tensor]:
    return gold_scores(texts, items, task)


def _metrics(
    task: TaskSet,
    items: list[Item],
    texts: list[str],
    full: list[str],
    full_scores: Mapping[str, Tensor],
) -> list[Metric]:
    scorer = Bleu(task.bleu_tokenize)
    how = f"task:{task.name}|sha:{digest(items)[:12]}|items:{len(items)}|greedy|stop:{task.stop!r}"
    how = f"{how}|new:{task.max_new_tokens}"
    tail = f"v{Generation.version}"
    scores = {name: value.numpy() for name, value in gold_scores(texts, items, task).items()}

    value = scorer.corpus(texts, references_of(items))
    spread = intervals.bootstrap(scores["bleu"], bleu)
    both = np.hstack([scores["bleu"], full_scores["bleu"].numpy()])
    change = intervals.bootstrap(both, _bleu_change)
    signature = f"bleu|{how}|{scorer.signature()}|{tail}"
    metrics = [_metric(f"bleu/{task.name}", value, signature, spread, change)]
    signature = f"rouge|{how}|{rouge_signature(task)}|{tail}"
    for column, name in enumerate(ROUGE):
        own, theirs = scores["rouge"][:, column], full_scores["rouge"].numpy()[:, column]
        spread, change = intervals.mean(own), intervals.mean_difference(own, theirs)
        metrics.append(_metric(f"{name}/{task.name}", spread.value, signature, spread, change))
    return [*metrics, *_against_full(task, texts, full, how, scorer)]


def _against_full(
    task: TaskSet, texts: list[str], full: list[str], how: str, scorer: Bleu
) -> list[Metric]:
    """How much of full precision's own texts is left; an unchanged text counts as 1, also empty."""
    references = [(text,) for text in full]
    value = scorer.corpus(texts, references)
    spread = intervals.bootstrap(scorer.counts(texts, references), bleu)
    how, tail = f"{how}|refs:full_precision", f"v{Generation.version}"
    signature = f"bleu_fp|{how}|{scorer.signature()}|{tail}"
    metrics = [_metric(f"bleu_fp/{task.name}", value, signature, spread, None)]
    changed = [i for i, text in enumerate(texts) if text != full[i]]
    longest = np.ones(len(texts))
    if changed:
        scores = rouge([texts[i] for i in changed], [references[i] for i in changed], task.rouge)
        longest[changed] = scores[:, ROUGE.index("rougeL")]
    spread = intervals.mean(longest)
    signature = f"rouge_fp|{how}|{rouge_signature(task)}|{tail}"
    metrics.append(_metric(f"rougeL_fp/{task.name}", spread.value, signature, spread, None))
    return metrics


def _bleu_change(sums: Array) -> Array:
    """BLEU of the first ten columns less BLEU of the last ten."""
    half = sums.shape[1] // 2
    return bleu(sums[:, :half]) - bleu(sums[:, half:])


def _metric(
    name: str, value: float, signature: str, spread: Interval, change: Interval | None
) -> Metric:
    delta = None
    if change is not None:
        delta = Delta("difference", change.value, change.lo, change.hi)
    return Metric(name, value, "", "higher", signature, spread.lo, spread.hi, delta)
