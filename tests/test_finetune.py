"""Fine-tuning: the same parameters as distillation, by the next token."""

from __future__ import annotations

import pytest
import tiny
import torch

from bitsweep import policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.methods.rtn import RTN
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule
from bitsweep.recover.finetune import Finetune
from bitsweep.spec import QuantSpec

FAST = {"steps": 6, "batch": 4, "lr": 0.02}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    folder = tmp_path_factory.mktemp("finetune")
    text = tiny.letters(folder, 2048, windows=16, window=32)
    return Calibration(tiny.load("llama", folder), text, Artifacts(None))


def tuned(calibration: Calibration, **options) -> Model:
    model = calibration.model.copy()
    plan = policies.make(Policy("uniform", (Rule(role="linear"),)), model, QuantSpec(2, 32))
    model = RTN()(model, plan, calibration)
    result = Finetune(**FAST | options)(model, plan, calibration)
    policies.audit(result, plan)
    return result


def loss(model: Model, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model.module(tokens).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.mark.parametrize("what", ["all", "scales", "norms"])
def test_it_lowers_the_loss_that_it_trains_on(what, calibration):
    before = loss(tuned(calibration, steps=0), calibration.tokens)
    assert loss(tuned(calibration, what=what), calibration.tokens) < before


def test_without_corrections_there_is_nothing_to_train_and_a_command_that_adds_them(calibration):
    message = r"what=corrections: this point has none.* recover=\[low_rank,finetune\] adds"
    with pytest.raises(UserError, match=message):
        tuned(calibration, what="corrections")


def test_the_seed_decides_the_order_of_the_windows(calibration):
    def norm(seed: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return tuned(calibration).module.model.norm.weight

    assert torch.equal(norm(1), norm(1))
    assert not torch.equal(norm(1), norm(2))


def test_it_asks_no_teacher(calibration, monkeypatch):
    tuned(calibration, steps=0)
    monkeypatch.setattr(type(calibration.model.module), "forward", _counting(calls := []))
    tuned(calibration, steps=3)
    assert len(calls) == 3


def _counting(calls: list):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def counted(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs)

    return counted


def test_a_loss_that_is_not_finite_names_the_lr(calibration):
    message = r"recover.finetune.lr=1e\+30: the loss is .* try recover.finetune.lr=1e\+29"
    with pytest.raises(UserError, match=message):
        tuned(calibration, lr=1e30)
