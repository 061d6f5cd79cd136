"""Perplexity as in the GPTQ papers, with bits per byte beside it.

The text is joined, tokenized as one stream and cut into windows that do not overlap; each window
predicts all its tokens but the first (Frantar et al., GPTQ, arXiv 2210.17323, section 4). Rivals
differ, and print other numbers for one model: see docs/protocols.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from bitsweep import intervals
from bitsweep.activations.quantizer import counting
from bitsweep.artifacts import Artifacts
from bitsweep.data import Data, Reference, TextSource, stream, windows
from bitsweep.errors import UserError
from bitsweep.probes import check_counts
from bitsweep.probes._forward import KEPT_BYTES, scores
from bitsweep.record import Delta, Kind, Measurement, Metric

if TYPE_CHECKING:
    from bitsweep.models import Model


@dataclass(frozen=True)
class Perplexity:
    """``ppl/<text>`` and ``bits_per_byte/<text>`` of every text of the data.

    ``tokens`` limits each text to its first windows of so many tokens; null scores all of it.
    Where tokens choose the width of their inputs, ``input_bits/<text>`` is the average that they
    took on the way: bits of the codes, over all tokens and all numbers of all planned layers.
    """

    tokens: int | None = None

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quality"

    def __post_init__(self) -> None:
        check_counts("perplexity", self, "tokens")

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        return {"tokens": self.tokens, **text_identity(data, artifacts)}

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        measurement = Measurement([])
        for name, text in reference.data.texts.items():
            cut = cut_text(model, reference, text, self.tokens)
            protocol = {"probe": "perplexity", "version": self.version, **cut.protocol}
            with counting(model) as spent:
                scored = scores(model, cut.windows, KEPT_BYTES)
            reference.leave(model, f"log_probabilities/{name}", scored.log_probabilities)
            losses = scored.losses
            expected = reference.get(protocol, partial(_losses, cut=cut))["losses"]
            measurement.metrics += self._metrics(name, cut, losses, expected)
            if spent.average is not None:
                measurement.metrics.append(_input_bits(name, cut, spent.average))
            measurement.details.append(
                {
                    "metric": f"ppl/{name}",
                    "losses": [round(loss, 6) for loss in losses.tolist()],
                    "reference_losses": [round(loss, 6) for loss in expected.tolist()],
                }
            )
        return measurement

    def _metrics(self, name: str, cut: Cut, losses: Tensor, expected: Tensor) -> list[Metric]:
        loss, full = losses.numpy(), expected.numpy()
        predicted = np.full(len(loss), cut.windows.shape[1] - 1, dtype=np.float64)
        value = intervals.perplexity(loss, predicted)
        ratio = intervals.perplexity_ratio(loss, full, predicted)
        signature = f"{cut.signature}|tokens:{int(predicted.sum())}"
        metrics = [
            Metric(
                f"ppl/{name}",
                value.value,
                "",
                "lower",
                f"perplexity|{signature}|per:token|v{self.version}",
                value.lo,
                value.hi,
                Delta("ratio", ratio.value, ratio.lo, ratio.hi),
            )
        ]
        signature = f"bits_per_byte|{signature}|per:byte"
        if cut.bytes is None:
            reason = "this tokenizer does not say where its tokens lie in the text"
            return [
                *metrics,
                Metric(f"bits_per_byte/{name}", None, "bit", "lower", signature, reason=reason),
            ]
        count = cut.bytes.numpy().astype(np.float64)
        columns = np.stack([loss / math.log(2), full / math.log(2), count], axis=1)
        value = intervals.bootstrap(columns, lambda sums: sums[:, 0] / sums[:, 2])
        ratio = intervals.bootstrap(columns, lambda sums: sums[:, 0] / sums[:, 1])
        metrics.append(
            Metric(
                f"bits_per_byte/{name}",
                value.value,
                "bit",
                "lower",
                f"{signature}|bytes:{int(count.sum())}|v{self.version}",
                value.lo,
                value.hi,
                Delta("ratio", ratio.value, ratio.lo, ratio.hi),
            )
        )
        return metrics


@dataclass(frozen=True)
class Cut:
    """A text as windows int64 ``(n, window)``; ``bytes`` ``(n,)`` that each window predicts.

    A window predicts from the end of its first token to the end of its last.
    """

    windows: Tensor
    bytes: Tensor | None
    protocol: dict[str, Any]
    signature: str


def cut_text(model: Model, reference: Reference, text: TextSource, tokens: int | None) -> Cut:
    """The first windows of ``text``, ``tokens`` in all, at least two.

    Raises:
        UserError: the text is shorter than two windows.
    """
    data, artifacts = reference.data, reference.artifacts
    window = data.window_of(model)
    streamed = stream(text, model, artifacts, data.bos)
    limit = None if tokens is None else max(2, tokens // window)
    cut = windows(streamed["tokens"], window)[:limit]
    if len(cut) < 2:
        raise UserError(
            f"data.window={window}: the text {text.name} has {len(streamed['tokens'])} tokens, "
            "less than two windows; use a longer text or a smaller data.window"
        )
    ends = windows(streamed["bytes"], window)[:limit] if "bytes" in streamed else None
    sha256 = text.sha256(artifacts)
    return Cut(
        windows=cut,
        bytes=None if ends is None else ends[:, -1] - ends[:, 0],
        protocol={"text": sha256, "window": window, "bos": data.bos, "windows": len(cut)},
        signature=f"text:{text.name}|sha:{sha256[:12]}|window:{window}|stride:{window}"
        f"|bos:{data.bos}",
    )


def _input_bits(name: str, cut: Cut, average: float) -> Metric:
    signature = f"input_bits|{cut.signature}|tokens:{cut.windows.numel()}|codes|per:input number|v1"
    return Metric(f"input_bits/{name}", average, "bit", "lower", signature)


def _losses(model: Model, cut: Cut) -> dict[str, Tensor]:
    return {"losses": scores(model, cut.windows).losses}


def text_identity(data: Data, artifacts: Artifacts) -> dict[str, Any]:
    """What of the data decides the windows."""
    texts = {name: text.identity(artifacts) for name, text in data.texts.items()}
    return {"texts": texts, "window": data.window, "bos": data.bos}
