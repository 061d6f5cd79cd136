"""Times on a clock that the test turns: what is timed, in which order, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from bitsweep import engines
from bitsweep.artifacts import Artifacts
from bitsweep.data import Reference
from bitsweep.linear import quantized
from bitsweep.models import Model
from bitsweep.probes import latency
from bitsweep.probes.latency import NAMES, Latency, Round, median, metrics, noise
from bitsweep.record import Measurement
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.load("llama", tmp_path_factory.mktemp("llama"))


def measure(probe: Latency, model: Model, full: Model) -> Measurement:
    data: Any = None
    return probe(model, Reference(full, data, Artifacts(None)))


def quantize(model: Model, spec: QuantSpec) -> Model:
    copied = model.copy()
    for name in model.layers:
        quant = QuantTensor.quantize(model.weight(name), spec)
        copied.replace(name, quantized(quant, model.get(name)))
    copied.plan = Plan({name: LayerSpec(spec) for name in model.layers})
    return copied


class Clock:
    """``perf_counter`` in seconds, moved only by the fake runners."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def runner(self, name: str, prefill_ms: float, decode_ms: float) -> Any:
        def spend(ids: Tensor, milliseconds: float) -> tuple[None, str]:
            self.now += milliseconds / 1000
            self.calls.append((name, ids.shape[1]))
            return None, f"the cache of {name}"

        def decode(ids: Tensor, cache: str) -> None:
            assert cache == f"the cache of {name}"
            spend(ids, decode_ms)

        return SimpleNamespace(prefill=lambda ids: spend(ids, prefill_ms), decode=decode)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A point twice as fast as bf16 in decode and four times as fp32, half as fast in prefill."""
    clock = Clock()
    runners = {torch.bfloat16: (50.0, 4.0), torch.float32: (80.0, 8.0)}
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock.now)
    engine = SimpleNamespace(name="fast", build=lambda _: clock.runner("point", 100.0, 2.0))
    monkeypatch.setattr(engines, "choose", lambda name, model: (engine, None))
    monkeypatch.setattr(
        latency, "_baseline", lambda _, dtype: clock.runner(str(dtype), *runners[dtype])
    )
    return clock


def test_times_and_ratios_are_those_of_the_models_turns(clock: Clock, llama: Model) -> None:
    probe = Latency(prompts=(32,), tokens=4, seconds=0)
    found = {m.name: m.value for m in measure(probe, llama, llama).metrics}
    assert found == pytest.approx(
        {
            "prefill_ms": 100.0,
            "decode_ms": 2.0,
            "decode_tok_s": 500.0,
            "prefill_vs_bf16": 0.5,
            "prefill_vs_fp32": 0.8,
            "decode_vs_bf16": 2.0,
            "decode_vs_fp32": 4.0,
        }
    )


def test_each_model_warms_up_and_then_all_take_turns_another_one_first(
    clock: Clock, llama: Model
) -> None:
    measure(Latency(prompts=(32,), tokens=3, rounds=2, seconds=0), llama, llama)
    bf16, fp32 = "torch.bfloat16", "torch.float32"
    turns = [name for name, length in clock.calls if length == 32]
    warm, first, second = turns[:3], turns[3:7], turns[7:]
    assert warm == ["point", bf16, fp32]
    assert first == ["point", bf16, fp32, fp32]
    assert second == [bf16, fp32, fp32, "point"]
    assert sum(length == 1 for _, length in clock.calls) == 3 * 2 + 2 * 4 * 3


def test_rounds_go_on_until_the_seconds_are_spent(clock: Clock, llama: Model) -> None:
    """A round is 100 + 50 + 80 + 80 ms of prefill and 5 * (2 + 4 + 8 + 8) of tokens: 420 ms.

    With 230 + 2 * 14 ms of warm-up, 4 rounds end at 1.938 s and 5 at 2.358 s.
    """
    probe = Latency(prompts=(32,), tokens=5, rounds=2, seconds=2.0)
    assert len(measure(probe, llama, llama).details[0]["rounds"]) == 5


def test_a_batch_counts_each_of_its_sequences(clock: Clock, llama: Model) -> None:
    probe = Latency(prompts=(32, 64), batches=(1, 4), tokens=2, seconds=0)
    found = {m.name: m.value for m in measure(probe, llama, llama).metrics}
    assert len(found) == 4 * len(NAMES)
    assert found["decode_tok_s"] == pytest.approx(500)
    assert found["decode_tok_s/b4p64"] == pytest.approx(2000)
    assert found["decode_ms/b4p32"] == pytest.approx(2)


def test_a_signature_says_how_the_time_was_taken(clock: Clock, llama: Model) -> None:
    probe = Latency(prompts=(32,), tokens=2, seconds=0)
    signature = measure(probe, llama, llama).metrics[0].signature
    assert signature.startswith("latency|engine:fast|prompt:32|batch:1|tokens:2|threads:1|device:")
    assert signature.endswith(f"|torch:{torch.__version__}|v1")


def test_threads_load_and_noise_stand_beside_every_time(clock: Clock, llama: Model) -> None:
    details = measure(Latency(prompts=(32,), tokens=2, seconds=0), llama, llama).details[0]
    assert details["threads"] == 1
    assert details["load_before"] >= 0
    assert details["noise"] == {"prefill": 0, "decode": 0}


def test_one_slow_token_does_not_move_its_round() -> None:
    turn = Round({"point": 9.0}, {"point": [1.0, 1.0, 50.0]})
    assert turn.token("point") == 1.0


def test_ratios_are_taken_within_a_round() -> None:
    """The machine slows down threefold in the second round; the point is twice as fast in both."""
    rounds = [
        Round(dict.fromkeys(("bf16", "fp32"), 2 * slow) | {"point": slow},
              {k: [v * slow] for k, v in {"point": 1, "bf16": 2, "fp32": 2}.items()})
        for slow in (1.0, 3.0)
    ]  # fmt: skip
    found = {m.name: m for m in metrics(rounds, 1, "how")}
    ratio = found["decode_vs_bf16"]
    assert (ratio.value, ratio.lo, ratio.hi) == (2.0, 2.0, 2.0)
    assert (found["decode_ms"].lo, found["decode_ms"].hi) == (1.0, 3.0)


def test_noise_is_how_far_fp32_strays_from_itself() -> None:
    turn = Round({"fp32": 11.0, "fp32_again": 10.0}, {"fp32": [9.0], "fp32_again": [10.0]})
    assert noise([turn]) == pytest.approx({"prefill": 0.1, "decode": 0.1})


def test_the_median_lies_in_its_interval() -> None:
    over = median([5.0, 1.0, 2.0, 3.0, 4.0])
    assert over.value == 3
    assert 1 <= over.lo < 3 < over.hi <= 5


def test_a_point_without_an_engine_has_empty_cells_with_the_reason(llama: Model) -> None:
    found = measure(Latency(), quantize(llama, QuantSpec(3, 32)), llama)
    assert [m.name for m in found.metrics] == list(NAMES)
    assert {m.value for m in found.metrics} == {None}
    assert {m.reason for m in found.metrics} == {
        "no packed kernel for model.embed_tokens and 15 more layers "
        "(torch_int4: it has 3 bits, not 4; torch_int4_pair: it multiplies, and this is an "
        "embedding; torch_int8: it has 3 bits, not 8)"
    }
    assert found.details == []


def test_a_prompt_longer_than_the_context_is_not_timed(llama: Model) -> None:
    found = measure(Latency(prompts=(120,), tokens=16), llama, llama)
    assert found.metrics[0].reason == (
        "a prompt of 120 and 16 tokens are longer than the context of 128"
    )


@pytest.mark.parametrize(
    ("spec", "engine"),
    [(None, "dense"), (QuantSpec(8), "torch_int8"), (QuantSpec(4), "torch_int4")],
)
def test_a_real_model_is_timed(spec: QuantSpec | None, engine: str, llama: Model) -> None:
    model = llama if spec is None else quantize(llama, spec)
    found = measure(Latency(prompts=(16,), tokens=2, rounds=3, seconds=0), model, llama)
    assert f"|engine:{engine}|" in found.metrics[0].signature
    for metric in found.metrics:
        assert metric.value is not None
        assert metric.lo is not None
        assert 0 < metric.lo <= metric.value <= (metric.hi or 0)


def test_full_precision_is_timed_on_every_device(device: str, tmp_path: Path) -> None:
    model = tiny.load("llama", tmp_path, device=device)
    found = measure(Latency(prompts=(16,), tokens=2, rounds=3, seconds=0), model, model)
    assert all(metric.value is not None and metric.value > 0 for metric in found.metrics)


def test_the_engine_is_named_by_the_machine_and_not_by_the_protocol() -> None:
    data: Any = None
    assert "engine" not in Latency().identity(data, Artifacts(None))


def test_baselines_are_made_once_for_a_checkpoint(llama: Model) -> None:
    data: Any = None
    reference = Reference(llama, data, Artifacts(None))
    first = latency._baseline(reference, torch.bfloat16)
    assert latency._baseline(reference, torch.bfloat16) is first
    assert latency._baseline(reference, torch.float32) is not first
