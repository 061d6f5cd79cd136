"""Greedy generation in batches, whose texts do not depend on who shares the batch.

A loop of our own and not ``generate``: a checkpoint's generation settings (repetition penalty,
sampling) would otherwise enter the measurement. Prompts are padded on the left and masked, with
positions counted from the first real token; finished rows leave the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitsweep import pace

if TYPE_CHECKING:
    from bitsweep.models import Model

CPU_BATCH = 32
GPU_BATCH = 128


def generate(
    model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: str | None
) -> list[str]:
    """The continuation of each prompt (tokens), up to ``stop``, an end token, or the limit.

    The text before ``stop`` is returned, without special tokens. Prompts of similar length share a
    batch; the result has the order of ``prompts``.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    size = CPU_BATCH if str(model.device).startswith("cpu") else GPU_BATCH
    ends = _Ends(model, stop)
    texts = [""] * len(prompts)
    together = [order[start : start + size] for start in range(0, len(order), size)]
    for rows in pace.of(together, len(order), "prompts", len):
        batch = [list(prompts[i]) for i in rows]
        for row, text in zip(rows, _batch(model, batch, max_new_tokens, ends), strict=True):
            texts[row] = text
    return texts


class _Ends:
    """When a row is finished: at an end token, or when its text holds the stop string."""

    def __init__(self, model: Model, stop: str | None) -> None:
        self.tokenizer = model.tokenizer
        self.stop = stop
        self.end_tokens = torch.tensor(_end_tokens(model), dtype=torch.int64)
        self.suspects = _suspects(model, stop)

    def finished(self, tokens: Tensor, written: list[list[int]]) -> Tensor:
        """Which rows end with the new ``tokens`` ``(b,)``, which already stand in ``written``.

        Only a token that holds the last character of ``stop`` can complete it, so that few rows
        are ever decoded.
        """
        done = torch.isin(tokens, self.end_tokens)
        for row in torch.nonzero(self.suspects[tokens] & ~done).flatten().tolist():
            done[row] = self.stop in self.tokenizer.decode(written[row], skip_special_tokens=True)
        return done

    def text(self, written: list[int]) -> str:
        text: str = self.tokenizer.decode(written, skip_special_tokens=True)
        return text.partition(self.stop)[0] if self.stop else text


def _batch(model: Model, prompts: list[list[int]], max_new_tokens: int, ends: _Ends) -> list[str]:
    from transformers import DynamicCache

    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # rows still writing
    cache = DynamicCache(config=model.module.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            logits = _forward(model, ids, mask, positions, cache)
            tokens = logits[:, -1].argmax(-1).cpu()
            for row, token in zip(rows, tokens.tolist(), strict=True):
                written[row].append(token)
            going = ~ends.finished(tokens, [written[row] for row in rows])
            if not bool(going.any()):
                break
            if not bool(going.all()):
                left = torch.nonzero(going).flatten()
                cache.batch_select_indices(left.to(model.device))
                rows = [rows[i] for i in left.tolist()]
                tokens, mask, positions = tokens[left], mask[left], positions[left]
            ids = tokens.unsqueeze(1)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
    return [ends.text(tokens) for tokens in written]


def _forward(model: Model, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """Logits ``(b, t, vocabulary)``, only the last position where the architecture can do that."""
    accepts = inspect.signature(model.module.forward).parameters
    extra: dict[str, Any] = {}
    if "position_ids" in accepts:
        extra["position_ids"] = positions.to(model.device)
    if "logits_to_keep" in accepts:
        extra["logits_to_keep"] = 1
    logits: Tensor = model.module(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        past_key_values=cache,
        use_cache=True,
        **extra,
    ).logits
    return logits


def _end_tokens(model: Model) -> list[int]:
    """End tokens that the tokenizer, the model or its generation settings name."""
    found = {model.tokenizer.eos_token_id}
    for holder in (model.module.config, getattr(model.module, "generation_config", None)):
        value = getattr(holder, "eos_token_id", None)
        found.update(value if isinstance(value, list) else [value])
    return sorted(token for token in found if token is not None)


def _suspects(model: Model, stop: str | None) -> Tensor:
    """Whether a token's text holds the last character of ``stop``, bool ``(vocabulary,)``."""
    size = int(model.module.config.get_text_config().vocab_size)
    result = torch.zeros(size, dtype=torch.bool)
    if stop:
        texts = model.tokenizer.batch_decode([[token] for token in range(size)])
        result = torch.tensor([stop[-1] in text for text in texts])
    return result
