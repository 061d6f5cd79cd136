"""AutoRound: where it begins, how far it goes, and that it goes downhill."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

from bitsweep import policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.methods.auto_round import AutoRound, Learner, _batches
from bitsweep.methods.rtn import RTN
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

UNIFORM = Policy("uniform", (Rule(role="linear"),))
SPECS = [QuantSpec(4, 16), QuantSpec(3, 16, True), QuantSpec(2, -1, scale_dtype="power_of_two")]


def gaussian(seed: int = 0) -> Tensor:
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def calibration(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    spec = tiny.letters(tmp_path_factory.mktemp("text"), 4096, windows=8, window=32)
    return Calibration(model, spec, Artifacts(None))


def quantize(method: AutoRound | RTN, model: Model, calibration: Calibration) -> Model:
    plan = policies.make(UNIFORM, model, QuantSpec(3, 32))
    return method(model.copy(), plan, calibration)


def block_error(full: Model, rounded: Model, calibration: Calibration) -> float:
    """Mean squared error of what comes out of the last block."""
    *_, one = calibration.blocks(full.copy())
    *_, two = calibration.blocks(rounded)
    return float((one.inputs() - two.inputs()).square().mean())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_begins_as_rounding_to_nearest(spec: QuantSpec) -> None:
    learner, nearest = Learner(gaussian(), spec, None), QuantTensor.quantize(gaussian(), spec)
    assert torch.equal(learner.quant().codes, nearest.codes)
    assert torch.equal(learner.weight(), nearest.dequantize())


def test_no_iterations_are_rtn(model: Model, calibration: Calibration) -> None:
    zero, rtn = quantize(AutoRound(0), model, calibration), quantize(RTN(), model, calibration)
    for name in zero.plan.layers if zero.plan else ():
        assert torch.equal(zero.weight(name), rtn.weight(name))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_is_trained_is_what_is_stored(spec: QuantSpec) -> None:
    learner, target = Learner(gaussian(), spec, None), gaussian(1)
    for step in range(20):
        (learner.weight() - target).square().sum().backward()
        learner.step((1 - step / 20) / 20, clip=True)
    assert not torch.equal(learner.weight(), QuantTensor.quantize(gaussian(), spec).dequantize())
    torch.testing.assert_close(learner.weight(), learner.quant().dequantize(), rtol=1e-6, atol=0)


def test_offsets_alone_move_a_code_by_one_at_most() -> None:
    spec = QuantSpec(4, 16)
    learner, nearest = Learner(gaussian(), spec, None), QuantTensor.quantize(gaussian(), spec)
    for step in range(20):
        learner.weight().sum().backward()  # every gradient is the scale: all go down
        learner.step((1 - step / 20) / 20, clip=False)
    moved = learner.quant().codes.int() - nearest.codes.int()
    assert set(moved.unique().tolist()) <= {0, -1}
    # 20 steps of 1/20, 19/400, ... sum to 0.525, held at 0.5: whatever was rounded up goes down
    exact = gaussian().view(8, 2, 16) / nearest.params["scale"].float().unsqueeze(-1)
    up = (exact.round() > exact).view(8, 32) & (nearest.codes > 0)
    assert bool((moved[up] == -1).all())


def test_the_sign_of_the_gradient_is_all_that_counts() -> None:
    learners = [Learner(gaussian(), QuantSpec(4, 16), None) for _ in range(2)]
    for learner, factor in zip(learners, (1.0, 1000.0), strict=True):
        ((learner.weight() - gaussian(1)).square().sum() * factor).backward()
        learner.step(0.1, clip=True)
    one, two = (learner.learned for learner in learners)
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))


def test_pruned_weights_stay_pruned() -> None:
    mask = gaussian(2) > 0
    learner = Learner(gaussian() * mask, QuantSpec(3, 16), mask)
    assert bool((learner.weight()[~mask] == 0).all())


def test_it_goes_downhill(model: Model, calibration: Calibration) -> None:
    learned = quantize(AutoRound(iterations=30, batch=4), model, calibration)
    rtn = quantize(RTN(), model, calibration)
    assert block_error(model, learned, calibration) < 0.8 * block_error(model, rtn, calibration)


def test_steps_that_do_harm_are_not_kept(model: Model, calibration: Calibration) -> None:
    wild = quantize(AutoRound(iterations=3, lr=10.0), model, calibration)  # ranges end at 0
    rtn = quantize(RTN(), model, calibration)
    assert wild.plan is not None
    assert all(torch.equal(wild.weight(name), rtn.weight(name)) for name in wild.plan.layers)


def test_the_rate_falls_linearly_to_zero(
    model: Model, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, step = [], Learner.step

    def noting(learner: Learner, rate: float, clip: bool) -> None:
        rates.append(rate)
        step(learner, rate, clip)

    monkeypatch.setattr(Learner, "step", noting)
    one = Plan({"model.layers.0.mlp.down_proj": LayerSpec(QuantSpec(3, 32))})
    AutoRound(iterations=4)(model.copy(), one, calibration)
    assert rates == [1 / 4, 3 / 16, 2 / 16, 1 / 16]


def test_every_window_comes_once_in_a_shuffle() -> None:
    order = _batches(7, 3, torch.Generator().manual_seed(0))
    first = torch.cat([next(order), next(order)])
    assert len(set(first.tolist())) == 6  # the seventh is left over, and all are shuffled again
    assert first.tolist() != torch.cat([next(order), next(order)]).tolist()


def test_a_format_without_even_steps_is_refused() -> None:
    reason = AutoRound().skip(QuantSpec(4, 32, format="nf"))
    assert reason is not None
    assert reason.startswith("format=nf: auto_round learns")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, r"method.iterations, batch: at least 0, at least 1"),
        ({"lr": 0.0}, r"method.lr=0: above 0, or null"),
    ],
)
def test_options_that_make_no_sense_say_what_would(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AutoRound(**options)  # type: ignore[arg-type]
