import json

import pytest

from bitsweep.spec import PER_CHANNEL, PER_TENSOR, InputSpec, LayerSpec, Plan, QuantSpec


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (QuantSpec(bits=4, group_size=128), "w4g128"),
        (QuantSpec(bits=4, group_size=128, symmetric=True), "w4g128-sym"),
        (QuantSpec(bits=8, group_size=PER_CHANNEL), "w8"),
        (QuantSpec(bits=8, group_size=PER_TENSOR), "w8t"),
        (QuantSpec(bits=4, group_size=64, format="nf"), "nf4g64"),
        (QuantSpec(bits=1.5, group_size=32), "w1.5g32"),
        (QuantSpec(bits=3, group_size=64, scale_dtype="power_of_two"), "w3g64-pow2"),
    ],
)
def test_a_spec_prints_as_the_field_writes_it(spec, name):
    assert str(spec) == name


def test_input_bits_stand_between_weight_bits_and_group():
    inputs = InputSpec(QuantSpec(bits=8, scale_dtype="float32"))
    spec = LayerSpec(QuantSpec(bits=4, group_size=128), inputs)
    assert str(spec) == "w4a8g128"


@pytest.mark.parametrize(
    "spec",
    [
        LayerSpec(QuantSpec(4, 128)),
        LayerSpec(QuantSpec(8, -1, symmetric=True, scale_dtype="float32")),
        LayerSpec(QuantSpec(4, 0, scale_dtype="power_of_two")),
        LayerSpec(QuantSpec(1.6, 64, format="ternary")),
        LayerSpec(QuantSpec(4, 32, format="mxfp4", scale_dtype="power_of_two")),
        LayerSpec(QuantSpec(4, 64), InputSpec(QuantSpec(8, scale_dtype="float32"))),
        LayerSpec(
            QuantSpec(4, 64),
            InputSpec(
                QuantSpec(4, 64, symmetric=True, format="log", scale_dtype="float32"),
                adaptive=(4, 6, 8),
                threshold=0.005,
            ),
        ),
        LayerSpec(
            QuantSpec(8),
            InputSpec(QuantSpec(8, scale_dtype="float32"), "channel", "percentile", 99.5),
        ),
        LayerSpec(QuantSpec(8), InputSpec(QuantSpec(8), "tensor", "minmax")),
    ],
    ids=str,
)
def test_a_name_is_read_as_the_spec_that_wrote_it(spec: LayerSpec) -> None:
    assert LayerSpec.read(str(spec)) == spec


@pytest.mark.parametrize("name", ["torch.float32", "w", "4g64", "w4g64 axyz"])
def test_what_names_no_quantized_layer_is_not_read(name: str) -> None:
    with pytest.raises(ValueError, match="no name of"):
        LayerSpec.read(name)


@pytest.mark.parametrize(
    ("group_size", "groups", "fits"),
    [(64, 3, False), (43, 4, True), (PER_CHANNEL, 1, True), (PER_TENSOR, 1, True)],
)
def test_groups_of_a_row_of_172(group_size, groups, fits):
    spec = QuantSpec(group_size=group_size)
    assert (spec.groups(172), spec.fits(172)) == (groups, fits)


def test_plan_survives_json():
    plan = Plan(
        layers={"a": LayerSpec(QuantSpec(bits=4, group_size=64), InputSpec(QuantSpec(bits=8)))},
        kv=QuantSpec(bits=8),
        untie=True,
        misfits={"a": "ragged"},
    )
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_plans_of_equal_effect_have_one_digest_in_any_order():
    one, two = LayerSpec(QuantSpec(bits=4)), LayerSpec(QuantSpec(bits=8))
    assert Plan({"a": one, "b": two}).digest() == Plan({"b": two, "a": one}).digest()
    assert Plan({"a": one}).digest() != Plan({"a": two}).digest()


def test_summary_counts_the_most_frequent_first():
    four, eight = LayerSpec(QuantSpec(bits=4, group_size=64)), LayerSpec(QuantSpec(bits=8))
    plan = Plan({"a": eight, "b": four, "c": four})
    assert plan.summary() == "w4g64 x2, w8 x1"
