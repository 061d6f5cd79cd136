"""The error probe against sums written out by hand, on a tiny model with one layer rounded."""

from __future__ import annotations

import pytest
import tiny
import torch

from bitsweep.data import Data, Reference, TextSource
from bitsweep.methods import place
from bitsweep.models.fold import edges, fold
from bitsweep.probes.error import Error
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

UP = "model.layers.0.mlp.up_proj"
Q = "model.layers.1.self_attn.q_proj"
TEXT = "Seven grey geese went home before the rain began. " * 12
SPEC = QuantSpec(bits=3, group_size=32)


def rounded(model, *names, spec=SPEC):
    copy = model.copy()
    for name in names:
        place(copy, name, QuantTensor.quantize(model.weight(name), spec))
    copy.plan = Plan({name: LayerSpec(spec) for name in names})
    return copy


def measured(model, reference):
    found = Error(tokens=128)(model, reference)
    depths = next(row["by_depth"] for row in found.details if "by_depth" in row)
    layers = {row["layer"]: row for row in found.details if "layer" in row}
    return {metric.name: metric for metric in found.metrics}, depths, layers


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def test_each_error_is_the_norm_of_the_difference_over_the_norm(model, reference):
    quantized = rounded(model, UP, Q)
    metrics, depths, layers = measured(quantized, reference)
    ids = torch.tensor(model.tokenizer(reference.data.texts["text"].text(reference.artifacts))
                       ["input_ids"])[:128].view(2, 64)  # fmt: skip
    inputs = {}
    for name in (UP, Q):
        model.get(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.__setitem__(name, args[0])
        )
    with torch.no_grad():
        theirs = model.module(ids, output_hidden_states=True).hidden_states
        ours = quantized.module(ids, output_hidden_states=True).hidden_states
        for name in (UP, Q):
            model.get(name)._forward_pre_hooks.clear()
            assert layers[name]["weight_error"] == pytest.approx(
                relative(quantized.weight(name), model.weight(name)), rel=1e-5
            )
            assert layers[name]["output_error"] == pytest.approx(
                relative(quantized.get(name)(inputs[name]), model.get(name)(inputs[name])), rel=1e-5
            )
    assert depths[0] == 0
    assert depths[1] == pytest.approx(relative(ours[1], theirs[1]), rel=1e-4)
    assert len(depths) == 3  # transformers' own last state is behind the norm
    mean = sum(row["output_error"] for row in layers.values()) / 2
    assert metrics["output_error"].value == pytest.approx(mean)
    assert metrics["hidden_error"].value == depths[-1]


def test_full_precision_has_no_error_and_says_why_no_layer_has(model, reference):
    metrics, depths, layers = measured(model.copy(), reference)
    assert depths == [0.0, 0.0, 0.0]
    assert layers == {}
    assert metrics["weight_error"].reason == "no layer is quantized"


def test_more_bits_less_error_everywhere(model, reference):
    coarse, fine = (
        measured(rounded(model, UP, spec=QuantSpec(bits=b, group_size=32)), reference)
        for b in (2, 6)
    )
    for name in ("weight_error", "output_error", "hidden_error"):
        assert fine[0][name].value < coarse[0][name].value / 4


def test_what_a_transform_did_before_is_no_error_of_rounding(model, reference):
    halved = model.copy()
    linear = torch.nn.Linear(128, 256, bias=False)
    linear.weight = torch.nn.Parameter(model.weight(UP) / 2, requires_grad=False)
    halved.replace(UP, linear)
    reference.unrounded = halved
    metrics, depths, _ = measured(rounded(halved, UP, spec=QuantSpec(8, 32)), reference)
    assert metrics["weight_error"].value < 0.01
    assert depths[-1] < 0.01


def test_factors_that_a_method_moved_between_layers_are_no_error(model, reference):
    folded = model.copy()
    source = next(s for s, readers in edges(model).items() if UP in readers)
    fold(folded, source, torch.linspace(0.5, 2, 128))
    quantized = rounded(folded, UP, spec=QuantSpec(8, 32))
    quantized.folded = dict(folded.folded)
    metrics, depths, _ = measured(quantized, reference)
    for name in ("weight_error", "output_error", "hidden_error"):
        assert 0 < metrics[name].value < 0.02
    assert depths[-1] < 0.02


def test_a_bias_is_not_scaled_with_the_columns_of_its_layer(tmp_path, artifacts):
    model = tiny.load("qwen2", tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    model.get(name).bias.data += 10  # rules the output, so that 3 bits of the weight hardly count
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    data = Data("d", texts={"text": TextSource("text", str(path))}, window=64)
    folded = model.copy()
    source = next(s for s, readers in edges(model).items() if name in readers)
    fold(folded, source, torch.linspace(0.5, 2, 128))
    quantized = rounded(folded, name)
    metrics, _, _ = measured(quantized, Reference(model, data, artifacts))
    assert 0 < metrics["output_error"].value < 0.1


def test_a_method_that_changed_a_norm_has_no_error_by_layer(model, reference):
    quantized = rounded(model, UP)
    norm = torch.nn.Parameter(model.module.model.norm.weight * 2, requires_grad=False)
    quantized.module.model.norm.weight = norm
    metrics, _, layers = measured(quantized, reference)
    assert "changed more than it rounded (model.norm.weight)" in metrics["output_error"].reason
    assert layers == {}


def test_the_probe_leaves_no_hook_behind(model, reference):
    def hooks(each):
        modules = each.module.modules()
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)

    quantized = rounded(model, UP)
    before = hooks(model), hooks(quantized)
    measured(quantized, reference)
    assert (hooks(model), hooks(quantized)) == before
