"""The contract of every transform: applied to each YAML of ``conf/transforms`` found on disk."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from torch import Tensor

from bitsweep import models
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.compose import compose
from bitsweep.config import job
from bitsweep.methods import replace_layers
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule, audit, make
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor
from bitsweep.transforms import Transform
from bitsweep.typed import target

FILES = sorted((Path(__file__).parents[1] / "conf" / "transforms").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
TRANSFORMS = {f.stem: target("transforms", yaml.safe_load(f.read_text())[f.stem]) for f in FILES}

every_file = pytest.mark.parametrize("file", FILES, ids=NAMES)
every_transform = pytest.mark.parametrize("name", NAMES)
every_exact = pytest.mark.parametrize("name", [n for n in NAMES if TRANSFORMS[n].exact])


@pytest.fixture(scope="module")
def spec(folder: Path) -> CalibrationSpec:
    return tiny.letters(folder, 4096, windows=8, window=32)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return tiny.load("llama_tied", folder)


def apply(name: str, model: Model, spec: CalibrationSpec) -> Model:
    """``model`` after the transform ``name``, as ``run.py`` does it."""
    transform: Transform = TRANSFORMS[name]
    assert transform.skip(model) is None
    return transform(model.copy(), Calibration(model, spec, Artifacts(None)))


def logits(model: Model) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.module(torch.arange(64).view(2, 32), use_cache=False).logits
    return out


def tensors(model: Model) -> dict[str, Tensor]:
    return dict(model.module.state_dict()) | {f"mask {k}": v for k, v in model.masks.items()}


@every_file
def test_the_yaml_lists_every_option_with_its_default_under_its_own_name(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    assert list(values) == [file.stem]
    step: Any = TRANSFORMS[file.stem]
    defaults = {field.name: field.default for field in dataclasses.fields(step)}
    assert {k: v for k, v in values[file.stem].items() if k != "_target_"} == defaults
    assert type(step).__module__ == f"bitsweep.transforms.{file.stem}"


@every_file
def test_the_yaml_opens_with_one_line_that_says_what_it_is(file: Path) -> None:
    first, second, third = file.read_text().splitlines()[:3]
    assert first.startswith("# ")
    assert first.endswith(".")
    assert second == f"{file.stem}:"
    assert third.startswith("  _target_: ")


@every_transform
def test_a_transform_says_what_it_is(name: str) -> None:
    transform = TRANSFORMS[name]
    assert transform.version >= 1
    assert isinstance(transform.exact, bool)
    assert isinstance(transform.calibrated, bool)
    assert isinstance(transform.seeded, bool)
    assert type(transform).__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.anything = 1


@every_transform
def test_it_is_found_by_its_name_on_the_command_line(name: str) -> None:
    point = job(compose([f"transforms=[{name}]", "tracker=none"])).point
    assert point.transforms == {name: TRANSFORMS[name]}


@every_transform
def test_the_source_and_the_random_state_are_left_alone(
    name: str, model: Model, spec: CalibrationSpec
) -> None:
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    identities = {key: id(value) for key, value in model.module.named_parameters()}
    states = torch.get_rng_state(), random.getstate()
    anatomy = model.anatomy
    apply(name, model, spec)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert {key: id(value) for key, value in model.module.named_parameters()} == identities
    after = model.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert (model.tied, model.masks, model.anatomy) == (True, {}, anatomy)


@every_transform
def test_two_runs_agree_bit_for_bit(name: str, model: Model, spec: CalibrationSpec) -> None:
    first, second = (tensors(apply(name, model, spec)) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_transform
def test_only_one_that_draws_feels_the_seed(name: str, model: Model, spec: CalibrationSpec) -> None:
    found = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(tensors(apply(name, model, spec)))
    first, second = found
    same = first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert same != TRANSFORMS[name].seeded


@every_transform
@pytest.mark.parametrize("architecture", ["llama_tied", "gpt2"])
def test_a_skeleton_reshaped_is_what_the_model_becomes(
    name: str, architecture: str, folder: Path, spec: CalibrationSpec
) -> None:
    real = tiny.load(architecture, folder)
    bare = models.skeleton(real.source, Artifacts(None)).copy()
    assert TRANSFORMS[name].skip(bare) == TRANSFORMS[name].skip(real)
    if TRANSFORMS[name].skip(real):
        return
    TRANSFORMS[name].reshape(bare)
    became = apply(name, real, spec)
    assert bare.layers == became.layers
    assert bare.anatomy == became.anatomy
    assert bare.tied == became.tied
    shapes = {key: value.shape for key, value in became.module.state_dict().items()}
    assert {key: value.shape for key, value in bare.module.state_dict().items()} == shapes
    for layer in became.layers.values():
        assert tuple(became.weight(layer.name).shape) == layer.shape
    assert bool(became.tied) == (
        became.module.get_output_embeddings().weight is became.module.get_input_embeddings().weight
    )


@every_exact
def test_the_full_precision_function_stays(name: str, model: Model, spec: CalibrationSpec) -> None:
    before, after = logits(model), logits(apply(name, model, spec))
    assert float((after - before).abs().max()) <= 1e-4 * float(before.max() - before.min())


@every_exact
def test_the_weights_do_not_stay(name: str, model: Model, spec: CalibrationSpec) -> None:
    became = apply(name, model, spec)
    assert any(not torch.equal(became.weight(n), model.weight(n)) for n in model.layers)


@every_transform
def test_what_was_pruned_stays_pruned_or_is_refused(
    name: str, model: Model, spec: CalibrationSpec
) -> None:
    pruned = model.copy()
    layer = "model.layers.0.mlp.down_proj"
    mask = torch.ones(pruned.weight(layer).shape, dtype=torch.bool)
    mask[:, ::2] = False
    weight = torch.nn.Parameter(pruned.weight(layer) * mask, requires_grad=False)
    pruned.get(layer).weight = weight
    pruned.masks[layer] = mask
    pruned.transformed = ("prune",)
    if TRANSFORMS[name].skip(pruned):
        return
    became = apply(name, pruned, spec)
    assert not bool((became.masks[layer] & ~mask).any())
    assert not bool(became.weight(layer)[~became.masks[layer]].any())


@every_transform
def test_a_mask_says_where_the_weight_is_zero(
    name: str, model: Model, spec: CalibrationSpec
) -> None:
    became = apply(name, model, spec)
    for layer, mask in became.masks.items():
        assert mask.dtype == torch.bool
        assert not bool(became.weight(layer)[~mask].any())


@every_transform
def test_what_it_leaves_can_be_quantized_and_generates(
    name: str, model: Model, spec: CalibrationSpec
) -> None:
    became = apply(name, model, spec)
    plan = make(Policy("all", (Rule(role="linear"),)), became, QuantSpec(8), "per_channel")
    replace_layers(became, plan, plan.layers, QuantTensor.quantize)
    became.plan = plan
    audit(became, plan)
    assert bool(torch.isfinite(logits(became)).all())
    out = became.module.generate(torch.tensor([[72, 101]]), max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 6)
