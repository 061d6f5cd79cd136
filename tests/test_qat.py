"""QAT: what its forward pass computes, what its gradients are, and where it begins and ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from bitsweep import policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.errors import UserError
from bitsweep.methods.gptq import GPTQ
from bitsweep.methods.qat import QAT, Latent, named
from bitsweep.methods.rtn import RTN
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor
from bitsweep.training import Schedule, _batches

W2 = QuantSpec(2, 32)
UNIFORM = Policy("uniform", (Rule(role="linear"),))
ALL = Policy("all", (Rule(),))
FAST = {"steps": 6, "batch": 4, "lr": 0.02}


@pytest.fixture(scope="module")
def text(folder: Path) -> CalibrationSpec:
    return tiny.letters(folder, 2048, windows=16, window=32)


@pytest.fixture
def calibration(model: Model, text: CalibrationSpec) -> Calibration:
    return Calibration(model, text, Artifacts(None))


def quantize(method, calibration: Calibration, spec=W2, policy=UNIFORM, model=None) -> Model:
    model = (model or calibration.model).copy()
    plan = policies.make(policy, model, method.resolve(spec))
    result = method(model, plan, calibration)
    policies.audit(result, plan)
    return result


def codes(model: Model) -> list[Tensor]:
    return [model.get(name).quant.codes for name in model.plan.layers]


def loss(model: Model, tokens: Tensor) -> float:
    """Nats a token of the windows that were trained on."""
    with torch.no_grad():
        logits = model.module(tokens).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def latent(spec: QuantSpec, rows=4, columns=64, **options) -> tuple[Latent, Tensor]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    start = QuantTensor.quantize(weight, spec)
    return Latent(
        start, weight, ["layer"], **{"learn_steps": True, "noise": None} | options
    ), weight


@pytest.mark.parametrize("start", ["rtn", "gptq", "hqq"])
def test_without_a_step_it_is_its_start(start, calibration):
    ours = quantize(QAT(start=start, steps=0), calibration)
    theirs = quantize(named(start), calibration)
    for name in theirs.plan.layers:
        assert torch.equal(ours.weight(name), theirs.weight(name))
        assert ours.get(name).quant.spec == theirs.get(name).quant.spec


def test_its_training_lowers_the_loss_that_it_trains_on(calibration):
    before = loss(quantize(RTN(), calibration), calibration.tokens)
    after = loss(quantize(QAT(**FAST), calibration), calibration.tokens)
    assert after < before - 0.1


def test_distillation_lowers_the_distance_to_the_full_precision_model(calibration):
    def distance(model: Model) -> float:
        with torch.no_grad():
            here = model.module(calibration.tokens).logits.log_softmax(-1)
            there = calibration.model.module(calibration.tokens).logits.log_softmax(-1)
        return float((there.exp() * (there - here)).sum(-1).mean())

    before = distance(quantize(RTN(), calibration))
    assert distance(quantize(QAT(**FAST, distill=1.0), calibration)) < 0.8 * before


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 48, -1, 0])
def test_what_was_trained_is_what_is_stored(symmetric, group_size):
    spec = QuantSpec(3, group_size, symmetric=symmetric, ragged=True)
    layer, _ = latent(spec)
    for knob in layer.knobs:
        knob.value.data += 0.1 * torch.randn(knob.value.shape)
    assert torch.equal(layer.rounded().dequantize(), layer.value())


def test_a_weight_has_a_gradient_inside_the_range_and_none_outside():
    layer, _ = latent(QuantSpec(2, 32, symmetric=True))
    weight = layer.knobs[0].value
    step = layer.rounded().params["scale"].float().repeat_interleave(32, 1)
    with torch.no_grad():
        weight[0, :32] += 5 * step[0, :32]
    ratio = weight.detach() / step  # codes -2 to 1
    layer.value().sum().backward()
    inside = (ratio > -2) & (ratio < 1)
    assert not inside[0].all()
    torch.testing.assert_close(weight.grad, inside.float())


def test_the_gradient_of_a_step_is_that_of_lsq():
    layer, _ = latent(QuantSpec(2, 32))
    weight, growth = (knob.value for knob in layer.knobs)
    layer.value().sum().backward()
    quant = layer.rounded()
    scale = quant.params["scale"].float()
    zero = quant.params["zero"].float().unsqueeze(-1)
    ratio = weight.detach().view(4, 2, 32) / scale.unsqueeze(-1)
    inside = (ratio + zero > 0) & (ratio + zero < 3)
    code = quant.codes.view(4, 2, 32) - zero
    lsq = torch.where(inside, code - ratio, code).sum(-1)  # Esser et al., eq. 3
    torch.testing.assert_close(growth.grad, lsq * scale, atol=1e-4, rtol=1e-4)  # d s / d log s = s


def test_noise_is_uniform_and_one_step_wide_about_the_clipped_weight():
    noise = torch.Generator().manual_seed(0)
    layer, weight = latent(QuantSpec(2, 0, scale_dtype="float32"), 64, 256, noise=noise)
    start = layer.rounded()
    step = float(start.params["scale"])
    low, high = float(start.dequantize().min()), float(start.dequantize().max())
    added = (layer.value().detach() - weight.clamp(low, high)) / step
    assert float(added.abs().max()) <= 0.5 + 1e-6
    assert abs(float(added.mean())) < 0.01
    assert abs(float(added.var()) - 1 / 12) < 0.002


def test_noise_trains_and_its_result_is_rounded(calibration):
    before = loss(quantize(RTN(), calibration), calibration.tokens)
    result = quantize(QAT(**FAST, estimator="noise", distill=0.0), calibration)
    assert loss(result, calibration.tokens) < before


def test_the_seed_decides_the_order_of_the_windows(calibration):
    def trained(seed: int) -> list[Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return codes(quantize(QAT(**FAST), calibration))

    one, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_steps_stay_where_they_are_not_learned(calibration):
    start = quantize(RTN(), calibration)
    fixed = quantize(QAT(**FAST, learn_steps=False), calibration)
    learned = quantize(QAT(**FAST), calibration)
    name = "model.layers.0.mlp.up_proj"
    scales = [m.get(name).quant.params["scale"] for m in (start, fixed, learned)]
    assert torch.equal(scales[0], scales[1])
    assert not torch.equal(scales[0], scales[2])
    assert scales[2].dtype == torch.float16


def test_pruned_weights_stay_pruned(model, calibration):
    pruned = model.copy()
    name = "model.layers.1.mlp.down_proj"
    mask = torch.rand(model.weight(name).shape, generator=torch.Generator().manual_seed(0)) > 0.5
    pruned.masks[name] = mask
    result = quantize(QAT(**FAST), calibration, model=pruned)
    assert not result.weight(name)[~mask].any()
    assert not torch.equal(
        result.weight(name), quantize(RTN(), calibration, model=pruned).weight(name)
    )


def test_a_pruned_weight_is_zero_while_it_trains():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    mask = weight > 0
    start = QuantTensor.quantize(weight, W2).masked(mask)
    layer = Latent(start, weight, ["layer"], learn_steps=False, noise=None)
    assert not layer.value()[~mask].any()


def test_columns_in_another_order_keep_their_codes(calibration):
    hessian = torch.eye(64) + 0.1
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    hessian[range(64), range(64)] = torch.rand(64, generator=torch.Generator().manual_seed(1)) + 2
    start = GPTQ(static_groups=False).quantize(weight, hessian, QuantSpec(3, 16))
    assert start.permutation is not None
    layer = Latent(start, weight, ["layer"], learn_steps=True, noise=None)
    assert torch.equal(layer.rounded().codes, start.codes)
    assert torch.equal(layer.value(), start.dequantize())


def test_a_tied_pair_trains_as_one(folder, text):
    tied = tiny.load("llama_tied", folder)
    calibration = Calibration(tied, text, Artifacts(None))
    start, result = (quantize(m, calibration, policy=ALL) for m in (RTN(), QAT(**FAST)))
    assert result.get("lm_head").quant is result.get("model.embed_tokens").quant
    assert not torch.equal(start.weight("lm_head"), result.weight("lm_head"))


def test_tokens_that_were_trained_on_are_counted(calibration):
    quantize(QAT(steps=3, batch=4), calibration)
    assert calibration.trained_tokens == 3 * 4 * 32


def test_the_rate_rises_and_falls_to_nothing():
    schedule = Schedule("method", steps=20, lr=1.0, batch=1, distill=0.0)
    rates = [schedule.rate(step) for step in range(21)]
    assert max(rates) == 1.0 == rates[1]
    assert rates[0] == 0.5
    assert rates[20] == 0
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_every_window_is_trained_on_before_one_comes_again():
    schedule = Schedule("method", steps=3, lr=1.0, batch=2, distill=0.0)
    order = _batches(torch.arange(6).view(6, 1), schedule, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(list(order)).view(-1).tolist()) == [0, 1, 2, 3, 4, 5]


def test_an_lr_that_is_too_large_is_named(calibration):
    with pytest.raises(UserError, match=r"method.lr=1e\+30: the loss is .* try method.lr=1e\+29"):
        quantize(QAT(steps=4, batch=2, lr=1e30), calibration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "qat"}, "method.start=qat: use one of"),
        ({"start": "full_precision"}, "method.start=full_precision: its layers can not"),
        ({"start": "torchao"}, "method.start=torchao: its layers can not"),
        ({"estimator": "soft"}, "method.estimator=soft: use ste or noise"),
        ({"lr": 0.0}, "method.lr=0: above 0"),
        ({"steps": -1}, "method.steps, batch: at least"),
        ({"distill": 2.0}, "method.distill=2: the share"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(UserError, match=message):
        QAT(**options)


def test_what_cannot_be_trained_is_refused_with_the_key_to_change():
    nf, powers = QuantSpec(4, 32, format="nf"), QuantSpec(4, 32, scale_dtype="power_of_two")
    assert "method.learn_steps=false" in (QAT().skip(nf) or "")
    assert "method.estimator=ste" in (QAT(estimator="noise", learn_steps=False).skip(nf) or "")
    assert "method.learn_steps=false" in (QAT().skip(powers) or "")
    assert QAT(learn_steps=False).skip(powers) is None
    assert QAT(start="hqq").skip(QuantSpec(4, 32, symmetric=True)) is not None
