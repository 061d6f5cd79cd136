"""Low rank: the optimum of its objective, layers that every other part sees, corrections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from desk import lay
from tiny import logits, sentences
from torch import Tensor, nn

from bitsweep import engines, models, policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration
from bitsweep.calibration.statistics import Hessian
from bitsweep.errors import UserError
from bitsweep.linear import QuantLinear
from bitsweep.lowrank import Correction, Factors, factorize
from bitsweep.methods.gptq import GPTQ
from bitsweep.methods.rtn import RTN
from bitsweep.models import Model
from bitsweep.models.fold import fold
from bitsweep.policies import Policy, Rule
from bitsweep.recover.low_rank import LowRank as Correct
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.transforms.low_rank import LowRank, split
from bitsweep.transforms.prune import Prune

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
UNIFORM = Policy("uniform", (Rule(role="linear"),))


@pytest.fixture(scope="module")
def calibration(model: Model, folder: Path) -> Calibration:
    return sentences(model, folder)


def matrix(rows: int = 24, columns: int = 32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def hessian(features: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, rank, generator=generator)
    inputs = inputs @ torch.randn(rank, features, generator=generator)
    return inputs.T @ inputs / 64


def cost(moved: Tensor, of: Tensor) -> float:
    moved = moved.double()
    return float(((moved @ of.double()) * moved).sum())


def test_at_full_rank_the_factors_are_the_matrix() -> None:
    for weighting in (None, hessian(32, 40), hessian(32, 40).diagonal()):
        up, down = factorize(matrix(), 24, weighting)
        torch.testing.assert_close(up @ down, matrix(), atol=1e-4, rtol=1e-4)


def test_the_plain_error_is_the_singular_values_that_are_cut_off() -> None:
    up, down = factorize(matrix(), 5)
    lost = torch.linalg.svdvals(matrix())[5:].square().sum()
    torch.testing.assert_close((matrix() - up @ down).square().sum(), lost)
    assert (up.shape, down.shape) == ((24, 5), (5, 32))


def test_the_weighted_error_is_the_least_there_is() -> None:
    of = hessian(32, 40)
    up, down = factorize(matrix(), 5, of)
    root = torch.linalg.cholesky(of.double())  # SVD-LLM: cut W S off, multiply by S^-1
    left, values, right = torch.linalg.svd(matrix().double() @ root, full_matrices=False)
    theirs = left[:, :5] * values[:5] @ right[:5] @ torch.linalg.inv(root)
    torch.testing.assert_close((up @ down).double(), theirs, atol=1e-4, rtol=1e-4)
    assert cost(matrix() - up @ down, of) == pytest.approx(float(values[5:].square().sum()), 1e-4)


def test_a_diagonal_weighs_as_the_matrix_that_has_it_does() -> None:
    energy = torch.logspace(-1, 1, 32)
    one, two = (factorize(matrix(), 5, of) for of in (energy, torch.diag(energy)))
    torch.testing.assert_close(one[0] @ one[1], two[0] @ two[1], atol=1e-4, rtol=1e-4)


def test_inputs_of_few_directions_need_a_rank_of_as_many() -> None:
    of = hessian(32, 6)  # singular: S can not be inverted
    up, down = factorize(matrix(), 6, of)
    assert cost(matrix() - up @ down, of) < 1e-6 * cost(matrix(), of)


def test_a_matrix_of_zeros_has_factors_of_zeros() -> None:
    up, down = factorize(torch.zeros(4, 6), 2, hessian(6, 6))
    assert torch.equal(up @ down, torch.zeros(4, 6))


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gpt_neox"])
def test_split_at_full_rank_the_model_is_the_same(name: str, folder: Path) -> None:
    model = tiny.load(name, folder)
    names = {n: min(x.shape) for n, x in model.layers.items() if x.block is not None}
    whole = model.copy()
    split(whole, names, lambda name, rank: factorize(model.weight(name), rank))
    torch.testing.assert_close(logits(whole), logits(model), atol=2e-3, rtol=1e-3)
    assert not set(names) & set(whole.layers)
    assert set(names) <= set(model.layers)


def test_keep_is_the_share_of_the_parameters(model: Model, calibration: Calibration) -> None:
    half = LowRank(keep=0.5, activation_aware=False)(model.copy(), calibration)
    # q: 0.5 * 128 * 128 / (128 + 128) = 32; k: 0.5 * 64 * 128 / 192 = 21.3; up: 42.7
    assert half.layers[f"{Q}.down"].shape == (32, 128)
    assert half.layers[f"{Q}.up"].shape == (128, 32)
    assert half.layers["model.layers.0.self_attn.k_proj.up"].shape == (64, 21)
    assert half.layers[f"{UP}.down"].shape == (42, 128)
    assert half.get(f"{UP}.down").weight.shape == (42, 128)
    assert LowRank(keep=0.5, multiple=16).ranks(model)[UP] == 32


def test_a_layer_that_would_grow_stays_whole(model: Model) -> None:
    # q has 128 * 128 / 256 = 64 as its largest rank that costs no more, k 42.7, up 85.3
    assert set(LowRank(rank=60).ranks(model)) == {
        name
        for name, layer in model.layers.items()
        if layer.block is not None and layer.shape != (64, 128)
    }
    assert "no layer gets smaller" in str(LowRank(rank=128).skip(model))


def test_the_skeleton_becomes_what_the_model_becomes(
    model: Model, calibration: Calibration
) -> None:
    how = LowRank(keep=0.5, activation_aware=False)
    after = how(model.copy(), calibration)
    skeleton = models.skeleton(model.source, Artifacts(None)).copy()
    how.reshape(skeleton)
    assert skeleton.anatomy == after.anatomy
    for name in after.layers:
        assert skeleton.get(name).weight.shape == after.get(name).weight.shape


def test_factors_stand_in_the_anatomy_where_the_layer_stood(model: Model) -> None:
    split_model = models.skeleton(model.source, Artifacts(None)).copy()
    LowRank(rank=8).reshape(split_model)
    names = list(split_model.layers)
    assert names[1:3] == [f"{Q}.down", f"{Q}.up"]
    q, o = split_model.layers[f"{Q}.up"], split_model.layers[f"{Q[:-6]}o_proj.down"]
    assert (q.role, q.block, q.source) == ("attention.qkv", 0, f"{Q}.down")
    assert split_model.layers[f"{Q}.down"].source == "model.layers.0.input_layernorm"
    assert o.source == f"{Q[:-6]}v_proj.up"
    stages = split_model.sequential(0)
    assert [len(stage) for stage in stages] == [3, 3, 1, 1, 2, 2, 1, 1]
    assert stages[0][0] == f"{Q}.down"
    assert stages[1][0] == f"{Q}.up"


def test_outputs_on_the_calibration_text_move_less_than_by_plain_svd(
    model: Model, calibration: Calibration
) -> None:
    hessians = {
        name: value
        for index in range(2)
        for names, value in calibration.full_precision(index, Hessian).items()
        for name in names
    }
    plain = LowRank(keep=0.5, activation_aware=False)(model.copy(), calibration)
    aware = LowRank(keep=0.5)(model.copy(), calibration)
    for name in LowRank(keep=0.5).ranks(model):
        errors = [
            cost(x.get(name).weight - model.weight(name), hessians[name]) for x in (aware, plain)
        ]
        assert errors[0] <= errors[1]


def test_methods_quantize_both_factors(model: Model, calibration: Calibration) -> None:
    thin = LowRank(keep=0.5, multiple=16)(model.copy(), calibration)
    after = calibration.of(thin.copy())
    plan = policies.make(UNIFORM, thin, QuantSpec(8, 16))
    for method in (RTN(), GPTQ(true_sequential=True), GPTQ(prefix="full_precision")):
        result = method(thin.copy(), plan, after)
        became = policies.audit(result, plan)
        assert became[f"{Q}.down"] == became[f"{Q}.up"] == "w8g16"
        close = (logits(result) - logits(thin)).std() / logits(thin).std()
        assert float(close) < 0.05
    assert isinstance(thin.get(Q), Factors)
    assert not isinstance(thin.get(f"{Q}.up"), QuantLinear)


def test_pruned_before_is_refused_and_pruned_after_is_not(
    model: Model, calibration: Calibration
) -> None:
    pruned = replace(model.copy(), transformed=("prune",))
    assert "write transforms=[low_rank,prune]" in str(LowRank().skip(pruned))
    thin = LowRank(rank=8, activation_aware=False)(model.copy(), calibration)
    both = Prune("magnitude")(thin, calibration.of(thin.copy()))
    assert int(both.masks[f"{Q}.up"].sum()) == 128 * 8 // 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LowRank(keep=1.5), "transforms.low_rank.keep=1.5: a share above 0"),
        (lambda: LowRank(rank=0), "transforms.low_rank.rank, multiple: at least 1"),
        (lambda: Correct(rank=0), "recover.low_rank.rank=0: at least 1"),
        (lambda: Correct(weighting="lqer"), "weighting=lqer: use plain, diagonal, hessian"),
    ],
)
def test_a_wrong_option_names_its_key(make, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


# The correction of a quantized model


def quantized(model: Model, calibration: Calibration, bits: int = 3) -> tuple[Model, Plan]:
    plan = policies.make(UNIFORM, model, QuantSpec(bits, 32))
    return RTN()(model.copy(), plan, calibration), plan


def corrected(model: Model, name: str) -> Tensor:
    """The weight that the layer amounts to."""
    correction = model.get(name).correction
    assert isinstance(correction, Correction)
    return model.weight(name) + correction.weight()


@pytest.mark.parametrize("weighting", ["plain", "diagonal", "hessian"])
def test_more_rank_less_error_of_what_is_weighted(
    model: Model, calibration: Calibration, weighting: str
) -> None:
    whole, plan = quantized(model, calibration)
    # of the first layer alone, whose inputs do not depend on other corrections
    plan = Plan({Q: plan.layers[Q]})
    (seen,) = [v for n, v in calibration.full_precision(0, Hessian).items() if Q in n]
    of = {
        "plain": torch.eye(128),
        "diagonal": torch.diag(seen.diagonal()),
        "hessian": seen,
    }[weighting]
    errors = [cost(model.weight(Q) - whole.weight(Q), of)]
    for rank in (1, 4, 16, 128):
        result = Correct(rank, weighting)(whole.copy(), plan, calibration)
        errors.append(cost(model.weight(Q) - corrected(result, Q), of))
    assert errors[:4] == sorted(errors[:4], reverse=True)
    assert errors[4] < 1e-6 * errors[0]  # float16 keeps the rest


def test_full_rank_gives_back_the_logits_and_a_rank_in_between_comes_closer(
    model: Model, calibration: Calibration
) -> None:
    whole, plan = quantized(model, calibration)
    distance = [
        float((logits(m) - logits(model)).std())
        for m in (
            whole,
            Correct(32)(whole.copy(), plan, calibration),
            Correct(128)(whole.copy(), plan, calibration),
        )
    ]
    assert distance[1] < distance[0]
    assert distance[2] < 0.01 * distance[0]


def test_codes_stay_and_the_audit_holds(model: Model, calibration: Calibration) -> None:
    whole, plan = quantized(model, calibration)
    result = Correct(4)(whole.copy(), plan, calibration)
    assert policies.audit(result, plan) == policies.audit(whole, plan)
    assert result.get(Q).quant is whole.get(Q).quant
    assert whole.get(Q).correction is None


def test_scales_that_a_method_folded_are_no_error(model: Model, calibration: Calibration) -> None:
    folded = model.copy()
    fold(folded, "model.layers.0.input_layernorm", torch.linspace(0.5, 4, 128))
    fold(folded, "model.layers.1.mlp.up_proj", torch.linspace(3, 0.2, 256))
    plan = policies.make(UNIFORM, folded, QuantSpec(3, 32))
    result = Correct(128)(RTN()(folded, plan, calibration), plan, calibration)
    torch.testing.assert_close(logits(result), logits(model), atol=0.05, rtol=0.02)


def test_what_a_recovery_pruned_before_is_corrected_too(
    model: Model, calibration: Calibration
) -> None:
    whole, plan = quantized(model, calibration, bits=8)
    drop = torch.rand(128, 128, generator=torch.Generator().manual_seed(0)) > 0.5
    whole.replace(Q, QuantLinear(whole.get(Q).quant.masked(drop), None, torch.float32))
    result = Correct(128, "plain")(whole, Plan({Q: plan.layers[Q]}), calibration)
    torch.testing.assert_close(corrected(result, Q), model.weight(Q), atol=2e-3, rtol=0)


def test_a_layer_adds_what_its_correction_makes_of_the_same_input(
    model: Model, calibration: Calibration
) -> None:
    whole, plan = quantized(model, calibration)
    layer = Correct(4)(whole, plan, calibration).get(Q)

    class Halve(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return input / 2

    layer.input_quantizer = Halve()
    x = matrix(3, 128)
    torch.testing.assert_close(layer(x), (x / 2) @ corrected(whole, Q).T, atol=1e-4, rtol=1e-4)


def test_packed_kernels_refuse_corrections_and_masks(
    model: Model, calibration: Calibration
) -> None:
    whole, plan = quantized(model, calibration, bits=8)
    result = Correct(4)(whole.copy(), plan, calibration)
    assert "corrections of low rank: model.layers.0" in str(engines.choose("auto", result)[1])
    pruned = Prune("magnitude")(model.copy(), calibration)
    result = RTN()(pruned, plan, calibration)
    assert "masks of pruned weights: model.layers.0" in str(engines.choose("auto", result)[1])


def test_a_tied_head_is_corrected_on_its_own(folder: Path) -> None:
    tied = tiny.load("llama_tied", folder)
    spec = LayerSpec(QuantSpec(3, 32))
    plan = Plan({"model.embed_tokens": spec, "lm_head": spec})
    calibration = sentences(tied, folder)
    result = Correct(8)(RTN()(tied.copy(), plan, calibration), plan, calibration)
    assert result.get("lm_head").quant is result.get("model.embed_tokens").quant
    moved = tied.weight("lm_head") - corrected(result, "lm_head")
    assert moved.norm() < (tied.weight("lm_head") - result.weight("lm_head")).norm()


def test_nothing_quantized_nothing_to_correct() -> None:
    assert "nothing is quantized" in str(Correct().skip(Plan()))


def test_the_command_line_takes_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    desk = lay(tmp_path)
    both = ("transforms=[low_rank]", "recover=[low_rank]", "recover.low_rank.rank=4")
    assert desk("run", *both, "misfit=ragged") == 0
    assert "low_rank + rtn w4g64 uniform ragged + low_rank (rank=4)" in capsys.readouterr().out
