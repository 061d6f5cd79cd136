"""The contract of every method: applied to each YAML of ``conf/method`` that is found on disk.

``--config-dir FOLDER`` holds the methods of ``FOLDER/method`` to it as well.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import random
from pathlib import Path
from typing import Any

import conftest
import pytest
import tiny
import torch
import yaml
from torch import Tensor

from bitsweep import formats, policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.errors import UserError
from bitsweep.methods import Method, Particular, finite_weight
from bitsweep.models import Model
from bitsweep.models.fold import factor_since
from bitsweep.policies import Policy, Rule
from bitsweep.spec import PER_CHANNEL, Plan, QuantSpec
from bitsweep.tensor import QuantTensor
from bitsweep.transforms.prune import Prune

FOLDERS = [Path(__file__).parents[1] / "conf", *conftest.own_folders()]
FILES = sorted(file for folder in FOLDERS for file in (folder / "method").glob("*.yaml"))
AXES = {f.name for f in dataclasses.fields(QuantSpec)} - {"zero", "ragged"}
AXES |= {"policy", "misfit", "calibration", "seed"}
UNIFORM = Policy("uniform", (Rule(role="linear"),))
ALL = Policy("all", (Rule(),))
SOME = Policy("some", (Rule(role="ffn"), Rule(role="head", bits=8, group_size=PER_CHANNEL)))
W4 = QuantSpec(4, 32)


def target(values: dict[str, Any]) -> type:
    module, _, name = values["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def make(file: Path) -> Method:
    """The method of a YAML; one that trains says in ``QUICK`` which options make that short."""
    values = yaml.safe_load(file.read_text())
    cls = target(values)
    options = {key: item for key, item in values.items() if key != "_target_"}
    return cls(**options | dict(getattr(cls, "QUICK", {})))


every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
every_method = pytest.mark.parametrize(
    "method", [make(f) for f in FILES], ids=[f.stem for f in FILES]
)
OURS = [file for file in FILES if not isinstance(make(file), Particular)]
"""A library's methods have a contract of their own: ``test_library.py``."""
QUANTIZERS = [file for file in OURS if "policy" not in make(file).ignores]
every_one_of_ours = pytest.mark.parametrize(
    "method", [make(f) for f in OURS], ids=[f.stem for f in OURS]
)
every_quantizer = pytest.mark.parametrize(
    "method", [make(f) for f in QUANTIZERS], ids=[f.stem for f in QUANTIZERS]
)


@pytest.fixture(scope="module")
def spec(folder: Path) -> CalibrationSpec:
    return tiny.letters(folder, 4096, windows=16, window=64)


def accepted(method: Method, spec: QuantSpec) -> QuantSpec:
    """``spec`` in the first format that the method takes: its own, else one found on disk."""
    every = [dataclasses.replace(spec, format=name) for name in (spec.format, *formats.names())]
    return next(one for one in every if method.skip(one) is None)


def quantize(
    method: Method,
    model: Model,
    calibration: CalibrationSpec,
    spec: QuantSpec = W4,
    policy: Policy = UNIFORM,
    misfit: str = "error",
) -> Model:
    """``model`` after ``method``, as ``run.py`` does it."""
    plan = policies.make(policy, model, method.resolve(accepted(method, spec)), misfit)
    result = method(model.copy(), plan, Calibration(model, calibration, Artifacts(None)))
    assert result.plan is plan
    policies.audit(result, plan)
    return result


def codes(model: Model, name: str) -> QuantTensor:
    quant = model.get(name).quant
    assert isinstance(quant, QuantTensor)
    return quant


def weight_error(before: Model, after: Model, plan: Plan) -> float:
    def moved(name: str) -> Tensor:
        return (before.weight(name) - unfolded(before, after, name)).square().sum()

    return math.fsum(float(moved(name)) for name in plan.layers)


def logits_error(before: Model, after: Model) -> float:
    """Squared error of the logits relative to their variance, on 64 tokens."""
    ids = torch.arange(64).view(1, 64)
    with torch.no_grad():
        one, two = before.module(ids).logits, after.module(ids).logits
    return float((two - one).var() / one.var())


def unfolded(before: Model, after: Model, name: str) -> Tensor:
    """A weight of ``after`` without the factors that a method moved between layers."""
    return after.weight(name) / factor_since(before, after, name)


@every_file
def test_the_yaml_lists_every_option_with_its_default(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    cls = target(values)
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    assert values.keys() - {"_target_"} == defaults.keys()
    if cls.__module__.rpartition(".")[2] == file.stem:  # other files of one class are variants
        assert {key: values[key] for key in defaults} == defaults
    else:
        assert {key: values[key] for key in defaults} != defaults


@every_file
def test_the_yaml_opens_with_one_line_that_says_what_it_is(file: Path) -> None:
    first, second = file.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert first.endswith(".")
    assert second.startswith("_target_: ")


@every_method
def test_a_method_says_what_it_is(method: Method) -> None:
    assert method.version >= 1
    assert method.ignores <= AXES
    assert not (method.calibrated and "calibration" in method.ignores)
    assert type(method).__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.anything = 1  # type: ignore[attr-defined]


@every_one_of_ours
def test_what_a_method_stores_it_stores_again(method: Method) -> None:
    once = method.resolve(accepted(method, W4))
    assert method.resolve(once) == once
    assert method.skip(once) is None
    assert formats.get(once.format).skip(once) is None


@every_one_of_ours
def test_the_source_and_the_random_state_are_left_alone(
    method: Method, model: Model, spec: CalibrationSpec
) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    parameters = {name: id(value) for name, value in model.module.named_parameters()}
    states = torch.get_rng_state(), random.getstate()
    quantize_or_cast(method, model, spec)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert {name: id(value) for name, value in model.module.named_parameters()} == parameters
    after = model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def quantize_or_cast(method: Method, model: Model, spec: CalibrationSpec) -> Model:
    if "policy" in method.ignores:
        return method(model.copy(), Plan(), Calibration(model, spec, Artifacts(None)))
    return quantize(method, model, spec)


@every_quantizer
def test_planned_layers_are_quantized_and_all_others_are_the_same_tensors(
    method: Method, model: Model, spec: CalibrationSpec
) -> None:
    result = quantize(method, model, spec, policy=SOME)
    assert result.plan is not None
    assert len(result.plan.layers) == 2 * 3 + 1
    for name in model.layers:
        if name in result.plan.layers:
            assert codes(result, name).spec == result.plan.layers[name].weight
        else:
            assert result.get(name).weight is model.get(name).weight


@every_quantizer
def test_two_runs_agree_bit_for_bit(method: Method, model: Model, spec: CalibrationSpec) -> None:
    first, second = quantize(method, model, spec), quantize(method, model, spec)
    for name in first.plan.layers if first.plan else ():
        one, two = codes(first, name).pack(), codes(second, name).pack()
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


@every_quantizer
def test_more_bits_less_weight_error(method: Method, model: Model, spec: CalibrationSpec) -> None:
    errors = []
    for bits in (2, 3, 4, 8):
        result = quantize(method, model, spec, QuantSpec(bits, 32))
        assert result.plan is not None
        errors.append(weight_error(model, result, result.plan))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 1000


@every_quantizer
@pytest.mark.parametrize("misfit", ["per_channel", "ragged"])
def test_a_group_that_does_not_fit_is_made_to(
    method: Method, model: Model, spec: CalibrationSpec, misfit: str
) -> None:
    result = quantize(method, model, spec, QuantSpec(8, 48), misfit=misfit)
    assert result.plan is not None
    for name in result.plan.layers:
        weight = unfolded(model, result, name)
        torch.testing.assert_close(weight, model.weight(name), atol=0.05, rtol=0)


@every_quantizer
def test_saved_codes_stand_for_the_same_weights(
    method: Method, model: Model, spec: CalibrationSpec
) -> None:
    result = quantize(method, model, spec)
    for name in result.plan.layers if result.plan else ():
        quant = codes(result, name)
        again = QuantTensor.unpack(quant.pack(), quant.spec, tuple(quant.shape))
        assert torch.equal(again.dequantize(), result.weight(name))


@every_quantizer
def test_eight_bits_hardly_change_the_logits(
    method: Method, model: Model, spec: CalibrationSpec
) -> None:
    result = quantize(method, model, spec, QuantSpec(8, 32), policy=ALL)
    # a step is about 1/50 of a weight's spread, so a layer is off by about 0.6 %, 16 of them by 2.5
    assert logits_error(model, result) < 0.05**2


@every_quantizer
@pytest.mark.parametrize("name", ["gpt2", "llama_tied"])
def test_a_tied_pair_stays_one_tensor_and_the_model_generates(
    method: Method, name: str, folder: Path, spec: CalibrationSpec
) -> None:
    tied = tiny.load(name, folder)
    assert tied.tied
    result = quantize(method, tied, spec, policy=ALL)
    ends = [layer.name for layer in tied.layers.values() if layer.block is None]
    assert codes(result, ends[0]) is codes(result, ends[1])
    out = result.module.generate(torch.tensor([[72, 101]]), max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 6)


@every_quantizer
def test_a_broken_checkpoint_is_named(
    method: Method, model: Model, spec: CalibrationSpec, folder: Path
) -> None:
    broken = tiny.load("llama", folder / "broken")
    broken.weight("model.layers.1.mlp.up_proj")[3, 5] = math.nan
    with pytest.raises(UserError, match=r"model.path=.*: model.layers.1.mlp.up_proj has weights"):
        quantize(method, broken, spec)


def test_weights_whose_sum_overflows_are_not_infinite(folder: Path) -> None:
    large = tiny.load("llama", folder / "large")
    large.weight("model.layers.1.mlp.up_proj").fill_(3e38)  # two of them are beyond float32
    assert float(finite_weight(large, "model.layers.1.mlp.up_proj").max()) == pytest.approx(3e38)


@every_one_of_ours
def test_what_was_pruned_stays_pruned_and_takes_no_codes(
    method: Method, model: Model, spec: CalibrationSpec
) -> None:
    calibration = Calibration(model, spec, Artifacts(None))
    pruned = Prune(score="magnitude", sparsity=0.5)(model.copy(), calibration)
    result = quantize_or_cast(method, pruned, spec)
    assert set(result.masks) == {n for n, layer in model.layers.items() if layer.block is not None}
    for name, mask in result.masks.items():
        assert int(mask.sum()) == mask.numel() // 2
        assert not result.weight(name)[~mask].any()
        assert result.weight(name)[mask].any()
    if result.plan is not None and result.plan.layers:
        whole = quantize(method, model, spec)
        for name in result.masks:
            sizes = [sum(codes(m, name).nbytes().values()) for m in (result, whole)]
            assert sizes[0] < sizes[1]
