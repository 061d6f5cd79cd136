"""Input quantizers: dynamic, static and adaptive, on numbers whose codes are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import desk
import pytest
import tiny
import torch
from torch import Tensor

from bitsweep import activations, policies
from bitsweep.activations import ranges
from bitsweep.activations.quantizer import AT_ONCE, InputQuantizer, adapt, counting, restored
from bitsweep.activations.ranges import FACTORS, Sample, quantile, static_params
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.data import TextSource
from bitsweep.errors import Refused, UserError
from bitsweep.linear import QuantLinear
from bitsweep.methods.rtn import RTN
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule
from bitsweep.record import Record
from bitsweep.spec import InputSpec, Plan, QuantSpec

UNIFORM = Policy("uniform", (Rule(role="linear"),))
W8 = QuantSpec(8, 32)


def codes(bits: float = 8, format: str = "int", group_size: int = -1, **more: bool) -> QuantSpec:
    return QuantSpec(bits, group_size, format=format, scale_dtype="float32", **more)


def inputs(bits: float = 8, **more: object) -> InputSpec:
    return InputSpec(codes(bits), **more)  # type: ignore[arg-type]


def static(spec: InputSpec, *batches: Tensor) -> InputQuantizer:
    """The quantizer of ``spec`` after calibration on ``batches`` ``(tokens, in)``."""
    sample = Sample(batches[0].shape[1], torch.device("cpu"))
    for batch in batches:
        sample.add(batch)
    return InputQuantizer(spec, static_params(sample, spec))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(spec: InputSpec, x: Tensor) -> float:
    return float((InputQuantizer(spec)(x) - x).square().sum())


def test_a_token_moves_at_most_half_a_step_of_its_own_range() -> None:
    x = numbers(5, 64) * torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0]).unsqueeze(1)
    step = (x.amax(1) - x.amin(1)) / 255
    moved = (InputQuantizer(inputs(8))(x) - x).abs().amax(1)
    assert bool((moved <= step * 0.5001).all())


def test_two_bits_of_a_token_by_hand() -> None:
    x = torch.tensor([[-1.0, 0.0, 0.4, 0.6, 2.0]])  # step (2 + 1) / 3 = 1
    assert InputQuantizer(inputs(2))(x).tolist() == [[-1.0, 0.0, 0.0, 1.0, 2.0]]


def test_no_token_feels_its_neighbours() -> None:
    x = numbers(2, 6, 64)
    quantizer = InputQuantizer(inputs(4))
    alone = torch.stack([torch.stack([quantizer(token) for token in row]) for row in x])
    assert torch.equal(quantizer(x), alone)


def test_groups_of_a_token_have_ranges_of_their_own() -> None:
    x = torch.cat([numbers(3, 32), 100 * numbers(3, 32)], dim=1)
    grouped = InputQuantizer(InputSpec(codes(4, group_size=32)))(x)
    each = [InputQuantizer(inputs(4))(part) for part in x.split(32, dim=1)]
    assert torch.equal(grouped, torch.cat(each, dim=1))


@pytest.mark.parametrize("format", ["int", "log"])
def test_more_bits_less_error(format: str) -> None:
    x = numbers(64, 64)
    errors = [error(InputSpec(codes(bits, format)), x) for bits in (3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)


def test_a_single_bit_keeps_the_sign_and_the_mean_magnitude() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, -6.0]])
    assert InputQuantizer(inputs(2).at(1))(x).tolist() == [[3.0, -3.0, 3.0, -3.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = numbers(4, 64).to(dtype)
    got = InputQuantizer(inputs(8))(x)
    assert got.dtype == dtype
    assert torch.equal(got, restored(x.float(), codes(8)).to(dtype))


def test_what_is_not_finite_stays_for_the_loss_to_tell() -> None:
    x = numbers(3, 8)
    x[1, 2], x[1, 3] = math.nan, math.inf
    got = InputQuantizer(inputs(4))(x)
    assert torch.equal(got[[0, 2]], InputQuantizer(inputs(4))(x[[0, 2]]))
    assert torch.equal(got[1], x[1]) or bool(got[1, 2].isnan() and got[1, 3].isinf())


def test_an_expert_without_tokens_has_nothing_to_quantize() -> None:
    assert InputQuantizer(inputs(4, per="tensor"))(torch.empty(0, 8)).shape == (0, 8)


def test_rows_are_the_same_however_many_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, quantizer = numbers(3, 5, 16), InputQuantizer(inputs(4, adaptive=(3, 4), threshold=0.02))
    whole = quantizer(x)
    monkeypatch.setitem(AT_ONCE, "cpu", 40)
    assert torch.equal(quantizer(x), whole)


def test_gradients_pass_straight_through_and_values_are_the_same() -> None:
    x = numbers(4, 16).requires_grad_()
    quantizer = InputQuantizer(inputs(4))
    y = quantizer(x)
    y.mul(torch.arange(16.0)).sum().backward()
    assert torch.equal(y, quantizer(x.detach()))
    assert torch.equal(x.grad, torch.arange(16.0).expand(4, 16))  # type: ignore[arg-type]


@pytest.mark.parametrize("symmetric", [False, True])
def test_static_minmax_of_a_tensor_is_dynamic_on_that_tensor(symmetric: bool) -> None:
    x = numbers(50, 16)
    spec = InputSpec(codes(4, symmetric=symmetric), per="tensor", range="minmax")
    dynamic = InputQuantizer(InputSpec(codes(4, symmetric=symmetric), per="tensor"))
    assert torch.equal(static(spec, x[:20], x[20:])(x), dynamic(x))


def test_static_minmax_of_a_channel_is_dynamic_on_that_column() -> None:
    x = numbers(50, 16) * torch.arange(1.0, 17.0)
    spec = inputs(4, per="channel", range="minmax")
    assert torch.equal(static(spec, x)(x), InputQuantizer(inputs(4))(x.T).T)


def test_static_ranges_clip_what_calibration_never_saw() -> None:
    spec = inputs(8, per="tensor", range="minmax")
    quantizer = static(spec, torch.tensor([[-1.0, 2.0]]))
    got = quantizer(torch.tensor([[-9.0, 9.0]]))
    torch.testing.assert_close(got, torch.tensor([[-1.0, 2.0]]), atol=3 / 255 / 2, rtol=0)


def test_the_ends_are_those_of_all_text_though_few_rows_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranges, "SAMPLE_ROWS", 10)
    x = torch.arange(100.0).unsqueeze(1)
    sample = Sample(1, torch.device("cpu"))
    for part in x.split(7):
        sample.add(part)
    assert (float(sample.low), float(sample.high)) == (0, 99)
    assert sample.value().flatten().tolist() == [0, 16, 32, 48, 64, 80, 96]


def test_a_percentile_is_the_number_of_that_rank() -> None:
    row = torch.arange(1.0, 1001.0).view(1, -1)[:, torch.randperm(1000)]
    assert float(quantile(row, 0.999)) == 999
    assert float(quantile(row, 1.0)) == 1000


def test_a_percentile_leaves_as_many_out_at_each_end() -> None:
    x = torch.arange(-499.0, 501.0).view(-1, 1)  # 1000 numbers, 5 left out at either end
    quantizer = static(inputs(8, per="tensor", range="percentile", percentile=99.0), x)
    step = (495 + 494) / 255
    assert float(quantizer.params["scale"]) == pytest.approx(step)


def test_mse_finds_the_best_factor_for_a_tensor_with_one_outlier() -> None:
    x = torch.cat([numbers(4000), torch.tensor([60.0])]).view(-1, 1)
    spec = inputs(4, per="tensor", range="mse")
    low, high = float(x.min()), float(x.max())
    by_hand = min(
        float((restored(x.clamp(f * low, f * high).T, codes(4)) - x.T).square().sum())
        for f in FACTORS
    )
    got = float((static(spec, x)(x) - x).square().sum())
    assert got == pytest.approx(by_hand, rel=1e-3)
    assert got < float((static(inputs(4, per="tensor", range="minmax"), x)(x) - x).square().sum())


def test_no_threshold_is_the_widest_and_a_large_one_the_narrowest() -> None:
    x = numbers(8, 64)
    for threshold, bits in ((0.0, 8), (1e9, 4)):
        spec = inputs(4, adaptive=(4, 6, 8), threshold=threshold)
        assert torch.equal(InputQuantizer(spec)(x), InputQuantizer(inputs(bits))(x))


def test_a_token_takes_the_first_width_that_is_near_enough() -> None:
    # 2 bits between 0 and 3 have the step 1: the first row is exact, the second is off by
    # 0.5**2 / (3**2 + 0.5**2) = 0.027 of its square; 4 bits have the step 0.2, and are off by 0.1
    x = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.5, 3.0]])
    for threshold, widths in ((0.02, [2, 4]), (0.03, [2, 2])):
        spec = inputs(2, adaptive=(2, 4), threshold=threshold)
        assert adapt(x, spec)[1].tolist() == widths


@pytest.fixture(scope="module")
def calibration(model: Model, folder: Path) -> Calibration:
    path = folder / "text.txt"
    path.write_text("The dog ran to the sea, and the cat sat on a mat. " * 40)
    spec = CalibrationSpec(TextSource("dogs", str(path)), windows=4, window=32)
    return Calibration(model, spec, Artifacts(None))


def quantized(
    model: Model, calibration: Calibration, spec: InputSpec | None, policy: Policy = UNIFORM
) -> Model:
    plan = policies.make(policy, model, W8, inputs=spec)
    assert activations.skip(plan, model) is None
    done = RTN()(model.copy(), plan, calibration)
    activations.install(done, plan, calibration)
    policies.audit(done, plan)
    return done


def logits(model: Model, calibration: Calibration) -> Tensor:
    """On the calibration text: static ranges clip what they never saw."""
    with torch.no_grad():
        return model.module(calibration.tokens).logits


@pytest.mark.parametrize(
    "spec",
    [
        inputs(8),
        inputs(8, per="tensor"),
        inputs(8, per="tensor", range="minmax"),
        inputs(8, per="channel", range="mse"),
        inputs(4, adaptive=(4, 8), threshold=1e-4),
        InputSpec(QuantSpec(4, 16, format="nvfp4", scale_dtype="e4m3"), range="minmax"),
    ],
    ids=str,
)
def test_wide_inputs_hardly_change_the_logits(
    model: Model, calibration: Calibration, spec: InputSpec
) -> None:
    before = logits(quantized(model, calibration, None), calibration)
    after = logits(quantized(model, calibration, spec), calibration)
    share = float((after - before).std() / before.std())
    assert 0 < share < (0.1 if spec.quant.format == "int" else 0.5)


def test_static_ranges_are_those_that_the_quantized_prefix_gives(
    model: Model, calibration: Calibration
) -> None:
    spec = inputs(4, per="tensor", range="minmax")
    done = quantized(model, calibration, spec)
    name = "model.layers.1.self_attn.q_proj"
    seen: list[Tensor] = []
    hook = done.get(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        done.module(calibration.tokens)
    hook.remove()
    span = max(0.0, float(seen[0].max())) - min(0.0, float(seen[0].min()))
    params = layer(done, name).input_quantizer.params  # type: ignore[union-attr]
    assert float(params["scale"]) == pytest.approx(span / 15, rel=1e-5)


def layer(model: Model, name: str) -> QuantLinear:
    found = model.get(name)
    assert isinstance(found, QuantLinear)
    return found


def test_every_planned_linear_layer_has_its_own_quantizer_and_an_embedding_none(
    folder: Path, calibration: Calibration
) -> None:
    tied = tiny.load("llama_tied", folder)
    done = quantized(tied, calibration, inputs(8), Policy("all", (Rule(),)))
    found = {n: getattr(done.get(n), "input_quantizer", None) for n in done.layers}
    head = tied.module.get_output_embeddings()
    assert head is not None
    assert [n for n, q in found.items() if q is None] == ["model.embed_tokens"]
    assert len({id(q) for q in found.values()}) == len(found)


def test_a_forgotten_quantizer_fails_the_audit(model: Model, calibration: Calibration) -> None:
    done = quantized(model, calibration, inputs(8))
    layer(done, "model.layers.1.mlp.down_proj").input_quantizer = None
    assert done.plan is not None
    with pytest.raises(RuntimeError, match=r"down_proj has inputs None, the plan says 8"):
        policies.audit(done, done.plan)


def test_the_average_of_spent_bits_weighs_layers_by_their_width(
    model: Model, calibration: Calibration
) -> None:
    # ffn.down reads 256 numbers a token at 8 bits, the six others 128 at 4: (2048 + 6 * 512) / 1024
    spec = inputs(4, adaptive=(4, 8), threshold=1e9)
    policy = Policy("down", (Rule(role="linear"), Rule(role="ffn.down", input_bits=8)))
    done = quantized(model, calibration, spec, policy)
    with counting(done) as spent:
        logits(done, calibration)
    assert spent.average == pytest.approx((256 * 8 + 6 * 128 * 4) / (256 + 6 * 128))
    logits(done, calibration)
    with counting(quantized(model, calibration, inputs(8))) as nothing:
        logits(done, calibration)
    assert nothing.average is None


def test_the_bits_of_a_rule_are_those_of_its_inputs(model: Model) -> None:
    rules = (Rule(role="linear"), Rule(role="ffn", input_bits=4), Rule(role="head", input_bits=16))
    plan = policies.make(Policy("mine", rules), model, W8, inputs=inputs(8))
    assert plan.layers["model.layers.0.self_attn.q_proj"].input == inputs(8)
    assert plan.layers["model.layers.0.mlp.up_proj"].input == inputs(4)
    assert plan.layers["lm_head"].input is None
    with pytest.raises(Refused, match=r"input.bits=16: .* input_bits=4 for model.layers.0.mlp"):
        policies.make(Policy("mine", rules), model, W8)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (inputs(1), r"input.bits=1: format=int has 2"),
        (inputs(8, range="minmax"), r"input.range=minmax: a token's range shows"),
        (inputs(8, per="channel"), r"input.per=channel: .* use input.range=minmax"),
        (InputSpec(codes(8, group_size=32), per="tensor"), r"input.group_size=32: .* no groups"),
        (InputSpec(codes(8, group_size=48)), r"input.group_size=48 does not divide in_features"),
        (InputSpec(codes(4, "power")), r"input.format=power: .* use input.range=minmax"),
        (
            inputs(4, adaptive=(4, 8), per="tensor", range="minmax"),
            r"input.adaptive: a token that chooses",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_key_to_change(
    model: Model, spec: InputSpec, reason: str
) -> None:
    plan = policies.make(UNIFORM, model, W8, inputs=spec)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(activations.skip(plan, model))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per": "row"}, r"input.per=row: use token or tensor or channel"),
        ({"range": "max"}, r"input.range=max: use dynamic or minmax"),
        ({"percentile": 40.0}, r"input.percentile=40: takes 100 down"),
        ({"adaptive": (8, 4)}, r"input.adaptive=\[8, 4\]: takes rising widths"),
        ({"threshold": -1.0}, r"input.threshold=-1: takes a number from 0"),
    ],
)
def test_a_mistake_names_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inputs(8, **values)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (inputs(8), "8"),
        (InputSpec(codes(4, "log", 32)), "log4g32"),
        (inputs(8, per="tensor", range="percentile", percentile=99.5), "8t-p99.5"),
        (InputSpec(codes(8, symmetric=True), per="channel", range="mse"), "8c-sym-mse"),
        (inputs(4, adaptive=(4, 6, 8), threshold=0.01), "4~6~8@0.01"),
    ],
    ids=str,
)
def test_a_spec_prints_all_that_tells_two_apart(spec: InputSpec, name: str) -> None:
    assert str(spec) == name


def test_static_ranges_are_counted_in_the_file(model: Model, calibration: Calibration) -> None:
    done = quantized(model, calibration, inputs(8, per="tensor", range="minmax"))
    quantizer = layer(done, "model.layers.0.mlp.up_proj").input_quantizer
    assert isinstance(quantizer, InputQuantizer)
    assert quantizer.nbytes() == 4 + 1  # a float32 scale, a zero of 8 bits
    assert InputQuantizer(inputs(8)).nbytes() == 0


def test_plan_with_inputs_survives_json(model: Model) -> None:
    plan = policies.make(UNIFORM, model, W8, inputs=inputs(4, adaptive=(4, 8), threshold=0.1))
    assert Plan.from_json(plan.to_json()) == plan


def test_the_row_says_what_was_asked_and_the_average_that_was_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = desk.lay(tmp_path)
    assert table("run", "bits=8", "input=adaptive", "input.threshold=0", "kv.bits=8") == 0
    record = Record.from_json(json.loads(table.records("adhoc")[0].read_text()))
    assert record.point["label"] == "rtn w8g64 a4~6~8@0 kv8 uniform"
    assert record.metrics["input_bits/text"].value == 8
    assert table("run", "bits=8", "input.bits=1") == 0
    for wrong in ("input.per=row", "input.format=nt", "input.bits=17", "kv.group_size=0"):
        capsys.readouterr()
        assert table("run", "input.bits=8", wrong) == 2
        assert wrong in capsys.readouterr().err
