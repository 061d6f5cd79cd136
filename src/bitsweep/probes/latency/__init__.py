"""Time of prefill and of a decoded token, of packed codes, beside bf16 and fp32.

A time is one of an engine that executes the point's own codes; a point without such an engine has
empty cells with the engine's reason. (Rivals time dequantized weights, fold prefill into the time
per token, or subtract one run from another.)

In one process, round by round, each model takes its turn: the point, bf16, fp32, and bf16 once
more. A turn is a prefill of a fixed prompt, then a fixed number of tokens on its cache, each timed
on its own; tokens are given, so nothing stops early and all models do the same work. Who begins
changes from round to round. A round's decode time is the median of its tokens; a metric is the
median over rounds with its 95 % bootstrap interval, a ratio the median over rounds of times that
were taken side by side: above 1 the point is faster. ``p90`` and ``p99`` are of all tokens of all
rounds; of fewer than 100 tokens, p99 is about the slowest.

bf16 against itself is the null comparison. Where its median ratio is further than 10 % from 1, or
the ends of an interval are more than a factor of 2 apart, something else was at work, and all
rounds of that shape are done again; where no repetition helps, the calmest stands, and reports mark
its numbers as ``noisy`` (:mod:`bitsweep.timing`).

``decode_gib_s`` is what the weights of a step (:mod:`.traffic`) and its time say about memory,
``decode_of_bandwidth`` its share of the bandwidth that a copy reached in this process. Above 1.1 it
is impossible, unless the weights fit into the cache: then a speedup says little of larger models.
``decode_of_bytes`` is the speedup over bf16 divided by the ratio of bytes: 1 is all that reading
fewer of them can give.

Everything that is not quantized runs in bf16, as in the bf16 model. A point with nothing quantized
is timed as it is, in its own dtype (engine ``dense``): the bf16 row reads about 1 against bf16.

Threads are torch's (and those of sessions, which are built for each number). They are not bound to
cores: the scheduler then can leave a core that something else needs, and two bound threads of which
one waits are the worst case. Who wants them bound starts bitsweep below ``taskset``; ``cores`` in
the details says how many it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from bitsweep import engines, provenance
from bitsweep.artifacts import Artifacts, plain
from bitsweep.data import Data, Reference
from bitsweep.engines import Engine, Runner, runner
from bitsweep.errors import UserError
from bitsweep.intervals import Interval
from bitsweep.models import Model
from bitsweep.probes import check_counts
from bitsweep.probes._decoding import tokens, too_long
from bitsweep.probes.latency import machine, turns
from bitsweep.probes.latency.machine import Bandwidth
from bitsweep.probes.latency.statistics import (
    AGAIN,
    BF16,
    COSTS,
    FP32,
    MIB,
    NAMES,
    POINT,
    Context,
    Round,
    flat,
    metrics,
    noise,
    null,
    numbers,
)
from bitsweep.probes.latency.traffic import step_bytes
from bitsweep.record import Kind, Measurement, Metric
from bitsweep.timing import Shape, unrest

DTYPES = {BF16: torch.bfloat16, FP32: torch.float32}
LISTS = ("prompts", "batches", "threads", "baselines")


@dataclass(frozen=True)
class Latency:
    """The metrics of :mod:`.statistics`, for each of ``threads`` x ``batches`` x ``prompts``.

    - ``prompts`` (tokens), ``batches`` (sequences), ``threads`` (empty: torch's present number).
      Metrics of the first of each have plain names, others end in ``/b4p512``, ``/t1`` or
      ``/b4p512t1``.
    - ``tokens`` are decoded after each prompt. At least ``rounds``, then more until ``seconds`` are
      spent on a shape; ``tokens=8 rounds=3 seconds=0`` is the least that has an interval.
    - ``baselines``: which of bf16 and fp32 are timed beside the point. Without one its ratios are
      missing; without both the point itself is the null comparison.
    - ``repeats``: how often a shape whose times were disturbed is done again.
    - ``price_per_hour`` of the machine, in any currency: adds the cost of a million tokens, of the
      prompt and decoded.

    Raises:
        UserError: a list or number that no time could be taken with.
    """

    engine: str = "auto"
    prompts: tuple[int, ...] = (128,)
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = ()
    baselines: tuple[str, ...] = (BF16, FP32)
    tokens: int = 16
    rounds: int = 5
    seconds: float = 1.5
    repeats: int = 2
    price_per_hour: float | None = None

    version: ClassVar[int] = 2
    kind: ClassVar[Kind] = "timing"

    def __post_init__(self) -> None:
        for name in LISTS:
            values = getattr(self, name)
            if len(set(values)) < len(values) or (not values and name in ("prompts", "batches")):
                raise UserError(f"probes.latency.{name}={list(values)}: give different values")
            if name != "baselines" and min(values, default=1) < 1:
                raise UserError(f"probes.latency.{name}={list(values)}: give numbers above 0")
        if not set(self.baselines) <= {*DTYPES}:
            raise UserError(f"probes.latency.baselines={list(self.baselines)}: use bf16, fp32")
        check_counts("latency", self, "tokens", "rounds")

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        """All options but the engine, which the machine names; a price only where there is one."""
        known = {name: value for name, value in plain(self).items() if name != "engine"}
        return {name: value for name, value in known.items() if value is not None}

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        engine, reason = engines.choose(self.engine, model)
        reason = reason or _offloaded(model)
        shapes = self._shapes()
        if engine is None or reason is not None:
            return Measurement(self._empty(shapes[0], shapes[0], model, None, str(reason)))
        signature = self._signature(shapes[0], model, engine)
        measurement = Measurement(self._without_baseline(shapes[0], model, signature))
        point: Runner | None = None
        with machine.threads_kept():
            for shape in shapes:
                misfit = self._misfit(shape, model)
                if misfit is not None:
                    measurement.metrics += self._empty(shape, shapes[0], model, engine, misfit)
                    continue
                if shape.threads != torch.get_num_threads():
                    torch.set_num_threads(shape.threads)
                    point = point if isinstance(point, runner.TorchRunner) else None
                point = point or engine.build(model)
                runners = self._runners(point, reference)
                speed = turns.bandwidth(reference.artifacts, model.device)
                found, details = self._measure(engine, runners, model, shape, speed)
                price = f"|price_per_hour:{self.price_per_hour}"
                measurement.metrics += metrics(found, signature, shape.suffix(shapes[0]), price)
                measurement.details.append({"engine": engine.name, **details})
        cache = machine.cache_bytes(model.device)
        if cache and measurement.details:
            measurement.metrics.append(Metric("cache_mib", cache / MIB, "MiB", "none", signature))
        return measurement

    def _shapes(self) -> list[Shape]:
        return [
            Shape(threads, batch, prompt)
            for threads in self.threads or (torch.get_num_threads(),)
            for batch in self.batches
            for prompt in self.prompts
        ]

    def _misfit(self, shape: Shape, model: Model) -> str | None:
        """A prompt longer than the model's context, threads that would wait for one another."""
        reason = too_long(model, shape.prompt, self.tokens)
        if reason is None and self.threads and shape.threads > machine.cores():
            return f"{shape.threads} threads are more than the {machine.cores()} cores there are"
        return reason

    def _runners(self, point: Runner, reference: Reference) -> dict[str, Runner]:
        """By name, in the order of their first turns."""
        found = {POINT: point}
        found |= {name: turns.baseline(reference, name, DTYPES[name]) for name in self.baselines}
        return {**found, AGAIN: found[null(found)]}

    def _measure(
        self,
        engine: Engine,
        runners: Mapping[str, Runner],
        model: Model,
        shape: Shape,
        speed: Bandwidth,
    ) -> tuple[dict[str, Interval | float], dict[str, Any]]:
        """Time ``shape``, again where it was disturbed, and keep the calmest attempt."""
        ids = tokens(model, shape.batch, shape.prompt + self.tokens)
        known = {
            name: count
            for name, each in runners.items()
            if (count := step_bytes(each, engine, model, shape.batch)) is not None
        }
        context = Context(shape.batch, shape.prompt, known, speed.best, self.price_per_hour)
        attempts: list[Attempt] = []
        while len(attempts) <= self.repeats and not (attempts and attempts[-1].unrest <= 1):
            watch = machine.Watch()
            rounds = turns.take(runners, ids, shape.prompt, self.rounds, self.seconds)
            strays = {name: round(value, 4) for name, value in noise(rounds).items()}
            found = numbers(rounds, context)
            seen = {**watch.seen(), "noise": strays}
            attempts.append(Attempt(unrest(flat(found)), found, rounds, seen))
        calmest = min(attempts, key=lambda attempt: attempt.unrest)
        details = {
            **asdict(shape),
            "cores": machine.cores(),
            **calmest.seen,
            "attempts": [attempt.seen for attempt in attempts],
            "step_bytes": known,
            "bandwidth": speed.to_json(),
            "rounds": [each.to_json() for each in calmest.rounds],
        }
        return calmest.found, details

    def _empty(
        self, shape: Shape, first: Shape, model: Model, engine: Engine | None, reason: str
    ) -> list[Metric]:
        """Of the first shape every number is missing with the reason, of others the two times."""
        signature, suffix = self._signature(first, model, engine), shape.suffix(first)
        wanted = ("prefill_ms", "decode_ms") if suffix else (*NAMES, *self._costs())
        return [
            Metric(name + suffix, None, unit, better, signature, reason=reason)
            for name in wanted
            for unit, better in [NAMES.get(name, ("", "lower"))]
        ]

    def _costs(self) -> tuple[str, ...]:
        return () if self.price_per_hour is None else COSTS

    def _without_baseline(self, first: Shape, model: Model, signature: str) -> list[Metric]:
        """The ratios to a model that was not timed, where the first shape is timed at all."""
        if self._misfit(first, model) is not None:
            return []
        chosen = f"probes.latency.baselines=[{','.join(self.baselines)}]"
        return [
            Metric(name, None, *NAMES[name], signature, reason=f"{chosen} leaves {left} out")
            for left in DTYPES
            if left not in self.baselines
            for name in (f"prefill_vs_{left}", f"decode_vs_{left}")
        ]

    def _signature(self, first: Shape, model: Model, engine: Engine | None) -> str:
        """The same for all shapes, so that a Record keeps it once: what plain names stand for."""
        return (
            f"latency|engine:{engine.name if engine else self.engine}{first.signed()}"
            f"|tokens:{self.tokens}|device:{provenance.device_name(str(model.device))}"
            f"|torch:{torch.__version__}|v{self.version}"
        )


class Attempt(NamedTuple):
    """One shape timed once: how disturbed, its numbers, and what they are of."""

    unrest: float
    found: dict[str, Interval | float]
    rounds: list[Round]
    seen: dict[str, Any]


def _offloaded(model: Model) -> str | None:
    """Why the time of a model that is too large for its device would be one of copying."""
    away = {p.device.type for p in model.module.parameters()} - {model.device.type}
    return f"parts of the model stay on {', '.join(sorted(away))}" if away else None
