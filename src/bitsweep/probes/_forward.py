"""One forward pass over windows of text, as perplexity and KL divergence need it.

Logits become float32 before the softmax whatever the model computes in, and at most about 256 MiB
of them exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitsweep import pace

if TYPE_CHECKING:
    from bitsweep.models import Model

BATCH_BYTES = 256 * 2**20
"""float32 logits of one batch, unless a single window has more."""

KEPT_BYTES = 128 * 2**20
"""Log-probabilities that perplexity leaves for the KL divergence of the same windows."""

CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 16384


@dataclass(frozen=True)
class Scores:
    """Windows scored by a model: the k-th of ``n`` predicts ``window - 1`` tokens.

    ``losses``: float64 ``(n,)``, summed nats of each window. ``log_probabilities``: float32
    ``(kept, window - 1, vocabulary)`` of the first windows, on the CPU.
    """

    losses: Tensor
    log_probabilities: Tensor


def scores(model: Model, windows: Tensor, keep_bytes: int = 0) -> Scores:
    """Score ``windows`` int64 ``(n, window)``, keeping log-probabilities of the first ones.

    Raises:
        FloatingPointError: a loss is not finite; a mean without it would hide a broken model.
    """
    losses: list[Tensor] = []
    kept: list[Tensor] = []
    room = keep_bytes
    for batch, logits in _logits(model, windows):
        size = logits.numel() * 4
        if size <= room:
            room -= size
            kept.append(torch.log_softmax(logits.float(), dim=-1).cpu())
        else:
            room = 0
        loss = _losses(logits, batch[:, 1:])
        losses.append(loss.double().sum(-1).cpu())
    total = torch.cat(losses)
    if not bool(torch.isfinite(total).all()):
        broken = torch.nonzero(~torch.isfinite(total)).flatten().tolist()
        raise FloatingPointError(
            f"the loss is not finite in {len(broken)} of {len(total)} windows, "
            f"the first of them window {broken[0]}"
        )
    return Scores(total, torch.cat(kept) if kept else torch.empty(0))


def log_probabilities(model: Model, windows: Tensor) -> Iterator[Tensor]:
    """Batches of float32 log-probabilities ``(b, window - 1, vocabulary)`` in order."""
    for _, logits in _logits(model, windows):
        yield torch.log_softmax(logits.float(), dim=-1)


def _logits(model: Model, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of tokens ``(b, window)`` and their logits ``(b, window - 1, vocabulary)``.

    Gradients are off inside a batch only: a generator that held such a block open over its
    ``yield`` would leave it open in its caller.
    """
    batches = windows.split(_batch(model, windows.shape[1]))
    for batch in pace.of(batches, len(windows), "windows", len):
        batch = batch.to(model.device)
        with torch.no_grad():
            logits = model.module(input_ids=batch, use_cache=False).logits[:, :-1]
        yield batch, logits


def _batch(model: Model, window: int) -> int:
    """Windows in a batch; it depends on nothing that differs between the points of a sweep."""
    budget = CPU_BATCH_TOKENS if str(model.device).startswith("cpu") else GPU_BATCH_TOKENS
    vocabulary = int(model.module.config.get_text_config().vocab_size)
    return max(1, min(budget // window, BATCH_BYTES // (window * vocabulary * 4)))


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target, float32 ``(b, t)``; a large vocabulary is taken in pieces."""
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    rows = max(1, BATCH_BYTES // (flat.shape[1] * 4))
    pieces = []
    for part, target in zip(flat.split(rows), wanted.split(rows), strict=True):
        exact = part.float()
        chosen = exact.gather(1, target.unsqueeze(1)).squeeze(1)
        pieces.append(exact.logsumexp(1) - chosen)
    return torch.cat(pieces).view(targets.shape)
