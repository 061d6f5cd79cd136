"""How far the quantized model's predictions are from full precision's, token by token.

KL(full || quantized) over the whole vocabulary, from exact float32 log-probabilities of both, and
how often both put the same token first (Kuldeep et al. 2024, "Accuracy is not all you need", arXiv
2407.09141, which calls its complement flips). Both hardly depend on what the text is, so few tokens
tell much: the first ``tokens`` of the windows that perplexity scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bitsweep import intervals
from bitsweep.artifacts import Artifacts
from bitsweep.data import Data, Reference
from bitsweep.probes import check_counts
from bitsweep.probes._forward import log_probabilities
from bitsweep.probes.perplexity import Cut, cut_text, text_identity
from bitsweep.record import Kind, Measurement, Metric

if TYPE_CHECKING:
    from bitsweep.models import Model

STORED_BYTES = 512 * 2**20
"""Full precision's log-probabilities of one text are kept up to this; beyond it (8,192 tokens of a
vocabulary over 16,384) the full-precision model runs again, window by window, at every point."""


@dataclass(frozen=True)
class KL:
    """``kl_mean``, ``kl_median``, ``kl_p99`` (nats a token) and ``top1`` of every text.

    Mean and agreement have a bootstrap interval over windows. A mean is ruled by few uncertain
    tokens, so median and 99th percentile stand beside it.
    """

    tokens: int = 8192

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quality"

    def __post_init__(self) -> None:
        check_counts("kl", self, "tokens")

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        return {"tokens": self.tokens, **text_identity(data, artifacts)}

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        measurement = Measurement([])
        for name, text in reference.data.texts.items():
            cut = cut_text(model, reference, text, self.tokens)
            divergence, same = self._compare(model, reference, name, cut)
            measurement.metrics += self._metrics(name, cut, divergence, same)
            measurement.details.append(
                {
                    "metric": f"kl_mean/{name}",
                    "kl": [round(value, 8) for value in divergence.mean(1).tolist()],
                    "top1": [round(value, 6) for value in same.mean(1).tolist()],
                }
            )
        return measurement

    def _compare(
        self, model: Model, reference: Reference, name: str, cut: Cut
    ) -> tuple[Tensor, Tensor]:
        """Divergence and agreement of each predicted token, float64 ``(windows, window - 1)``."""
        divergences, same = [], []
        pairs = zip(
            _one_by_one(self._full(reference, cut)),
            _one_by_one(_measured(model, reference, name, cut)),
            strict=True,
        )
        for full, quantized in pairs:
            quantized = quantized.to(full.device)
            terms = full.exp() * (full - quantized)
            divergences.append(terms.sum(-1, dtype=torch.float64).cpu())
            same.append((full.argmax(-1) == quantized.argmax(-1)).double().cpu())
        divergence = torch.stack(divergences)
        if not bool(torch.isfinite(divergence).all()):
            raise FloatingPointError(f"the KL divergence on {name} is not finite")
        return divergence, torch.stack(same)

    def _full(self, reference: Reference, cut: Cut) -> Iterator[Tensor]:
        count, window = cut.windows.shape
        vocabulary = int(reference.model.module.config.get_text_config().vocab_size)
        if count * (window - 1) * vocabulary * 4 > STORED_BYTES:
            return log_probabilities(reference.model, cut.windows)
        protocol = {"probe": "kl", "version": self.version, **cut.protocol}

        def measure(full: Model) -> dict[str, Tensor]:
            parts = [part.cpu() for part in log_probabilities(full, cut.windows)]
            return {"log_probabilities": torch.cat(parts)}

        return iter([reference.get(protocol, measure)["log_probabilities"]])

    def _metrics(self, name: str, cut: Cut, divergence: Tensor, same: Tensor) -> list[Metric]:
        mean = intervals.mean(divergence.mean(1).numpy())
        top1 = intervals.mean(same.mean(1).numpy())
        median, p99 = np.percentile(divergence.numpy(), [50, 99])
        tail = f"{cut.signature}|tokens:{divergence.numel()}|logprobs:float32|v{self.version}"
        kl = f"kl(full||quantized)|{tail}"
        return [
            Metric(f"kl_mean/{name}", mean.value, "nat", "lower", kl, mean.lo, mean.hi),
            Metric(f"kl_median/{name}", float(median), "nat", "lower", kl),
            Metric(f"kl_p99/{name}", float(p99), "nat", "lower", kl),
            Metric(f"top1/{name}", top1.value, "", "higher", f"top1|{tail}", top1.lo, top1.hi),
        ]


def _measured(model: Model, reference: Reference, name: str, cut: Cut) -> Iterator[Tensor]:
    """The model's log-probabilities: those that perplexity left, then a forward pass for the rest.

    Without a perplexity probe before it, all come from a forward pass.
    """
    kept = reference.found(model, f"log_probabilities/{name}")
    count = 0 if kept is None else min(len(kept), len(cut.windows))
    if count:
        yield kept[:count]
    if count < len(cut.windows):
        yield from log_probabilities(model, cut.windows[count:])


def _one_by_one(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """Each window's ``(window - 1, vocabulary)``, however they were batched."""
    for batch in batches:
        yield from batch
