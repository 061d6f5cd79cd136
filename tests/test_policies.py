"""Rules against the anatomy of a Llama of four blocks: pure values, no weights."""

from types import SimpleNamespace

import pytest
from torch import nn

from bitsweep import policies
from bitsweep.errors import Refused, UserError
from bitsweep.linear import quantized
from bitsweep.models import Layer
from bitsweep.policies import Policy, Rule, audit, make, parse_blocks
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

AXES = QuantSpec(bits=4, group_size=64)
BLOCK = {
    "attention.qkv": [("q_proj", (128, 128)), ("k_proj", (64, 128)), ("v_proj", (64, 128))],
    "attention.out": [("o_proj", (128, 128))],
    "ffn.gate": [("gate_proj", (320, 128))],
    "ffn.up": [("up_proj", (320, 128))],
    "ffn.down": [("down_proj", (128, 320))],
}


def llama(tied=False, blocks=4):
    layers = {}

    def add(name, role, block, shape, kind="linear"):
        layers[name] = Layer(name, role, block, shape, kind, None)

    add("embed", "embedding", None, (512, 128), "embedding")
    for index in range(blocks):
        for role, members in BLOCK.items():
            for name, shape in members:
                add(f"layers.{index}.{name}", role, index, shape)
    add("head", "head", None, (512, 128))
    return SimpleNamespace(
        layers=layers,
        blocks=[f"layers.{index}" for index in range(blocks)],
        tied=tied,
        source=SimpleNamespace(name="llama"),
    )


def plan(*rules, model=None, misfit="error", axes=AXES, untie=False):
    policy = Policy("test", tuple(Rule(**rule) for rule in rules), untie)
    return make(policy, model or llama(), axes, misfit)


def test_linear_means_every_linear_of_the_blocks_and_neither_end():
    names = set(plan({"role": "linear"}).layers)
    assert names == {name for name in llama().layers if name.startswith("layers.")}


def test_the_last_rule_that_matches_wins():
    made = plan({"role": "linear"}, {"role": "attention.qkv", "bits": 8, "group_size": -1})
    assert str(made.layers["layers.0.q_proj"]) == "w8"
    assert str(made.layers["layers.0.o_proj"]) == "w4g64"


def test_keep_takes_a_layer_out_again():
    made = plan({"role": "linear"}, {"name": "*.down_proj", "keep": True})
    assert "layers.1.down_proj" not in made.layers
    assert "layers.1.up_proj" in made.layers


def test_a_role_matches_its_sub_roles_only():
    assert {name.split(".")[-1] for name in plan({"role": "ffn"}).layers} == {
        "gate_proj",
        "up_proj",
        "down_proj",
    }


def test_layers_stand_in_the_order_of_execution():
    made = plan({"role": "head"}, {"role": "embedding"}, {"role": "linear"})
    assert list(made.layers) == list(llama().layers)


@pytest.mark.parametrize(
    ("text", "found"),
    [("0-2", {0, 1, 2}), ("first,last", {0, 3}), ("-1", {3}), ("1-2,last", {1, 2, 3})],
)
def test_blocks_are_read_as_people_write_them(text, found):
    assert parse_blocks(text, 4) == found


@pytest.mark.parametrize("text", ["a", "3-1", "", "1,,2"])
def test_blocks_that_say_nothing_are_refused(text):
    with pytest.raises(UserError, match="blocks="):
        parse_blocks(text, 4)


def test_a_rule_that_matches_nothing_is_an_error_that_names_it():
    with pytest.raises(UserError, match=r"policy\.rules\[1\].*\*\.q_prj.*matches no layer"):
        plan({"role": "linear"}, {"name": "*.q_prj", "bits": 8})


def test_a_misfit_is_refused_with_layers_and_groups_that_fit():
    with pytest.raises(
        Refused, match=r"group_size=48.*in_features=128,320.*q_proj.*try 64, 32, 16"
    ):
        plan({"role": "linear"}, axes=QuantSpec(bits=4, group_size=48))


@pytest.mark.parametrize(("misfit", "became"), [("per_channel", "w4"), ("ragged", "w4g96")])
def test_a_misfit_can_be_resolved_and_is_named(misfit, became):
    made = plan({"name": "*.q_proj"}, misfit=misfit, axes=QuantSpec(bits=4, group_size=96))
    assert str(made.layers["layers.0.q_proj"]) == became
    assert made.misfits["layers.0.q_proj"] == misfit


def test_rules_that_part_a_tied_pair_are_refused():
    with pytest.raises(Refused, match=r"model\.untie=true"):
        plan({"role": "embedding"}, model=llama(tied=True))


def test_a_tied_pair_treated_alike_is_fine_and_untie_parts_it():
    both = plan({"role": "embedding"}, {"role": "head"}, model=llama(tied=True))
    assert set(both.layers) == {"embed", "head"}
    apart = plan({"role": "embedding"}, model=llama(tied=True), untie=True)
    assert apart.untie
    assert set(apart.layers) == {"embed"}


def test_untie_says_nothing_about_a_model_that_is_not_tied():
    assert not plan({"role": "linear"}, untie=True).untie


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rules": [{"rol": "ffn"}]}, r"rules\[0\]\.rol: no such key"),
        ({"rules": [{"role": "mlp"}]}, r"role=mlp: no such role.*ffn"),
        ({"rules": []}, "needs rules"),
        ({"ruls": []}, "no such key"),
        (
            {"rules": [{"blocks": [0, 1]}]},
            r"^policy\.rules\[0\]\.blocks=\[0, 1\]: write blocks as 0-3,28-31 or first,last",
        ),
        ({"rules": [{"role": "ffn", "keep": True, "bits": 8}]}, "keep leaves a layer"),
        (
            {"rules": [{"role": "linear"}, {"role": "ffn", "bits": 16}]},
            r"^policy\.rules\[1\]\.bits=16: policy=mine .*keep: true$",
        ),
    ],
)
def test_a_mistake_in_a_policy_names_the_key(value, message):
    with pytest.raises(UserError, match=message):
        Policy.from_config("mine", value)


def _tiny():
    """A real two-layer module in the place of a model, for the audit."""
    module = nn.ModuleDict({"a": nn.Linear(8, 4), "b": nn.Linear(8, 4)})
    return SimpleNamespace(
        layers=dict.fromkeys(module), masks={}, get=module.get_submodule, module=module
    )


def test_audit_tells_what_each_layer_became():
    model, spec = _tiny(), QuantSpec(bits=4)
    codes = QuantTensor.quantize(model.get("a").weight, spec)
    model.module["a"] = quantized(codes, model.get("a"))
    became = audit(model, Plan({"a": LayerSpec(spec)}))
    assert became == {"a": "w4", "b": "torch.float32"}


def test_audit_finds_a_forgotten_and_an_unplanned_layer():
    model, spec = _tiny(), QuantSpec(bits=4)
    with pytest.raises(RuntimeError, match="left as it was"):
        policies.audit(model, Plan({"a": LayerSpec(spec)}))
    codes = QuantTensor.quantize(model.get("a").weight, spec)
    model.module["a"] = quantized(codes, model.get("a"))
    with pytest.raises(RuntimeError, match="the plan says to keep it"):
        policies.audit(model, Plan())
