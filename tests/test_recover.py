"""The contract of every recovery: applied to each YAML of ``conf/recover`` found on disk."""

from __future__ import annotations

import dataclasses
import importlib
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml

from bitsweep import policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.methods.rtn import RTN
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule
from bitsweep.recover import Recovery
from bitsweep.spec import PER_CHANNEL, Plan, QuantSpec
from bitsweep.transforms.prune import Prune

FILES = sorted((Path(__file__).parents[1] / "conf" / "recover").glob("*.yaml"))
SOME = Policy("some", (Rule(role="ffn"), Rule(role="head", bits=8, group_size=PER_CHANNEL)))
ALL = Policy("all", (Rule(),))


def step(file: Path) -> dict[str, Any]:
    values = yaml.safe_load(file.read_text())
    assert list(values) == [file.stem], "a step of a chain stands under its own name"
    return dict(values[file.stem])


def target(file: Path) -> type:
    module, _, name = step(file)["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def make(file: Path) -> Recovery:
    """The recovery of a YAML; one that trains says in ``QUICK`` which options make that short."""
    options = {key: value for key, value in step(file).items() if key != "_target_"}
    return target(file)(**options | dict(getattr(target(file), "QUICK", {})))


every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
every_recovery = pytest.mark.parametrize(
    "recovery", [make(f) for f in FILES], ids=[f.stem for f in FILES]
)


@pytest.fixture(scope="module")
def spec(folder: Path) -> CalibrationSpec:
    return tiny.letters(folder, 1024, windows=8, window=32)


def recovered(
    recovery: Recovery, model: Model, spec: CalibrationSpec, policy: Policy = SOME, seed: int = 0
) -> tuple[Model, Model, Plan]:
    """``model`` quantized and then recovered, as ``run.py`` does it; both, and the plan."""
    plan = policies.make(policy, model, QuantSpec(4, 32))
    assert recovery.skip(plan) is None
    calibration = Calibration(model.copy(), spec, Artifacts(None))
    torch.manual_seed(seed)
    quantized = RTN()(model.copy(), plan, calibration)
    mended = recovery(quantized.copy(), plan, calibration)
    policies.audit(mended, plan)
    return quantized, mended, plan


def tensors(model: Model) -> dict[str, torch.Tensor]:
    """Everything that ``model`` computes with, codes included, as it is now."""
    found = {name: value.clone() for name, value in model.module.state_dict().items()}
    quants = {name: getattr(model.get(name), "quant", None) for name in model.layers}
    for name, quant in quants.items():
        if quant is not None:
            found |= {f"{name}.{key}": value.clone() for key, value in quant.pack().items()}
    return found


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@every_file
def test_the_yaml_lists_every_option_with_its_default(file: Path) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(target(file))}
    assert {key: value for key, value in step(file).items() if key != "_target_"} == defaults


@every_file
def test_the_yaml_opens_with_one_line_that_says_what_it_is(file: Path) -> None:
    first, second = file.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert first.endswith(".")
    assert second == f"{file.stem}:"


@every_recovery
def test_a_recovery_says_what_it_is(recovery: Recovery) -> None:
    assert recovery.version >= 1
    assert recovery.calibrated in (True, False)
    assert recovery.seeded in (True, False)
    assert type(recovery).__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        recovery.anything = 1  # type: ignore[attr-defined]


@every_recovery
def test_it_does_something_to_its_own_copy_only(
    recovery: Recovery, model: Model, spec: CalibrationSpec
) -> None:
    before = tensors(model)
    states = torch.Generator().manual_seed(0).get_state(), random.getstate()
    quantized, mended, plan = recovered(recovery, model, spec)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert same(tensors(model), before)
    again = RTN()(model.copy(), plan, Calibration(model, spec, Artifacts(None)))
    assert same(tensors(quantized), tensors(again))
    ids = torch.arange(32).view(1, 32)
    with torch.no_grad():
        assert not torch.equal(mended.module(ids).logits, quantized.module(ids).logits)


@every_recovery
def test_the_seed_decides_what_a_recovery_draws_and_nothing_else(
    recovery: Recovery, model: Model, spec: CalibrationSpec
) -> None:
    first, again, other = (tensors(recovered(recovery, model, spec, seed=s)[1]) for s in (0, 0, 1))
    assert same(first, again)
    assert same(first, other) != recovery.seeded


@every_recovery
def test_nothing_waits_for_a_gradient_afterwards(
    recovery: Recovery, model: Model, spec: CalibrationSpec
) -> None:
    _, mended, _ = recovered(recovery, model, spec)
    assert not any(parameter.requires_grad for parameter in mended.module.parameters())
    assert not any(mended.weight(name).requires_grad for name in mended.layers)
    assert not mended.module.training


@every_recovery
def test_what_was_pruned_before_stays_pruned(
    recovery: Recovery, model: Model, spec: CalibrationSpec
) -> None:
    pruned = Prune("magnitude")(model.copy(), Calibration(model, spec, Artifacts(None)))
    _, mended, _ = recovered(recovery, pruned, spec)
    for name, mask in pruned.masks.items():
        assert not mended.weight(name)[~mask].any()
        assert not (mended.masks[name] & ~mask).any()


@every_recovery
def test_a_tied_pair_stays_one_tensor(
    recovery: Recovery, folder: Path, spec: CalibrationSpec
) -> None:
    tied = tiny.load("llama_tied", folder)
    _, mended, _ = recovered(recovery, tied, spec, ALL)
    assert mended.get("lm_head").quant is mended.get("model.embed_tokens").quant
    out = mended.module.generate(torch.tensor([[72, 101]]), max_new_tokens=2, do_sample=False)
    assert out.shape == (1, 4)
