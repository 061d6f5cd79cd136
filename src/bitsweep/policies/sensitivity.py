"""Scores of the parts of a model, read from the Records of points with ``policy=only``.

A score is what quantizing one part alone costs: the increase of the loss in nats per token (the
logarithm of perplexity's ratio to full precision), the KL divergence, or any other metric of the
Records, such as a proxy of :mod:`bitsweep.probes.proxies`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bitsweep.record import Metric, Record

LOSS = "loss"
"""The score made of a perplexity: ``loss/<text>`` stands for ``ppl/<text>``."""

FREE = ("model", "data", "policy", "bits", "label", "seed")
"""Columns in which a scored point may differ from the one it speaks for. The checkpoint's hash
stands for the model's name; seeds are averaged over; scores may come from a text of their own."""

Part = frozenset[str]
"""The layers that were quantized, by name."""


@dataclass(frozen=True)
class Scores:
    """``values[part, bits]`` is the score by name, a mean over the Records that tell.

    ``names`` are those that every part has, in alphabetical order; ``protocols`` the signatures
    under which each was measured.
    """

    values: Mapping[tuple[Part, float], Mapping[str, float]]
    names: tuple[str, ...]
    protocols: Mapping[str, frozenset[str]]

    def name(self, wanted: str) -> str | None:
        """``loss`` and ``kl_mean`` without a text mean the first text's; None for no such score."""
        found = [name for name in self.names if name == wanted or name.startswith(f"{wanted}/")]
        return found[0] if found else None


def scores(records: Iterable[Record], columns: Mapping[str, Any], checkpoint: str) -> Scores:
    """The scores of ``checkpoint`` in points that differ from ``columns`` in nothing but bits."""
    found: dict[tuple[Part, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    protocols: dict[str, set[str]] = defaultdict(set)
    for record in records:
        part = only(record)
        if part is None or record.model.get("sha256") != checkpoint or not alike(record, columns):
            continue
        for metric in record.metrics.values():
            for name, value in readings(metric).items():
                found[part, record.point["bits"]][name].append(value)
                protocols[name].add(metric.signature)
    values = {key: {name: fmean(each) for name, each in by.items()} for key, by in found.items()}
    shared = set.intersection(*(set(each) for each in values.values())) if values else set()
    return Scores(values, tuple(sorted(shared)), {k: frozenset(v) for k, v in protocols.items()})


def only(record: Record) -> Part | None:
    """The layers that a good quality Record of ``policy=only`` quantized; None for any other."""
    layers = record.plan.get("notes", {}).get("layers")
    if layers is None or record.kind != "quality" or record.status != "ok":
        return None
    return frozenset(layers)


def alike(record: Record, columns: Mapping[str, Any]) -> bool:
    return all(record.point.get(key) == value for key, value in columns.items() if key not in FREE)


def readings(metric: Metric) -> dict[str, float]:
    """A metric as scores: its value by its name, and the loss's increase of a perplexity."""
    if metric.value is None:
        return {}
    kind, _, text = metric.name.partition("/")
    if kind == "ppl" and metric.delta is not None:
        return {f"{LOSS}/{text}": math.log(metric.delta.value)}
    return {metric.name: metric.value}
