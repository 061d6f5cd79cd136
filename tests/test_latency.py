"""Times on a clock that the test turns: what is timed, in which order, and what becomes of it."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import records
import tiny
import torch
from torch import Tensor

from bitsweep import engines, pace
from bitsweep.artifacts import Artifacts
from bitsweep.data import Reference
from bitsweep.errors import UserError
from bitsweep.linear import quantized
from bitsweep.models import Model
from bitsweep.probes.latency import Latency, machine, turns
from bitsweep.probes.latency.machine import Bandwidth
from bitsweep.probes.latency.statistics import (
    COSTS,
    NAMES,
    Context,
    Round,
    median,
    metrics,
    noise,
    numbers,
)
from bitsweep.probes.latency.traffic import of_graph, of_module, step_bytes
from bitsweep.record import Measurement
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor
from bitsweep.timing import Shape

torch.set_num_threads(1)

SHARED = Artifacts(None)
"""Bandwidth is measured once."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.load("llama", tmp_path_factory.mktemp("llama"))


def measure(probe: Latency, model: Model, full: Model) -> Measurement:
    data: Any = None
    return probe(model, Reference(full, data, SHARED))


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
        self.built: list[int] = []
        self.disturbed = 0
        """Attempts of three rounds (of 1 + 3 * 2 turns of bf16) in which every other turn of bf16
        decodes a quarter slower."""

    def runner(self, name: str, prefill_ms: float, decode_ms: float) -> Any:
        turn = -1

        def spend(ids: Tensor, milliseconds: float) -> tuple[None, str]:
            nonlocal turn
            turn += ids.shape[1] > 1
            attempt, own = divmod(turn, 7)
            if name == "bf16" and attempt < self.disturbed and own % 2 and ids.shape[1] == 1:
                milliseconds *= 1.25
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
    runners = {"bf16": (50.0, 4.0), "fp32": (80.0, 8.0)}
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock.now)

    def build(model: Model) -> Any:
        clock.built.append(torch.get_num_threads())
        return clock.runner("point", 100.0, 2.0)

    engine = SimpleNamespace(name="fast", build=build)
    monkeypatch.setattr(engines, "choose", lambda name, model: (engine, None))
    monkeypatch.setattr(
        turns, "baseline", lambda _, name, dtype: clock.runner(name, *runners[name])
    )
    monkeypatch.setattr(machine, "bandwidth", lambda device: Bandwidth(10.0, 8.0, 64.0))
    monkeypatch.setattr(machine, "cache_bytes", lambda device: 32 * 2**20)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    return clock


def test_times_and_ratios_are_those_of_the_models_turns(clock: Clock, llama: Model) -> None:
    probe = Latency(prompts=(32,), tokens=4, seconds=0)
    found = {m.name: m.value for m in measure(probe, llama, llama).metrics}
    assert found == pytest.approx(
        {
            "prefill_ms": 100.0,
            "prefill_tok_s": 320.0,
            "prefill_vs_bf16": 0.5,
            "prefill_vs_fp32": 0.8,
            "prefill_noise": 0.0,
            "decode_ms": 2.0,
            "decode_p90_ms": 2.0,
            "decode_p99_ms": 2.0,
            "decode_tok_s": 500.0,
            "decode_vs_bf16": 2.0,
            "decode_vs_fp32": 4.0,
            "decode_noise": 0.0,
            "cache_mib": 32.0,
        },
        abs=1e-9,
    )


def test_each_model_warms_up_and_then_all_take_turns_another_one_first(
    clock: Clock, llama: Model
) -> None:
    measure(Latency(prompts=(32,), tokens=3, rounds=2, seconds=0), llama, llama)
    taken = [name for name, length in clock.calls if length == 32]
    warm, first, second = taken[:3], taken[3:7], taken[7:]
    assert warm == ["point", "bf16", "fp32"]
    assert first == ["point", "bf16", "fp32", "bf16"]
    assert second == ["bf16", "fp32", "bf16", "point"]
    assert sum(length == 1 for _, length in clock.calls) == 3 * 2 + 2 * 4 * 3


def test_rounds_go_on_until_the_seconds_are_spent(clock: Clock, llama: Model) -> None:
    """A round is 100 + 50 + 80 + 50 ms of prefill and 5 * (2 + 4 + 8 + 4) of tokens: 370 ms.

    With 230 + 2 * 14 ms of warm-up, 4 rounds end at 1.738 s and 5 at 2.108 s.
    """
    probe = Latency(prompts=(32,), tokens=5, rounds=2, seconds=2.0)
    assert len(measure(probe, llama, llama).details[0]["rounds"]) == 5


def test_the_rounds_that_are_asked_for_are_counted(clock: Clock, llama: Model) -> None:
    said: list[pace.Step] = []
    with pace.heard(said.append):
        measure(Latency(prompts=(32,), tokens=4, rounds=3, seconds=0), llama, llama)
    assert [(step.done, step.total, step.units) for step in said] == [
        (done, 3, "rounds with a prompt of 32") for done in (1, 2, 3)
    ]


def test_a_batch_counts_each_of_its_sequences(clock: Clock, llama: Model) -> None:
    probe = Latency(prompts=(32, 64), batches=(1, 4), tokens=2, seconds=0)
    found = {m.name: m.value for m in measure(probe, llama, llama).metrics}
    assert found["decode_tok_s"] == pytest.approx(500)
    assert found["decode_tok_s/b4p64"] == pytest.approx(2000)
    assert found["prefill_tok_s/b4p64"] == pytest.approx(1000 * 4 * 64 / 100)
    assert found["decode_ms/b4p32"] == pytest.approx(2)


def test_threads_are_set_for_their_shapes_and_back_afterwards(clock: Clock, llama: Model) -> None:
    """What is no module of torch is built for each number of threads."""
    probe = Latency(prompts=(32,), threads=(2, 1), tokens=2, seconds=0)
    found = measure(probe, llama, llama)
    assert clock.built == [2, 1]
    assert [row["threads"] for row in found.details] == [2, 1]
    assert {"decode_ms", "decode_ms/t1"} <= {m.name for m in found.metrics}
    assert torch.get_num_threads() == 1


def test_more_threads_than_cores_are_not_timed(clock: Clock, llama: Model) -> None:
    probe = Latency(prompts=(32,), threads=(1, 4), tokens=2, seconds=0)
    found = {m.name: m for m in measure(probe, llama, llama).metrics}
    assert found["decode_ms"].value is not None
    assert found["decode_ms/t4"].reason == "4 threads are more than the 2 cores there are"


def test_a_stray_null_comparison_is_done_again_until_it_is_calm(clock: Clock, llama: Model) -> None:
    """bf16 takes 4 ms a token and 5 in every other turn: the ratios are 5/4, 5/4 and, as it begins
    with the repetition, 4/5."""
    clock.disturbed = 2
    found = measure(Latency(prompts=(32,), tokens=2, rounds=3, seconds=0), llama, llama)
    (row,) = found.details
    assert [each["noise"]["decode"] for each in row["attempts"]] == [0.25, 0.25, 0.0]
    assert row["noise"] == {"prefill": 0, "decode": 0}


def test_times_that_jump_are_done_again(
    clock: Clock, llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first attempt one of three rounds decodes in a quarter of the time of the others: the
    interval of three is from the least to the most of them."""
    turns_taken, take = [], turns.take

    def disturbed(*given: Any) -> list[Round]:
        rounds = take(*given)
        turns_taken.append(len(rounds))
        if len(turns_taken) == 1:
            quick = {**rounds[0].decode, "point": [each / 4 for each in rounds[0].decode["point"]]}
            rounds[0] = replace(rounds[0], decode=quick)
        return rounds

    monkeypatch.setattr(turns, "take", disturbed)
    found = measure(Latency(prompts=(32,), tokens=2, rounds=3, seconds=0), llama, llama)
    assert len(turns_taken) == 2
    assert [each["noise"]["decode"] for each in found.details[0]["attempts"]] == [0.0, 0.0]
    ratio = {m.name: m for m in found.metrics}["decode_vs_bf16"]
    assert (ratio.lo, ratio.hi) == (2.0, 2.0)


def test_a_machine_that_never_is_calm_says_so(clock: Clock, llama: Model) -> None:
    clock.disturbed = 99
    probe = Latency(prompts=(32,), tokens=2, rounds=3, seconds=0, repeats=1)
    found = measure(probe, llama, llama)
    assert len(found.details[0]["attempts"]) == 2
    assert {m.name: m.value for m in found.metrics}["decode_noise"] == pytest.approx(0.25)


def test_a_baseline_may_be_left_out(clock: Clock, llama: Model) -> None:
    probe = Latency(prompts=(32, 64), tokens=2, seconds=0, baselines=("bf16",))
    found = {m.name: m for m in measure(probe, llama, llama).metrics}
    assert found["decode_vs_bf16"].value == pytest.approx(2.0)
    assert found["decode_vs_fp32"].reason == "probes.latency.baselines=[bf16] leaves fp32 out"
    assert "decode_vs_fp32/b1p64" not in found


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"baselines": ("fp16",)}, r"baselines=\['fp16'\]: use bf16, fp32"),
        ({"prompts": ()}, r"prompts=\[\]: give different values"),
        ({"batches": (4, 4)}, r"batches=\[4, 4\]: give different values"),
        ({"threads": (0,)}, r"threads=\[0\]: give numbers above 0"),
        ({"tokens": 0}, "tokens=0: give at least 1"),
    ],
)
def test_what_can_not_be_timed_is_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"probes.latency.{message}"):
        Latency(**option)


def test_a_signature_says_how_the_time_was_taken(clock: Clock, llama: Model) -> None:
    probe = Latency(prompts=(32, 64), tokens=2, seconds=0)
    signatures = {m.signature for m in measure(probe, llama, llama).metrics}
    (signature,) = signatures
    assert signature.startswith("latency|engine:fast|prompt:32|batch:1|threads:1|tokens:2|device:")
    assert signature.endswith(f"|torch:{torch.__version__}|v2")


def test_what_else_ran_stands_beside_every_time(clock: Clock, llama: Model) -> None:
    details = measure(Latency(prompts=(32,), tokens=2, seconds=0), llama, llama).details[0]
    assert details["threads"] == 1
    assert details["cores"] == 2
    assert details["load_before"] >= 0
    assert details["others"] >= 0
    assert details["noise"] == {"prefill": 0, "decode": 0}


def test_a_price_makes_a_cost(clock: Clock, llama: Model) -> None:
    """500 tokens a second are 1.8 million an hour; 320 of the prompt 1.152 million."""
    probe = Latency(prompts=(32,), tokens=2, seconds=0, price_per_hour=3.6)
    found = {m.name: m for m in measure(probe, llama, llama).metrics}
    assert found["decode_cost_per_mtok"].value == pytest.approx(2.0)
    assert found["prefill_cost_per_mtok"].value == pytest.approx(3.125)
    assert found["decode_cost_per_mtok"].signature.endswith("|v2|price_per_hour:3.6")


@pytest.mark.parametrize("shape", [Shape(2, 1, 32), Shape(2, 4, 32), Shape(1, 1, 32)])
def test_a_shape_is_read_back_from_its_name_and_signature(shape: Shape) -> None:
    first = Shape(threads=2, batch=1, prompt=32)
    suffix = shape.suffix(first)
    assert Shape.read(f"latency|engine:a{first.signed()}|v2", suffix.removeprefix("/")) == shape


def test_the_name_of_a_shape_says_what_is_not_the_first() -> None:
    first = Shape(threads=2, batch=1, prompt=32)
    shapes = [first, Shape(2, 4, 512), Shape(1, 1, 32), Shape(1, 4, 512)]
    assert [shape.suffix(first) for shape in shapes] == ["", "/b4p512", "/t1", "/b4p512t1"]


def rounds_of(point: float, bf16: float) -> list[Round]:
    decode = {"point": [point] * 9 + [10 * point], "bf16": [bf16], "again": [bf16]}
    return [Round(dict.fromkeys(decode, 1.0), decode)]


def test_bytes_and_time_give_a_share_of_the_bandwidth() -> None:
    """1 MiB in 2 ms is 500 MiB/s, an eighth of 4000. Half the bytes of bf16 at 1.5 times its speed
    are three quarters of what reading fewer bytes could give."""
    context = Context(1, 32, {"point": 2**20, "bf16": 2 * 2**20}, bandwidth=4000 * 2**20)
    found = numbers(rounds_of(2.0, 3.0), context)
    value = {name: getattr(each, "value", each) for name, each in found.items()}
    assert value["decode_mib"] == 1
    assert value["decode_gib_s"] == pytest.approx(500 / 1024)
    assert value["decode_of_bandwidth"] == pytest.approx(0.125)
    assert value["decode_of_bytes"] == pytest.approx(0.75)


def test_percentiles_are_of_all_tokens() -> None:
    """Nine of 1 ms and one of 10: ranks 0 to 9, so the 90th per cent lies at rank 8.1."""
    found = numbers(rounds_of(1.0, 3.0), Context(1, 32, {}))
    assert found["decode_p90_ms"] == pytest.approx(1.9)
    assert found["decode_p99_ms"] == pytest.approx(1 + 0.91 * 9)
    assert "decode_mib" not in found


def test_a_step_reads_all_but_the_embedding_of_which_it_reads_rows(llama: Model) -> None:
    """Untied: every parameter but the embedding in full, of that one row for each sequence."""
    module = llama.module
    embedding = module.get_input_embeddings().weight
    others = sum(p.nbytes for p in module.parameters() if p is not embedding)
    others += sum(b.nbytes for b in module.buffers())
    row = embedding.shape[1] * 4
    assert of_module(module, 1) == others + row
    assert of_module(module, 16) == others + 16 * row


def test_a_tied_head_is_read_in_full_and_once() -> None:
    head, table = torch.nn.Linear(8, 100, bias=False), torch.nn.Embedding(100, 8)
    table.weight = head.weight
    module = torch.nn.ModuleList([table, head, torch.nn.ModuleList([head])])
    assert of_module(module, 2) == 100 * 8 * 4 + 2 * 8 * 4


def test_packed_bytes_are_those_that_run(llama: Model) -> None:
    """4 bits a weight and 32 a group of 32 (scale and shift): 5 bits; the rest in bf16."""
    model = quantize(llama, QuantSpec(4, 32))
    engine, reason = engines.choose("auto", model)
    assert reason is None
    assert engine is not None
    linear = [model.get(name) for name in model.layers if "embed" not in name]
    codes = sum(5 * layer.in_features * layer.out_features // 8 for layer in linear)
    read = step_bytes(engine.build(model), engine, model, 1)
    norms = sum(p.numel() * 2 for name, p in model.module.named_parameters() if "norm" in name)
    assert read is not None
    assert codes + norms < read < 1.1 * (codes + norms)


def test_a_graph_reads_what_it_declares(llama: Model) -> None:
    """Groups of 32: 4 bits a weight and for each group a zero of 4 and a scale of 32; everything
    that is not quantized in 32 bits, of the embedding the row of one sequence."""
    model = quantize(llama, QuantSpec(4, 32))
    layers = [model.get(name) for name in model.layers]
    sizes = [x.quant.shape.numel() * (4 + 36 / 32) / 8 for x in layers]
    rows = [getattr(x, "num_embeddings", 1) for x in layers]
    norms = sum(4 * p.numel() for p in model.module.parameters())
    expected = norms + sum(size / n for size, n in zip(sizes, rows, strict=True))
    assert of_graph(model, torch.float32, 1) == expected


def test_bandwidth_is_measured_and_plausible() -> None:
    found = machine.bandwidth(torch.device("cpu"))
    assert 0.05 < found.read_gib_s < 2000
    assert found.best >= found.copy_gib_s * 2**30


def test_garbage_is_not_collected_while_times_are_taken() -> None:
    with machine.no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_one_slow_token_does_not_move_its_round() -> None:
    turn = Round({"point": 9.0}, {"point": [1.0, 1.0, 50.0]})
    assert turn.token("point") == 1.0


def test_ratios_are_taken_within_a_round() -> None:
    """The machine slows down threefold in the second round; the point is twice as fast in both."""
    rounds = [
        Round(dict.fromkeys(("bf16", "again"), 2 * slow) | {"point": slow},
              {k: [v * slow] for k, v in {"point": 1, "bf16": 2, "again": 2}.items()})
        for slow in (1.0, 3.0)
    ]  # fmt: skip
    found = {m.name: m for m in metrics(numbers(rounds, Context(1, 1, {})), "how")}
    ratio = found["decode_vs_bf16"]
    assert (ratio.value, ratio.lo, ratio.hi) == (2.0, 2.0, 2.0)
    assert (found["decode_ms"].lo, found["decode_ms"].hi) == (1.0, 3.0)


def test_noise_is_how_far_a_model_strays_from_itself() -> None:
    turn = Round({"bf16": 11.0, "again": 10.0}, {"bf16": [9.0], "again": [10.0]})
    assert noise([turn]) == pytest.approx({"prefill": 0.1, "decode": 0.1})


def test_the_median_lies_in_its_interval() -> None:
    over = median([5.0, 1.0, 2.0, 3.0, 4.0])
    assert over.value == 3
    assert 1 <= over.lo < 3 < over.hi <= 5


def test_a_point_without_an_engine_has_empty_cells_with_the_reason(llama: Model) -> None:
    found = measure(Latency(), quantize(llama, QuantSpec(3, 32)), llama)
    assert [m.name for m in found.metrics] == list(NAMES)
    assert {m.value for m in found.metrics} == {None}
    (reason,) = {m.reason for m in found.metrics}
    assert str(reason).startswith("no packed kernel for model.embed_tokens and 15 more layers (")
    assert found.details == []


def test_a_prompt_longer_than_the_context_is_not_timed(llama: Model) -> None:
    probe = Latency(prompts=(16, 120), tokens=16, rounds=1, seconds=0, repeats=0)
    found = {m.name: m for m in measure(probe, llama, llama).metrics}
    assert found["decode_ms"].value is not None
    assert found["decode_ms/b1p120"].reason == (
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
    assert {m.name for m in found.metrics} - {"cache_mib"} == {*NAMES}
    for metric in found.metrics:
        assert metric.value is not None
        if metric.lo is not None:
            assert 0 < metric.lo <= metric.value <= (metric.hi or 0)


def test_full_precision_is_timed_on_every_device(device: str, tmp_path: Path) -> None:
    model = tiny.load("llama", tmp_path, device=device)
    found = measure(Latency(prompts=(16,), tokens=2, rounds=3, seconds=0), model, model)
    assert all(metric.value is not None and metric.value >= 0 for metric in found.metrics)


def test_the_engine_is_named_by_the_machine_and_not_by_the_protocol() -> None:
    data: Any = None
    assert "engine" not in Latency().identity(data, Artifacts(None))


def test_baselines_are_made_once_for_a_checkpoint(llama: Model) -> None:
    data: Any = None
    reference = Reference(llama, data, Artifacts(None))
    first = turns.baseline(reference, "bf16", torch.bfloat16)
    assert turns.baseline(reference, "bf16", torch.bfloat16) is first
    assert turns.baseline(reference, "fp32", torch.float32) is not first


def test_a_record_of_twelve_shapes_is_small(clock: Clock, llama: Model) -> None:
    """A Record has at most 16 kB, of which 3 are not metrics."""
    probe = Latency(
        prompts=(16, 32), batches=(1, 4, 16), threads=(2, 1), tokens=2, rounds=2, seconds=0
    )
    record = records.record(kind="timing")
    record.add(measure(replace(probe, price_per_hour=2.5), llama, llama))
    assert len(record.metrics) == 12 * (len(NAMES) - 4 + len(COSTS)) + 1  # no bytes are known here
    assert len(json.dumps(record.to_json()["metrics"])) < 13_000


def test_percentiles_are_of_the_tokens_of_all_rounds() -> None:
    """Nine of 1 ms and one of 10, nine of 3 and one of 30: ranks 17.1 and 18.81 of 0 to 19."""
    found = numbers(rounds_of(3.0, 20.0) + rounds_of(1.0, 20.0), Context(1, 32, {}))
    assert found["decode_p90_ms"] == pytest.approx(3 + 0.1 * 7)
    assert found["decode_p99_ms"] == pytest.approx(10 + 0.81 * 20)


def test_one_round_that_strays_does_not_widen_the_interval() -> None:
    assert median([3.0] * 10 + [1000.0]).hi == 3.0


def test_tensors_over_the_same_memory_are_read_once() -> None:
    head, other = torch.nn.Linear(8, 100, bias=False), torch.nn.Linear(8, 100, bias=False)
    other.weight = torch.nn.Parameter(head.weight.data)
    assert other.weight is not head.weight
    assert of_module(torch.nn.ModuleList([head, other]), 1) == 100 * 8 * 4


def test_a_graph_reads_one_row_of_the_embedding_for_each_sequence(llama: Model) -> None:
    """A row of 128: 4 bits a weight, and for each group of 32 a zero of 4 and a scale of 32."""
    model = quantize(llama, QuantSpec(4, 32))
    one, many = (of_graph(model, torch.float32, batch) for batch in (1, 16))
    assert many - one == 15 * 128 * (4 + 36 / 32) / 8


def test_the_bytes_of_a_step_are_those_of_its_shape(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "bandwidth", lambda device: Bandwidth(10.0, 8.0, 64.0))
    options = {"tokens": 2, "rounds": 1, "seconds": 0.0, "repeats": 0, "baselines": ()}
    found = measure(Latency("dense", (8,), (1, 4), **options), llama, llama)  # type: ignore[arg-type]
    one, four = (row["step_bytes"]["point"] for row in found.details)
    assert four - one == 3 * 128 * 4
