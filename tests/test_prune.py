"""Pruning: exactly the asked weights go, whole structures leave nothing behind, masks stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from desk import lay
from tiny import logits, sentences
from torch import Tensor

from bitsweep import formats
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.linear import QuantLinear
from bitsweep.methods.rtn import RTN, fit_clipped
from bitsweep.models import Model, ModelSource, load
from bitsweep.pruning import best, drop, linear_layers, prune
from bitsweep.pruning.structure import channels_of, heads_of
from bitsweep.recover.prune import Prune as PruneAfter
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor
from bitsweep.transforms.prune import Prune

FUSED = ("gpt2", "phi3", "gpt_neox", "bloom", "falcon", "gpt_bigcode", "mpt", "glm4")
"""Query, key and value in one matrix: one after another, woven, or with one shared key."""


@pytest.fixture(scope="module")
def calibration(model: Model, folder: Path) -> Calibration:
    return sentences(model, folder)


def correlated(features: int) -> Tensor:
    """A Hessian of inputs that say much the same."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(512, 8, generator=generator) @ torch.randn(
        8, features, generator=generator
    )
    inputs += 0.3 * torch.randn(512, features, generator=generator)
    return inputs.T @ inputs / 512


def weight(rows: int = 24, columns: int = 64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def objective(moved: Tensor, hessian: Tensor) -> float:
    return float(((moved @ hessian) * moved).sum())


@pytest.mark.parametrize("score", ["random", "magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("pattern", "size"), [("2:4", 4), ("4:8", 8)])
def test_half_of_each_four_or_eight_neighbours_stay(
    model: Model, calibration: Calibration, score: str, pattern: str, size: int
) -> None:
    pruned = Prune(score, pattern)(model.copy(), calibration)
    for name in linear_layers(model):
        groups = pruned.weight(name).reshape(-1, size)
        assert ((groups != 0).sum(1) == size // 2).all()


@pytest.mark.parametrize("score", ["random", "magnitude", "sparsegpt"])
def test_a_layer_loses_exactly_its_share(
    model: Model, calibration: Calibration, score: str
) -> None:
    pruned = Prune(score, sparsity=0.75)(model.copy(), calibration)
    for name in linear_layers(model):
        assert int((pruned.weight(name) != 0).sum()) * 4 == model.weight(name).numel()
        assert torch.equal(pruned.masks[name], pruned.weight(name) != 0)


def test_wanda_takes_the_same_share_of_each_row(model: Model, calibration: Calibration) -> None:
    pruned = Prune("wanda", sparsity=0.3)(model.copy(), calibration)
    for name in linear_layers(model):
        columns = model.layers[name].shape[1]
        assert ((pruned.weight(name) == 0).sum(1) == int(0.3 * columns)).all()


def test_magnitude_keeps_the_largest_as_they_are(model: Model, calibration: Calibration) -> None:
    pruned = Prune("magnitude")(model.copy(), calibration)
    for name, mask in pruned.masks.items():
        size = model.weight(name).abs()
        assert size[mask].min() >= size[~mask].max()
        assert torch.equal(pruned.weight(name)[mask], model.weight(name)[mask])


def test_wanda_weighs_a_weight_by_its_inputs_norm() -> None:
    #    |W|                    1, 2, 3        4, 1, 1
    # x  rms of the inputs      9, 1, 2   =    9, 2, 6  and  36, 1, 2: the least of each row goes
    mask = Prune("wanda", sparsity=0.34).choose(
        torch.tensor([[1.0, -2, 3], [4, 1, -1]]),
        torch.tensor([81.0, 1, 4]),
        None,
        torch.Generator(),
    )
    assert mask.tolist() == [[True, False, True], [True, False, True]]


def test_the_lot_is_the_seeds_and_nobody_elses(model: Model, calibration: Calibration) -> None:
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        masks.append(Prune("random")(model.copy(), calibration).masks)
        assert torch.equal(torch.get_rng_state(), state)
    name = linear_layers(model)[0]
    assert torch.equal(masks[0][name], masks[1][name])
    assert not torch.equal(masks[0][name], masks[2][name])


def test_equal_scores_do_not_fall_by_the_order_of_columns() -> None:
    mask = best(torch.ones(8, 64), "unstructured", 0.5, whole=True)
    assert int(mask.sum()) == 8 * 32
    assert 64 < int(mask[:4].sum()) < 192
    assert 64 < int(mask[:, :32].sum()) < 192


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_sparsegpt_moves_the_outputs_less_than_magnitude_and_wanda(pattern: str) -> None:
    full, hessian = weight(), correlated(64)
    how = Prune("sparsegpt", pattern, block_size=16)
    mask, updated = how.update(full, hessian)
    ours = objective(updated * mask - full, hessian)
    for score, seen in (("magnitude", None), ("wanda", hessian.diagonal())):
        other = Prune(score, pattern).choose(full, seen, None, torch.Generator())
        assert ours < objective(full * other - full, hessian)


@pytest.mark.parametrize("block_size", [16, 64])
def test_sparsegpt_is_the_optimal_brain_surgeon_column_by_column(block_size: int) -> None:
    full, hessian = weight(8), correlated(64)
    mask, updated = Prune("sparsegpt", block_size=block_size).update(full, hessian)
    damped = hessian.double() + 0.01 * hessian.diagonal().mean() * torch.eye(64)
    inverses = [torch.linalg.inv(damped[j:, j:]) for j in range(64)]  # of what is still free
    weights, kept = full.double(), torch.ones(8, 64, dtype=torch.bool)
    for start in range(0, 64, block_size):
        places = range(start, start + block_size)
        losses = torch.stack([weights[:, j] ** 2 / inverses[j][0, 0] for j in places], 1)
        order = losses.flatten().argsort()
        chosen = torch.ones(losses.numel(), dtype=torch.bool)
        chosen[order[: losses.numel() // 2]] = False
        kept[:, start : start + block_size] = chosen.view(losses.shape)
        for j in places:
            gone = torch.where(kept[:, j], 0, weights[:, j]) / inverses[j][0, 0]
            weights[:, j:] -= torch.outer(gone, inverses[j][0])
    assert torch.equal(mask, kept)
    torch.testing.assert_close(updated * mask, (weights * kept).float(), atol=1e-4, rtol=1e-4)


def test_sparsegpt_on_a_diagonal_hessian_moves_nothing_and_takes_the_least_energy() -> None:
    full, diagonal = weight(), torch.linspace(1, 5, 64)
    mask, updated = Prune("sparsegpt", block_size=64).update(full, torch.diag(diagonal))
    assert torch.equal(updated[mask], full[mask])
    energy = full.square() * (diagonal + 0.01 * diagonal.mean())
    assert energy[mask].min() > energy[~mask].max()


def test_sparsegpt_takes_columns_without_input_first() -> None:
    hessian = correlated(64)
    hessian[:5], hessian[:, :5] = 0, 0
    mask, _ = Prune("sparsegpt", sparsity=0.2).update(weight(), hessian)
    assert not mask[:, :5].any()


@pytest.mark.parametrize("pattern", ["heads", "channels"])
def test_refitting_what_stays_costs_less_than_leaving_it(pattern: str) -> None:
    full, hessian = weight(), correlated(64)
    kept = torch.arange(64) % 2 == 0
    refitted = Prune("sparsegpt", pattern, damping=1e-6).columns_gone(full, hessian, kept)
    assert not refitted[:, ~kept].any()
    assert objective(refitted - full, hessian) < 0.5 * objective(full * kept - full, hessian)


@pytest.mark.parametrize("score", ["random", "magnitude", "wanda", "sparsegpt"])
def test_a_pruned_head_takes_its_rows_and_columns_with_it(
    model: Model, calibration: Calibration, score: str
) -> None:
    pruned = Prune(score, "heads")(model.copy(), calibration)
    for index in range(2):
        at = f"model.layers.{index}.self_attn."
        heads = pruned.masks[at + "o_proj"].view(128, 4, 32).all(2).all(0)
        assert int(heads.sum()) == 2
        assert torch.equal(pruned.masks[at + "q_proj"].view(4, -1).all(1), heads)
        pairs = heads.view(2, 2).any(1)  # a key and value serve two heads, and stay for one
        for name in ("k_proj", "v_proj"):
            assert torch.equal(pruned.masks[at + name].view(2, -1).all(1), pairs)


@pytest.mark.parametrize("make", [heads_of, channels_of])
@pytest.mark.parametrize("name", FUSED)
def test_rows_that_go_serve_nothing_that_stays(name: str, make, folder: Path) -> None:
    model = tiny.load(name, folder)
    columns_only, both = model.copy(), model.copy()
    for index in range(2):
        units = make(model, index)
        kept = torch.arange(units.count) % 4 == 1
        weights = {layer: model.weight(layer) for layer in units.layers}
        for layer, lines in units.lines(kept, weights).items():
            drop(both, layer, lines.rows.unsqueeze(1) & lines.columns)
            drop(columns_only, layer, torch.ones_like(lines.rows).unsqueeze(1) & lines.columns)
        (felt,) = units.columns
        gone = sum(int((~lines.rows).sum()) for lines in units.lines(kept, weights).values())
        query, feeding = 128, sum(model.layers[n].shape[0] for n in units.layers if n != felt)
        keys = feeding - query if make is heads_of else 0
        if keys == 2 * 128 or make is channels_of:  # each head has its own: three of four go
            assert gone == feeding * 3 // 4
        else:  # two keys and values for four heads: one of two goes; one for all stays
            assert gone == query * 3 // 4 + (keys // 2 if keys == 2 * 64 else 0)
    torch.testing.assert_close(logits(both), logits(columns_only), atol=1e-4, rtol=1e-4)
    assert (logits(both) - logits(model)).abs().max() > 0.1


@pytest.mark.parametrize("score", ["random", "magnitude", "wanda"])
def test_a_pruned_block_hands_on_what_it_gets(
    model: Model, calibration: Calibration, score: str
) -> None:
    pruned = Prune(score, "blocks")(model.copy(), calibration)
    gone = sorted({int(name.split(".")[2]) for name in pruned.masks})
    assert len(gone) == 1
    assert all(not mask.any() for mask in pruned.masks.values())
    assert pruned.masks.keys() == set(linear_layers(model, gone[0]))
    states = pruned.module(torch.arange(64).view(1, 64), output_hidden_states=True).hidden_states
    before, after = states[gone[0]], states[gone[0] + 1]
    if gone[0] == 1:
        after, before = after, model.module.model.norm(before)
    torch.testing.assert_close(before, after)


def test_a_row_that_goes_takes_its_bias_along(folder: Path) -> None:
    model = tiny.load("gpt2", folder)
    pruned = Prune("magnitude", "channels")(model.copy(), sentences(model, folder))
    layer = "transformer.h.0.mlp.c_fc"
    rows = pruned.masks[layer].any(1)
    assert int(rows.sum()) * 2 == len(rows)
    assert not pruned.get(layer).bias[~rows].any()
    assert torch.equal(pruned.get(layer).bias[rows], model.get(layer).bias[rows])
    down = pruned.get("transformer.h.0.mlp.c_proj")
    assert torch.equal(down.bias, model.get("transformer.h.0.mlp.c_proj").bias)


def test_the_original_and_its_ends_are_left_alone(model: Model, calibration: Calibration) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    pruned = Prune()(model.copy(), calibration)
    assert all(torch.equal(value, before[n]) for n, value in model.module.state_dict().items())
    assert not model.masks
    for name in ("model.embed_tokens", "lm_head"):
        assert pruned.get(name).weight is model.get(name).weight


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score": "l1"}, "score=l1: use random, magnitude, wanda, sparsegpt"),
        ({"pattern": 124}, "pattern=124: use unstructured, 2:4, .*quotes in YAML"),
        ({"sparsity": 1.0}, "sparsity=1.0: the share that goes"),
        ({"pattern": "2:4", "sparsity": 0.6}, "sparsity=0.6: 2:4 means 0.5"),
        ({"score": "sparsegpt", "pattern": "blocks"}, "score=sparsegpt: of a block nothing stays"),
        ({"block_size": 4}, "block_size: above 0, at least 8"),
    ],
)
def test_a_wrong_option_names_its_key(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=f"transforms.prune.*{words}"):
        Prune(**options)  # type: ignore[arg-type]


def test_a_quantized_model_can_not_be_refitted() -> None:
    with pytest.raises(UserError, match=r"recover.prune.score=sparsegpt: it moves the weights"):
        PruneAfter(score="sparsegpt")


def test_a_pattern_that_does_not_fit_is_refused(folder: Path, model: Model) -> None:
    path = tiny.save("llama", folder / "narrow", intermediate_size=260)
    narrow = load(ModelSource("narrow", str(path)), Artifacts(None))
    assert Prune(pattern="2:4").skip(narrow) is None
    assert "pattern=4:8: the rows of model.layers.0.mlp.down_proj have 260 weights" in str(
        Prune(pattern="4:8").skip(narrow)
    )
    assert "sparsity=0.1: none of 4 heads; try 0.25" in str(
        Prune(pattern="heads", sparsity=0.1).skip(model)
    )
    split = model.copy()
    split.transformed = ("low_rank",)
    assert "heads of factors are none" in str(Prune(pattern="heads").skip(split))


def test_what_is_looked_at_is_said() -> None:
    assert [Prune(score).calibrated for score in ("random", "magnitude")] == [False, False]
    assert [Prune(score).calibrated for score in ("wanda", "sparsegpt")] == [True, True]
    assert [Prune(score).seeded for score in ("random", "wanda")] == [True, False]


def test_codes_that_stay_are_the_same_codes(model: Model, calibration: Calibration) -> None:
    names = linear_layers(model)[2:]
    plan = Plan({name: LayerSpec(QuantSpec(4, 32)) for name in names})
    whole = RTN()(model.copy(), plan, calibration)
    pruned = PruneAfter("magnitude")(whole.copy(), plan, calibration)
    for name in linear_layers(model):
        mask = pruned.masks[name]
        assert int(mask.sum()) == mask.numel() // 2
        assert torch.equal(pruned.weight(name), whole.weight(name) * mask)
        assert isinstance(pruned.get(name), QuantLinear) == (name in names)


@pytest.mark.parametrize("clip", ["none", "mse"])
def test_what_was_pruned_pulls_no_entry_of_a_codebook(
    clip: str, model: Model, calibration: Calibration
) -> None:
    pruned = Prune("magnitude")(model.copy(), calibration)
    name = linear_layers(model)[2]
    full, mask = pruned.weight(name), pruned.masks[name]
    for format in ("int", "codebook"):
        spec = QuantSpec(2, -1, format=format)
        plan = Plan({name: LayerSpec(spec)})
        ours = RTN(clip)(pruned.copy(), plan, calibration).get(name).quant
        how = formats.plain if clip == "none" else fit_clipped
        blind = QuantTensor.quantize(full, spec, formats.fit(full, spec, how=how)).masked(mask)
        if format == "int":  # a range is a range, and holds 0 exactly
            assert torch.equal(ours.codes, blind.codes)
        else:
            errors = [float((q.dequantize() - full).square().sum()) for q in (ours, blind)]
            assert errors[0] < 0.8 * errors[1]


def test_pruning_twice_leaves_what_both_leave(model: Model, calibration: Calibration) -> None:
    first = Prune("random", sparsity=0.25)(model.copy(), calibration)
    second = prune(first.copy(), PruneAfter("magnitude", sparsity=0.5), calibration)
    for name, mask in second.masks.items():
        assert not (mask & ~first.masks[name]).any()
        assert int(mask.sum()) == mask.numel() // 2


def test_what_is_gone_stays_gone_when_less_is_asked_for(
    model: Model, calibration: Calibration
) -> None:
    once = Prune("magnitude", sparsity=0.5)(model.copy(), calibration)
    twice = prune(once.copy(), Prune("magnitude", sparsity=0.25), calibration)
    for name, mask in once.masks.items():
        assert torch.equal(twice.masks[name], mask)


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_command_line_prunes_before_and_after(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    group = "transforms" if order == "before" else "recover"
    assert lay(tmp_path)("run", f"{group}=[prune]", f"{group}.prune.pattern=2:4") == 0
    assert "prune (pattern=2:4)" in capsys.readouterr().out
