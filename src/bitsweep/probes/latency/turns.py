"""Models take turns: what is timed, in which order, and what all points of a process share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bitsweep import pace
from bitsweep.artifacts import Artifacts, plain
from bitsweep.data import Reference
from bitsweep.engines import Runner, runner
from bitsweep.probes.latency import machine
from bitsweep.probes.latency.machine import Bandwidth, timed
from bitsweep.probes.latency.statistics import AGAIN, Round

WARM = 2
"""Tokens after the prompt in a turn that does not count."""


def take(
    runners: Mapping[str, Runner], ids: Tensor, prompt: int, rounds: int, seconds: float
) -> list[Round]:
    """Time all of ``runners`` in turns, after one turn each that does not count.

    ``ids`` ``(batch, prompt + tokens)``. At least ``rounds``, more until ``seconds`` are over.
    """
    started = time.perf_counter()
    order, found = list(runners), list[Round]()
    counted = pace.of(range(rounds), rounds, f"rounds with a prompt of {prompt}")
    with machine.no_collection():
        for name in order:
            if name != AGAIN:
                _turn(runners[name], ids[:, : prompt + WARM], prompt)
        while next(counted, None) is not None or time.perf_counter() - started < seconds:
            each = {name: _turn(runners[name], ids, prompt) for name in order}
            prefill = {name: turn[0] for name, turn in each.items()}
            found.append(Round(prefill, {name: turn[1] for name, turn in each.items()}))
            order = order[1:] + order[:1]
    return found


def _turn(each: Runner, ids: Tensor, prompt: int) -> tuple[float, list[float]]:
    """Prefill ``ids[:, :prompt]`` and decode the rest: milliseconds of each."""
    (_, cache), prefill = timed(partial(each.prefill, ids[:, :prompt]), ids.device)
    tokens = []
    for position in range(prompt, ids.shape[1]):
        token = ids[:, position : position + 1]
        tokens.append(timed(partial(each.decode, token, cache), ids.device)[1])
    return prefill, tokens


def baseline(reference: Reference, name: str, dtype: torch.dtype) -> Runner:
    """The full-precision model in ``dtype``, made once for all points of one checkpoint; those of
    the checkpoint before are let go.
    """
    full = reference.model
    checkpoint = (full.checkpoint, plain(full.source))
    kept: dict[str, Any] = reference.artifacts.remember("latency_baselines", {}, dict)
    if kept.get("of") != checkpoint:
        kept.clear()
        kept["of"] = checkpoint
    if name not in kept:
        kept[name] = runner.TorchRunner(runner.cast(full, dtype).module)
    made: Runner = kept[name]
    return made


def bandwidth(artifacts: Artifacts, device: torch.device | str) -> Bandwidth:
    """Measured once a process for each number of threads."""
    key = {"device": str(device), "threads": torch.get_num_threads()}
    return artifacts.remember("bandwidth", key, lambda: machine.bandwidth(torch.device(device)))
