"""Distillation: everything but the codes moves towards the full-precision model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from bitsweep import policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.errors import UserError
from bitsweep.methods.hqq import HQQ
from bitsweep.methods.rtn import RTN
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule
from bitsweep.recover._tuning import Codes
from bitsweep.recover.distill import Distill
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor

W2 = QuantSpec(2, 32)
FFN = Policy("ffn", (Rule(role="ffn"),))
ALL = Policy("all", (Rule(),))
FAST = {"steps": 6, "batch": 4, "lr": 0.02}


@pytest.fixture(scope="module")
def text(folder: Path) -> CalibrationSpec:
    return tiny.letters(folder, 2048, windows=16, window=32)


@pytest.fixture(scope="module")
def calibration(folder: Path, text: CalibrationSpec) -> Calibration:
    return Calibration(tiny.load("llama", folder), text, Artifacts(None))


def quantized(calibration: Calibration, policy: Policy = FFN, spec: QuantSpec = W2) -> Model:
    model = calibration.model.copy()
    method = RTN() if spec.zero == "integer" else HQQ()
    return method(model, policies.make(policy, model, spec), calibration)


def after(step: Distill, model: Model, calibration: Calibration) -> Model:
    result = step(model.copy(), model.plan, calibration)
    policies.audit(result, model.plan)
    return result


def distance(model: Model, calibration: Calibration) -> float:
    """Nats a token between the model and the teacher, on the text that it was trained on."""
    with torch.no_grad():
        here = model.module(calibration.tokens).logits.log_softmax(-1)
        there = calibration.model.module(calibration.tokens).logits.log_softmax(-1)
    return float((there.exp() * (there - here)).sum(-1).mean())


def parameters(model: Model) -> dict[str, Tensor]:
    return dict(model.module.named_parameters())


@pytest.mark.parametrize("what", ["all", "scales", "norms"])
def test_it_comes_nearer_to_its_teacher(what, calibration):
    start = quantized(calibration)
    result = after(Distill(**FAST, what=what), start, calibration)
    assert distance(result, calibration) < distance(start, calibration)


def test_codes_and_unplanned_weights_stay(calibration):
    start = quantized(calibration)
    result = after(Distill(**FAST), start, calibration)
    for name in start.layers:
        if name in start.plan.layers:
            assert result.get(name).quant.codes is start.get(name).quant.codes
        else:
            assert result.get(name).weight is start.get(name).weight


@pytest.mark.parametrize(("what", "scales", "norms"), [("scales", 1, 0), ("norms", 0, 1)])
def test_only_what_was_asked_for_moves(what, scales, norms, calibration):
    start = quantized(calibration)
    result = after(Distill(**FAST, what=what), start, calibration)
    ffn = "model.layers.0.mlp.up_proj"
    moved = [
        not torch.equal(a, b)
        for a, b in (
            (result.get(ffn).quant.params["scale"], start.get(ffn).quant.params["scale"]),
            (result.module.model.norm.weight, start.module.model.norm.weight),
        )
    ]
    assert moved == [bool(scales), bool(norms)]


def test_the_model_that_it_was_given_and_the_teacher_keep_their_tensors(calibration):
    start = quantized(calibration)
    models = (start, calibration.model)
    before = [{n: (id(p), p.clone()) for n, p in parameters(m).items()} for m in models]
    scales = {n: start.get(n).quant.params["scale"].clone() for n in start.plan.layers}
    after(Distill(**FAST), start, calibration)
    for model, old in zip(models, before, strict=True):
        assert all(id(p) == old[n][0] for n, p in parameters(model).items())
        assert all(torch.equal(p, old[n][1]) for n, p in parameters(model).items())
        assert not any(p.requires_grad or p.grad is not None for p in parameters(model).values())
    assert all(torch.equal(start.get(n).quant.params["scale"], s) for n, s in scales.items())


def test_no_step_changes_nothing(calibration):
    start = quantized(calibration)
    result = after(Distill(steps=0), start, calibration)
    assert all(torch.equal(result.weight(n), start.weight(n)) for n in start.layers)
    assert all(torch.equal(p, parameters(start)[n]) for n, p in parameters(result).items())


def test_what_was_trained_is_what_is_stored():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    layer = Codes(QuantTensor.quantize(weight, QuantSpec(3, 24, ragged=True)), ["layer"])
    for knob in layer.knobs:
        knob.value.data += 0.3 * torch.randn(knob.value.shape)
    assert torch.equal(layer.trained().dequantize(), layer.value())


def test_a_scale_has_the_gradient_of_its_codes():
    weight = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    quant = QuantTensor.quantize(weight, QuantSpec(3, 16, symmetric=True))
    layer = Codes(quant, ["layer"])
    layer.value().sum().backward()
    expected = quant.dequantize().view(2, 2, 16).sum(-1)  # w = s (q - z): d w / d log s = w
    torch.testing.assert_close(layer.knobs[0].value.grad, expected)


@pytest.mark.parametrize(
    ("spec", "trained"),
    [
        (QuantSpec(2, 32), 1),  # an integer zero stays
        (QuantSpec(2, 32, zero="real"), 2),
        (QuantSpec(2, 32, scale_dtype="power_of_two"), 0),
        (QuantSpec(2, 0, symmetric=True, scale_dtype="float32"), 1),
    ],
)
def test_parameters_train_that_are_stored_as_numbers(spec, trained):
    quant = QuantTensor.quantize(torch.randn(4, 64), spec)
    assert len(Codes(quant, ["layer"]).knobs) == trained


def test_a_real_zero_moves(calibration):
    start = quantized(calibration, spec=QuantSpec(2, 32, zero="real"))
    result = after(Distill(**FAST), start, calibration)
    name = "model.layers.0.mlp.up_proj"
    old, new = (m.get(name).quant.params["zero"] for m in (start, result))
    assert new.dtype == torch.float16
    assert not torch.equal(old, new)


def test_a_tied_pair_stays_one_tensor(folder, text):
    calibration = Calibration(tiny.load("llama_tied", folder), text, Artifacts(None))
    start = quantized(calibration, ALL)
    result = after(Distill(**FAST), start, calibration)
    assert result.get("lm_head").quant is result.get("model.embed_tokens").quant
    assert distance(result, calibration) < distance(start, calibration)


def test_pruned_weights_stay_pruned(calibration):
    start = quantized(calibration)
    name = "model.layers.1.mlp.down_proj"
    mask = torch.rand(start.weight(name).shape, generator=torch.Generator().manual_seed(0)) > 0.5
    start.masks[name] = mask
    start.replace(
        name, type(start.get(name))(start.get(name).quant.masked(mask), None, torch.float32)
    )
    result = after(Distill(**FAST), start, calibration)
    assert not result.weight(name)[~mask].any()


class LowRank(nn.Module):
    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.full((2, features_in), 0.01), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(features_out, 2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.down.T @ self.up.T


def test_a_correction_trains_and_stays_in_its_place(calibration):
    start = quantized(calibration)
    name = "model.layers.0.mlp.up_proj"
    start.get(name).correction = LowRank(128, 256)
    result = after(Distill(**FAST, what="corrections"), start, calibration)
    assert result.get(name).correction.up.any()
    assert not start.get(name).correction.up.any()
    assert torch.equal(result.module.model.norm.weight, start.module.model.norm.weight)


class Rounding(nn.Module):
    """Inputs to multiples of a quarter, gradients straight through, as an InputQuantizer has it."""

    spec = None

    def forward(self, x: Tensor) -> Tensor:
        return (x * 4).round().detach() / 4 + (x - x.detach())


def test_inputs_stay_quantized_while_it_trains(calibration):
    start = quantized(calibration)
    for name in start.plan.layers:
        start.get(name).input_quantizer = Rounding()
    result = after(Distill(**FAST), start, calibration)
    assert all(isinstance(result.get(n).input_quantizer, Rounding) for n in start.plan.layers)
    assert distance(result, calibration) < distance(start, calibration)


def test_a_layer_of_another_library_is_named(calibration):
    start = quantized(calibration)
    name = "model.layers.0.mlp.up_proj"
    start.replace(name, nn.Linear(128, 256))
    with pytest.raises(UserError, match=f"recover=distill: {name} is a layer of another library"):
        Distill()(start, start.plan, calibration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "codes"}, "recover.distill.what=codes: use all, scales, norms, corrections"),
        ({"lr": -1.0}, "recover.distill.lr=-1: above 0"),
        ({"batch": 0}, "recover.distill.steps, batch: at least"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(UserError, match=message):
        Distill(**options)
