"""GPTQ: what its equations promise, and parity with a column-by-column reference in float64."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from bitsweep import formats, policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Block, Calibration
from bitsweep.calibration.statistics import Hessian
from bitsweep.errors import UserError
from bitsweep.linear import QuantLinear
from bitsweep.methods.gptq import GPTQ, inverse_factor
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, SCALE_DTYPES, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

W4 = QuantSpec(4, 32)
PLAIN = GPTQ(act_order=False, static_groups=False)


def layer(out_features: int = 48, in_features: int = 160, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of correlated inputs whose energy differs between columns."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(in_features, in_features, generator=draw)
    energy = torch.linspace(0.2, 3.0, in_features)[torch.randperm(in_features, generator=draw)]
    inputs = (torch.randn(600, in_features, generator=draw) @ mix * energy).float()
    weight = 0.1 * torch.randn(out_features, in_features, generator=draw)
    return weight, inputs.T @ inputs / len(inputs)


def objective(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """tr((W - Q) H (W - Q)^T), what GPTQ minimises."""
    error = (weight - rounded).double()
    return float(((error @ hessian.double()) * error).sum())


def reference(weight: Tensor, hessian: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes, and what they stand for, of optimal brain quantization: float64, explicit inverse.

    Damping 0.01; asymmetric 4-bit grids with float32 scales, fitted to the updated weights. (In a
    symmetric grid the largest weight of a group lies on a tie, -7.5, which float64 and float32
    break differently.)
    """
    weight, hessian = weight.double().clone(), hessian.double()
    columns = weight.shape[1]
    inverse = torch.linalg.inv(
        hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    )
    codes, rounded = torch.empty_like(weight), torch.empty_like(weight)
    for j in range(columns):
        if j % group_size == 0:
            group = weight[:, j : j + group_size]
            low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
            scale = ((high - low) / 15).float().double()
            zero = (-low / scale).round()
        codes[:, j] = (weight[:, j] / scale + zero).round().clamp(0, 15)
        rounded[:, j] = (codes[:, j] - zero) * scale
        error = (weight[:, j] - rounded[:, j]) / inverse[j, j]
        weight -= error[:, None] * inverse[j][None, :]
        inverse = inverse - inverse[:, j : j + 1] * inverse[j : j + 1, :] / inverse[j, j]
        inverse[j, j] = 1.0  # done: its row and column are zero, and are not used again
    return codes, rounded


@pytest.mark.parametrize("group_size", [160, 32, 48])
@pytest.mark.parametrize("block_size", [128, 32, 7])
def test_codes_are_those_of_the_column_by_column_reference(
    group_size: int, block_size: int
) -> None:
    weight, hessian = layer()
    spec = QuantSpec(4, group_size, scale_dtype="float32", ragged=True)
    ours = replace(PLAIN, block_size=block_size).quantize(weight, hessian, spec)
    codes, rounded = reference(weight, hessian, group_size)
    best = objective(weight, rounded, hessian)
    assert objective(weight, ours.dequantize(), hessian) == pytest.approx(best, rel=1e-3)
    assert float((ours.codes == codes).double().mean()) >= 0.999


def test_acting_in_order_is_the_reference_on_ordered_columns() -> None:
    weight, hessian = layer()
    order = hessian.diagonal().argsort(descending=True)
    spec = QuantSpec(4, 32, scale_dtype="float32")
    ours = GPTQ(static_groups=False).quantize(weight, hessian, spec)
    codes, _ = reference(weight[:, order], hessian[order][:, order], 32)
    assert ours.permutation is not None
    assert torch.equal(ours.permutation, order)
    assert float((ours.codes[:, order] == codes).double().mean()) >= 0.999


@pytest.mark.parametrize("method", [PLAIN, GPTQ(), GPTQ(static_groups=False)], ids=str)
def test_a_diagonal_hessian_gives_round_to_nearest(method: GPTQ) -> None:
    weight, hessian = layer()
    apart = torch.diag(hessian.diagonal())
    ours = method.quantize(weight, apart, W4)
    if ours.permutation is None:
        nearest = QuantTensor.quantize(weight, W4).dequantize()
    else:  # groups of columns in another order, rounded to nearest
        moved = QuantTensor.quantize(weight[:, ours.permutation], W4).dequantize()
        nearest = torch.empty_like(moved).index_copy_(1, ours.permutation, moved)
    assert torch.equal(ours.dequantize(), nearest)


@pytest.mark.parametrize("method", [PLAIN, GPTQ(), GPTQ(static_groups=False)], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [PER_TENSOR, PER_CHANNEL, 32])
def test_the_objective_is_below_that_of_rounding(method: GPTQ, bits: int, group_size: int) -> None:
    weight, hessian = layer()
    spec = QuantSpec(bits, group_size)
    ours = objective(weight, method.quantize(weight, hessian, spec).dequantize(), hessian)
    nearest = objective(weight, QuantTensor.quantize(weight, spec).dequantize(), hessian)
    assert ours < nearest


def test_static_groups_are_those_of_the_weights_before() -> None:
    weight, hessian = layer()
    ours = GPTQ().quantize(weight, hessian, W4)
    nearest = QuantTensor.quantize(weight, W4)
    assert ours.permutation is None
    assert all(torch.equal(ours.params[name], nearest.params[name]) for name in nearest.params)
    assert not torch.equal(ours.codes, nearest.codes)


@pytest.mark.parametrize("method", [PLAIN, GPTQ(), GPTQ(static_groups=False)], ids=str)
def test_the_block_size_changes_speed_only(method: GPTQ) -> None:
    weight, hessian = layer()
    whole = replace(method, block_size=160).quantize(weight, hessian, W4)
    pieces = replace(method, block_size=10).quantize(weight, hessian, W4)
    assert float((whole.codes == pieces.codes).double().mean()) > 0.999


def test_a_column_without_input_is_rounded_to_nearest() -> None:
    weight, hessian = layer()
    hessian[7], hessian[:, 7] = 0, 0
    ours = GPTQ().quantize(weight, hessian, W4)
    assert torch.equal(ours.codes[:, 7], QuantTensor.quantize(weight, W4).codes[:, 7])


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    _, hessian = layer()
    factor = inverse_factor(hessian, 0.01).double()
    damped = hessian.double()
    damped += 0.01 * damped.diagonal().mean() * torch.eye(160, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor, damped.inverse(), rtol=1e-3, atol=1e-5)


def test_a_hessian_that_is_not_positive_definite_raises_the_damping(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hessian = torch.tensor([[1.0, 2.0], [2.0, 1.0]])  # eigenvalues 3 and -1
    with caplog.at_level(logging.WARNING):
        factor = inverse_factor(hessian, 0.2, "layer")
    assert caplog.messages == ["layer: Hessian not positive definite, damping raised to 2"]
    torch.testing.assert_close(factor.T @ factor, (hessian + 2 * torch.eye(2)).inverse())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": "none"}, "method.prefix=none: use quantized or full_precision"),
        (
            {"true_sequential": True, "prefix": "full_precision"},
            "method.true_sequential=true: needs method.prefix=quantized",
        ),
        ({"damping": 0.0}, "method.damping, block_size: above 0, at least 1"),
    ],
)
def test_impossible_options_name_their_key(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GPTQ(**options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ every format


def specs(bits: tuple[float, ...]) -> list[QuantSpec]:
    """Every format at the first of ``bits``, and a group size, that it takes."""
    found = []
    for name in formats.names():
        every = [
            QuantSpec(width, group_size, symmetric, name, scale_dtype)
            for width in bits
            for group_size in (32, 16, PER_TENSOR)
            for symmetric in (False, True)
            for scale_dtype in SCALE_DTYPES
        ]
        fits = [spec for spec in every if formats.get(name).skip(spec) is None]
        found += fits[:1]
    return found


ALL = specs((4, 8, 6, 2, 1, 1.6))


def test_no_format_is_left_out() -> None:
    assert {spec.format for spec in ALL} == set(formats.names())


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_in_every_format_independent_inputs_give_round_to_nearest(spec: QuantSpec) -> None:
    weight, hessian = layer()
    vector = formats.get(spec.format).vector(spec)
    diagonal = hessian.diagonal()  # one for all columns of a vector: there is no order in it
    apart = diagonal if vector == 1 else diagonal[::vector].repeat_interleave(vector)
    ours = GPTQ().quantize(weight, torch.diag(apart), spec)
    nearest = QuantTensor.quantize(weight, spec, ours.params)
    assert torch.equal(ours.dequantize(), nearest.dequantize())


@pytest.mark.parametrize("method", [GPTQ(), PLAIN], ids=str)
@pytest.mark.parametrize("spec", ALL, ids=str)
def test_in_every_format_the_objective_is_below_that_of_rounding(
    spec: QuantSpec, method: GPTQ
) -> None:
    weight, hessian = layer()
    ours = objective(weight, method.quantize(weight, hessian, spec).dequantize(), hessian)
    nearest = objective(weight, QuantTensor.quantize(weight, spec).dequantize(), hessian)
    assert ours < nearest


@pytest.mark.parametrize("name", ["codebook", "vector2", "vector4", "vector8"])
def test_more_bits_less_objective(name: str) -> None:
    weight, hessian = layer()
    vector = formats.get(name).vector(QuantSpec(1, format=name))
    errors = []
    for width in range(1, 9):
        spec = QuantSpec(width / vector, PER_TENSOR, format=name)
        errors.append(
            objective(weight, GPTQ().quantize(weight, hessian, spec).dequantize(), hessian)
        )
    assert errors == sorted(errors, reverse=True)


def test_a_vector_is_the_entry_that_adds_least_to_the_objective() -> None:
    """Of one vector alone, the objective is that of the whole layer: every entry is tried."""
    weight, hessian = layer(16, 4)
    spec = QuantSpec(1, PER_TENSOR, format="vector4", scale_dtype="float32")
    ours = replace(PLAIN, damping=1e-6).quantize(weight, hessian, spec)
    entries = ours.params["codebook"][0, 0]
    costs = [
        objective(row - entry, torch.zeros(1, 4), hessian) for row in weight for entry in entries
    ]
    best = torch.tensor(costs).view(len(weight), len(entries)).argmin(1)
    assert torch.equal(ours.codes.view(-1).long(), best)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("static_groups", [True, False])
def test_entries_of_a_codebook_are_means_weighted_by_the_energy_of_inputs(
    static_groups: bool, act_order: bool
) -> None:
    weight, hessian = torch.tensor([[0.0, 4.0, 10.0]]), torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    spec = QuantSpec(1, 3, format="codebook", scale_dtype="float32")
    method = GPTQ(act_order=act_order, static_groups=static_groups, damping=1e-9)
    entries = method.quantize(weight, hessian, spec).params["codebook"].view(-1)
    torch.testing.assert_close(entries, torch.tensor([3.0, 10.0]))  # (1 * 0 + 3 * 4) / 4


@pytest.mark.parametrize("static_groups", [True, False])
def test_a_pruned_weight_does_not_count_in_a_codebook(static_groups: bool) -> None:
    weight, mask = torch.tensor([[4.0, 6.0, 10.0, 1.0]]), torch.tensor([[True, True, True, False]])
    spec = QuantSpec(1, 4, format="codebook", scale_dtype="float32")
    found = GPTQ(static_groups=static_groups).quantize(weight, torch.eye(4), spec, mask=mask)
    # of 0, 4, 6 and 10 the best two entries would be 2 and 8
    torch.testing.assert_close(found.params["codebook"].view(-1), torch.tensor([5.0, 10.0]))


@pytest.mark.parametrize("group_size", [PER_TENSOR, PER_CHANNEL, 32])
@pytest.mark.parametrize("method", [GPTQ(), GPTQ(static_groups=False)], ids=str)
def test_layers_that_share_inputs_are_as_by_themselves(method: GPTQ, group_size: int) -> None:
    (one, hessian), (two, _) = layer(), layer(24, seed=1)
    spec = QuantSpec(4, group_size)
    both = method.quantize_together([one, two], hessian, spec, "", [None, None])
    for weight, quant in zip((one, two), both, strict=True):
        assert torch.equal(quant.codes, method.quantize(weight, hessian, spec).codes)


# ------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("method", [GPTQ(), PLAIN], ids=str)
@pytest.mark.parametrize(
    "spec", [W4, *(spec for spec in ALL if spec.format in ("nf", "codebook", "vector2"))], ids=str
)
def test_pruned_weights_stay_zero_and_the_others_make_up_for_them(
    spec: QuantSpec, method: GPTQ
) -> None:
    weight, hessian = layer()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) > 0.3
    pruned = weight * mask
    jointly = method.quantize(weight, hessian, spec, mask=mask)
    after = method.quantize(weight, hessian, spec).masked(mask).dequantize()
    assert not jointly.dequantize()[~mask].any()
    joint = method.quantize(pruned, hessian, spec, mask=mask).dequantize()
    assert torch.equal(joint, jointly.dequantize())  # what a pruned weight was does not count
    plain = method.quantize(pruned, hessian, spec).masked(mask).dequantize()
    assert objective(pruned, joint, hessian) < objective(pruned, plain, hessian)
    assert objective(pruned, joint, hessian) < objective(pruned, after, hessian)


def test_nothing_pruned_is_no_mask() -> None:
    weight, hessian = layer()
    mask = torch.ones_like(weight, dtype=torch.bool)
    ours = GPTQ().quantize(weight, hessian, W4, mask=mask)
    assert torch.equal(ours.codes, GPTQ().quantize(weight, hessian, W4).codes)


# ------------------------------------------------------------------------------ in a model


@pytest.fixture(scope="module")
def calibration(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    spec = tiny.letters(tmp_path_factory.mktemp("text"), 2048, windows=8, window=64)
    return Calibration(model, spec, Artifacts(None))


def uniform(model: Model, bits: int) -> Plan:
    return policies.make(Policy("uniform", (Rule(role="linear"),)), model, QuantSpec(bits, 32))


@pytest.mark.parametrize("true_sequential", [False, True])
def test_true_sequential_layers_see_what_those_before_them_became(
    model: Model,
    calibration: Calibration,
    true_sequential: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy, observe, seen = model.copy(), Block.observe, {}

    def noting(self: Block, names: list[str], statistic: type[Hessian]) -> dict[str, Hessian]:
        quantized = {name for name in model.sequential(self.index)[0] if is_quantized(copy, name)}
        seen.update({name: len(quantized) for name in names})
        return observe(self, names, statistic)

    monkeypatch.setattr(Block, "observe", noting)
    GPTQ(true_sequential=true_sequential)(copy, uniform(model, 4), calibration)
    for block in ("model.layers.0", "model.layers.1"):
        assert seen[f"{block}.self_attn.q_proj"] == 0  # how many of q, k, v are quantized by then
        assert seen[f"{block}.self_attn.o_proj"] == (3 if true_sequential else 0)


def is_quantized(model: Model, name: str) -> bool:
    return isinstance(model.get(name), QuantLinear)


def test_the_two_prefixes_differ_from_the_second_block_on(
    model: Model, calibration: Calibration
) -> None:
    plan = uniform(model, 2)
    one = GPTQ()(model.copy(), plan, calibration)
    two = GPTQ(prefix="full_precision")(model.copy(), plan, calibration)
    same = {name: torch.equal(one.weight(name), two.weight(name)) for name in plan.layers}
    assert [name for name in same if same[name]] == [n for n in same if "layers.0." in n]
