"""Time of prefill and of a decoded token, of packed codes, beside bf16 and fp32.

A time is one of an engine that executes the point's own codes; a point without such an engine has
empty cells with the engine's reason. (Rivals time dequantized weights, fold prefill into the time
per token, or subtract one run from another; peers.md P16 to P18.)

In one process, round by round, each model takes its turn: the point, bf16, fp32, and fp32 once
more. A turn is a prefill of a fixed prompt, then a fixed number of tokens on its cache, each timed
on its own; tokens are given, so nothing stops early and all models do the same work. Who begins
changes from round to round. A round's decode time is the median of its tokens; a metric is the
median over rounds with its 95 % bootstrap interval, a ratio the median over rounds of times that
were taken side by side: above 1 the point is faster. fp32 against itself gives the noise.

Everything that is not quantized runs in bf16, as in the bf16 model. A point with nothing quantized
is timed as it is, in its own dtype (engine ``dense``): the bf16 row reads about 1 against bf16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import psutil
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bitsweep import engines, provenance
from bitsweep.artifacts import Artifacts, plain
from bitsweep.data import Data, Reference
from bitsweep.engines import Engine, Runner, runner
from bitsweep.models import Model
from bitsweep.record import Kind, Measurement, Metric
from bitsweep.stats import LEVEL, RESAMPLES, SEED, Interval

T = TypeVar("T")

POINT, BF16, FP32, NULL = "point", "bf16", "fp32", "fp32_again"
NAMES: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "prefill_ms": ("ms", "lower"),
    "decode_ms": ("ms", "lower"),
    "decode_tok_s": ("tok/s", "higher"),
    "prefill_vs_bf16": ("", "higher"),
    "prefill_vs_fp32": ("", "higher"),
    "decode_vs_bf16": ("", "higher"),
    "decode_vs_fp32": ("", "higher"),
}


@dataclass(frozen=True)
class Latency:
    """``prefill_ms``, ``decode_ms`` (of one step), ``decode_tok_s`` (of the whole batch), ratios.

    ``prompts`` (tokens) and ``batches`` (sequences) are lists; metrics of the first of each have
    plain names, others end in ``/b4p512``. ``tokens`` are decoded after each prompt. At least
    ``rounds``, then more until ``seconds`` are spent on a shape.
    """

    engine: str = "auto"
    prompts: tuple[int, ...] = (128,)
    batches: tuple[int, ...] = (1,)
    tokens: int = 16
    rounds: int = 5
    seconds: float = 1.5

    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "timing"

    def _too_long(self, model: Model) -> str | None:
        """A prompt that with its tokens is longer than the model's context."""
        longest = max(self.prompts) + self.tokens
        if longest > model.max_positions:
            return (
                f"a prompt of {max(self.prompts)} and {self.tokens} tokens are longer than the "
                f"context of {model.max_positions}"
            )
        return None

    def identity(self, data: Data, artifacts: Artifacts) -> dict[str, Any]:
        return {name: value for name, value in plain(self).items() if name != "engine"}

    def __call__(self, model: Model, reference: Reference) -> Measurement:
        engine, reason = engines.choose(self.engine, model)
        reason = reason or self._too_long(model) or _offloaded(model)
        shapes = [(batch, prompt) for batch in self.batches for prompt in self.prompts]
        measurement = Measurement([])
        if engine is None or reason is not None:
            for shape in shapes:
                measurement.metrics += self._empty(shape, model, str(reason))
            return measurement
        runners = {
            POINT: engine.build(model),
            BF16: _baseline(reference, torch.bfloat16),
            FP32: _baseline(reference, torch.float32),
        }
        runners[NULL] = runners[FP32]
        for shape in shapes:
            before = psutil.getloadavg()[0]
            rounds = self._rounds(runners, model, *shape)
            signature = self._signature(shape, model, engine)
            measurement.metrics += metrics(rounds, shape[0], signature, self._suffix(shape))
            measurement.details.append(
                {
                    "batch": shape[0],
                    "prompt": shape[1],
                    "engine": engine.name,
                    "threads": torch.get_num_threads(),
                    "load_before": round(before, 2),
                    "load_after": round(psutil.getloadavg()[0], 2),
                    "noise": {key: round(value, 4) for key, value in noise(rounds).items()},
                    "rounds": [turn.to_json() for turn in rounds],
                }
            )
        return measurement

    def _rounds(
        self, runners: Mapping[str, Runner], model: Model, batch: int, prompt: int
    ) -> list[Round]:
        """Time all of ``runners`` in turns, after one turn each that does not count."""
        generator = torch.Generator().manual_seed(SEED)
        vocabulary = model.module.config.get_text_config(decoder=True).vocab_size
        shape = (batch, prompt + self.tokens)
        ids = torch.randint(vocabulary, shape, generator=generator).to(model.device)
        started = time.perf_counter()
        for each in (runners[name] for name in (POINT, BF16, FP32)):
            _turn(each, ids[:, : prompt + 2], prompt)
        order, rounds = list(runners), list[Round]()
        while len(rounds) < self.rounds or time.perf_counter() - started < self.seconds:
            turns = {name: _turn(runners[name], ids, prompt) for name in order}
            rounds.append(
                Round({k: v[0] for k, v in turns.items()}, {k: v[1] for k, v in turns.items()})
            )
            order = order[1:] + order[:1]
        return rounds

    def _empty(self, shape: tuple[int, int], model: Model, reason: str) -> list[Metric]:
        signature, suffix = self._signature(shape, model, None), self._suffix(shape)
        return [
            Metric(name + suffix, None, unit, better, signature, reason=reason)
            for name, (unit, better) in NAMES.items()
        ]

    def _suffix(self, shape: tuple[int, int]) -> str:
        first = shape == (self.batches[0], self.prompts[0])
        return "" if first else f"/b{shape[0]}p{shape[1]}"

    def _signature(self, shape: tuple[int, int], model: Model, engine: Engine | None) -> str:
        return (
            f"latency|engine:{engine.name if engine else self.engine}|prompt:{shape[1]}"
            f"|batch:{shape[0]}|tokens:{self.tokens}|threads:{torch.get_num_threads()}"
            f"|device:{provenance.device_name(str(model.device))}|torch:{torch.__version__}"
            f"|v{self.version}"
        )


@dataclass(frozen=True)
class Round:
    """Milliseconds by model: of the prefill, and of each token that followed."""

    prefill: Mapping[str, float]
    decode: Mapping[str, list[float]]

    def token(self, name: str) -> float:
        """The median token."""
        return float(np.median(self.decode[name]))

    def to_json(self) -> dict[str, Any]:
        return {
            "prefill_ms": {name: round(value, 4) for name, value in self.prefill.items()},
            "decode_ms": {name: [round(v, 4) for v in each] for name, each in self.decode.items()},
        }


def metrics(rounds: list[Round], batch: int, signature: str, suffix: str = "") -> list[Metric]:
    """All of ``NAMES``, from at least one round."""
    prefill = {name: np.array([r.prefill[name] for r in rounds]) for name in rounds[0].prefill}
    decode = {name: np.array([r.token(name) for r in rounds]) for name in rounds[0].decode}
    values = {
        "prefill_ms": prefill[POINT],
        "decode_ms": decode[POINT],
        "decode_tok_s": 1000 * batch / decode[POINT],
        "prefill_vs_bf16": prefill[BF16] / prefill[POINT],
        "prefill_vs_fp32": prefill[FP32] / prefill[POINT],
        "decode_vs_bf16": decode[BF16] / decode[POINT],
        "decode_vs_fp32": decode[FP32] / decode[POINT],
    }
    found = []
    for name, (unit, better) in NAMES.items():
        over = median(values[name])
        found.append(
            Metric(name + suffix, over.value, unit, better, signature, lo=over.lo, hi=over.hi)
        )
    return found


def noise(rounds: list[Round]) -> dict[str, float]:
    """How far fp32 strays from itself, timed in the same turns: 0.03 is 3 %."""
    prefill = median([r.prefill[FP32] / r.prefill[NULL] for r in rounds]).value
    decode = median([r.token(FP32) / r.token(NULL) for r in rounds]).value
    return {"prefill": abs(prefill - 1), "decode": abs(decode - 1)}


def median(values: ArrayLike) -> Interval:
    """The median of ``values`` ``(n,)`` and its percentile bootstrap interval."""
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = array[generator.integers(len(array), size=(RESAMPLES, len(array)))]
    tail = (100 - LEVEL) / 2
    lo, hi = np.percentile(np.median(drawn, axis=1), [tail, 100 - tail])
    return Interval(float(np.median(array)), float(lo), float(hi))


def _turn(each: Runner, ids: Tensor, prompt: int) -> tuple[float, list[float]]:
    """Prefill ``ids[:, :prompt]`` and decode the rest: milliseconds of each."""
    (_, cache), prefill = _timed(partial(each.prefill, ids[:, :prompt]), ids.device)
    tokens = []
    for position in range(prompt, ids.shape[1]):
        token = ids[:, position : position + 1]
        tokens.append(_timed(partial(each.decode, token, cache), ids.device)[1])
    return prefill, tokens


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The result of ``work`` and its milliseconds; on CUDA between two events, waited for."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = work()
        end.record()
        end.synchronize()
        return result, begin.elapsed_time(end)
    started = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - started)


def _baseline(reference: Reference, dtype: torch.dtype) -> Runner:
    """The full-precision model in ``dtype``, made once for all points of one checkpoint."""
    full = reference.model
    key = {"checkpoint": full.checkpoint, "source": full.source, "dtype": str(dtype)}

    def make() -> Runner:
        return runner.TorchRunner(runner.cast(full, dtype).module)

    return reference.artifacts.remember("latency_baseline", key, make)


def _offloaded(model: Model) -> str | None:
    """Why the time of a model that is too large for its device would be one of copying."""
    away = {p.device.type for p in model.module.parameters()} - {model.device.type}
    return f"parts of the model stay on {', '.join(sorted(away))}" if away else None
