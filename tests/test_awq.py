"""AWQ: what the search finds, what moves and what does not, against sums computed here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from bitsweep import policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration
from bitsweep.calibration.statistics import Hessian
from bitsweep.errors import UserError
from bitsweep.methods.awq import (
    AWQ,
    CLIPS,
    Inputs,
    _is_query_or_key,
    _normalised,
    _Parent,
    _Search,
    clipped,
)
from bitsweep.methods.rtn import RTN
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

UNIFORM = Policy("uniform", (Rule(role="linear"),))
Q, K, V, OUT = (f"model.layers.0.self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down"))


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """What the first block's norms give differs in size a hundredfold, as in real models."""
    folder = tmp_path_factory.mktemp("awq")
    found = tiny.load("llama", folder)
    uneven = torch.logspace(-1, 1, 128)
    for name in ("input_layernorm", "post_attention_layernorm"):
        found.get(f"model.layers.0.{name}").weight.data.copy_(uneven)
    return found


@pytest.fixture(scope="module")
def calibration(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    spec = tiny.letters(tmp_path_factory.mktemp("text"), 4096, windows=8, window=32)
    return Calibration(model, spec, Artifacts(None))


def quantize(
    method: AWQ | RTN, model: Model, calibration: Calibration, *only: str, bits: int = 3
) -> Model:
    plan = policies.make(UNIFORM, model, QuantSpec(bits, 32))
    if only:
        plan = Plan({name: LayerSpec(QuantSpec(bits, 32)) for name in only})
    return method(model.copy(), plan, calibration)


def output_error(full: Model, rounded: Model, calibration: Calibration) -> float:
    """Mean squared error of what comes out of the last block."""
    *_, one = calibration.blocks(full.copy())
    *_, two = calibration.blocks(rounded)
    return float((one.inputs() - two.inputs()).square().mean())


def test_statistics_are_those_of_all_tokens() -> None:
    seen, inputs = Inputs(6, torch.device("cpu")), gaussian(50, 6)
    for batch in inputs.split(17):
        seen.add(batch)
    torch.testing.assert_close(seen.magnitude(), inputs.abs().mean(0))
    torch.testing.assert_close(seen.value(), inputs.T @ inputs / 50)


def test_factors_are_centred_on_one() -> None:
    factor = _normalised(torch.tensor([0.0, 1.0, 100.0]))
    # 0 counts as 1e-4: the root of 1e-4 * 100 is 0.1
    torch.testing.assert_close(factor, torch.tensor([1e-3, 10.0, 1000.0]))


def test_uneven_inputs_are_scaled_and_the_output_is_closer(
    model: Model, calibration: Calibration
) -> None:
    awq = quantize(AWQ(clip=False), model, calibration)
    rtn = quantize(RTN(), model, calibration)
    norm = "model.layers.0.input_layernorm"
    factor = model.get(norm).weight / awq.get(norm).weight
    assert float(factor.max() / factor.min()) > 2
    assert float(factor[-16:].mean()) > float(factor[:16].mean())  # large inputs, large factors
    assert output_error(model, awq, calibration) < 0.8 * output_error(model, rtn, calibration)


def test_at_eight_bits_and_undone_the_weights_are_the_old_ones(
    model: Model, calibration: Calibration
) -> None:
    awq = quantize(AWQ(clip=False), model, calibration, bits=8)
    norm, name = "model.layers.0.post_attention_layernorm", GATE
    factor = model.get(norm).weight / awq.get(norm).weight
    quant = awq.get(name).quant
    step = quant.params["scale"].float().amax() / factor.min()
    undone = quant.dequantize() / factor
    assert float((undone - model.weight(name)).abs().max()) <= 0.51 * float(step)


def test_a_single_layer_is_scaled_by_the_ratio_of_least_output_error(
    model: Model, calibration: Calibration
) -> None:
    grid = 6
    awq = quantize(AWQ(grid=grid, duo_scaling=False, clip=False), model, calibration, DOWN)
    found = model.weight(UP)[:, 0] / awq.weight(UP)[:, 0]
    block = next(calibration.blocks(model.copy()))
    inputs: list[Tensor] = []
    hook = block._replay.model.get(DOWN).register_forward_pre_hook(
        lambda _, args: inputs.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    block.outputs()
    hook.remove()
    rows, weight = torch.cat(inputs), model.weight(DOWN)
    errors, factors = [], []
    for step in range(grid):
        scale = rows.abs().mean(0) ** (step / (grid - 1))
        scale = scale / (scale.max() * scale.min()).sqrt()
        rounded = QuantTensor.quantize(weight * scale, QuantSpec(3, 32)).dequantize() / scale
        errors.append(float((rows @ (rounded - weight).T).square().sum()))
        factors.append(scale)
    best = min(range(grid), key=errors.__getitem__)
    torch.testing.assert_close(found, factors[best], rtol=1e-4, atol=1e-6)


def test_layers_not_planned_are_folded_and_do_the_same(
    model: Model, calibration: Calibration
) -> None:
    awq = quantize(AWQ(), model, calibration, GATE)
    ratio = awq.weight(UP) / model.weight(UP)
    norm = "model.layers.0.post_attention_layernorm"
    factor = model.get(norm).weight / awq.get(norm).weight
    torch.testing.assert_close(ratio, factor.expand_as(ratio), rtol=1e-4, atol=1e-5)
    assert awq.weight(Q) is model.weight(Q)


def test_nothing_is_scaled_where_no_factor_can_pass(model: Model, calibration: Calibration) -> None:
    awq = quantize(AWQ(clip=False), model, calibration, OUT)  # two heads of values serve four
    rtn = quantize(RTN(), model, calibration, OUT)
    assert torch.equal(awq.weight(OUT), rtn.weight(OUT))
    assert awq.weight(V) is model.weight(V)


@pytest.mark.parametrize("group", [16, -1, 0])
def test_clipping_takes_the_range_of_least_output_error(group: int) -> None:
    spec, weight, inputs = QuantSpec(3, group), gaussian(4, 32), gaussian(200, 32, seed=1)
    weight[:, ::16] *= 3  # an outlier in each group
    found = clipped(weight, inputs.T @ inputs / 200, spec)
    size = 32 if group <= 0 else group
    candidates = []
    for clip in CLIPS:
        parts = weight.view(4, -1, size)
        limit = parts.abs().amax((0, 1, 2) if group == 0 else -1, keepdim=True) * clip
        cut = parts.clamp(-limit, limit).view(4, 32)
        moved = QuantTensor.quantize(cut, spec).dequantize() - weight
        shares = torch.einsum("tng,rng->trn", inputs.view(200, -1, size), moved.view(4, -1, size))
        error = shares.square().sum(0)
        candidates.append((error.sum() if group == 0 else error, cut.view(4, -1, size)))
    best = torch.stack([error for error, _ in candidates]).argmin(0)
    cuts = torch.stack([cut for _, cut in candidates])
    expected = (
        cuts[best]
        if group == 0
        else torch.gather(cuts, 0, best.view(1, *best.shape, 1).expand(1, *best.shape, size))[0]
    )
    torch.testing.assert_close(found, expected.reshape(4, 32))
    assert not torch.equal(found, weight)


def test_no_group_is_clipped_to_a_larger_error_of_its_share_of_the_output(
    model: Model, calibration: Calibration
) -> None:
    clip, whole = (quantize(AWQ(clip=each), model, calibration, GATE) for each in (True, False))
    factor = whole.weight(UP)[0] / model.weight(UP)[0]  # not planned, and folded all the same
    (hessian,) = (h for names, h in calibration.full_precision(0, Hessian).items() if GATE in names)
    blocks = (hessian / torch.outer(factor, factor)).view(4, 32, 4, 32)
    own = torch.stack([blocks[g, :, g] for g in range(4)])  # of what the folded norm gives

    def errors(found: Model) -> Tensor:
        moved = (found.weight(GATE) - model.weight(GATE) * factor).view(-1, 4, 32)
        return torch.einsum("rgi,gij,rgj->rg", moved, own, moved)

    assert bool((errors(clip) <= 1.001 * errors(whole) + 1e-9).all())
    assert float(errors(clip).sum()) < 0.9 * float(errors(whole).sum())


def test_queries_and_keys_are_not_clipped(model: Model, calibration: Calibration) -> None:
    clip, whole = (quantize(AWQ(clip=each), model, calibration) for each in (True, False))
    same = {name: torch.equal(clip.weight(name), whole.weight(name)) for name in (Q, K, V)}
    assert same == {Q: True, K: True, V: False}


def test_factors_are_tried_on_so_many_windows(model: Model, calibration: Calibration) -> None:
    full = model.copy()
    parent = _Parent(full, next(calibration.blocks(full)), [GATE, UP], windows=3)
    assert sum(len(args[0]) for args, _ in parent.calls) == 3  # of 8


def test_queries_and_keys_are_told_from_values(
    model: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = [name for name in model.layers if _is_query_or_key(model, name)]
    assert told == [f"model.layers.{i}.self_attn.{x}_proj" for i in (0, 1) for x in "qk"]
    fused = tiny.load("gpt2", tmp_path_factory.mktemp("fused"))
    assert _is_query_or_key(fused, "transformer.h.0.attn.c_attn")


def test_masks_are_kept(model: Model, calibration: Calibration) -> None:
    pruned = model.copy()
    mask = gaussian(*model.weight(DOWN).shape) > 0
    layer = pruned.get(DOWN)
    layer.weight = torch.nn.Parameter(layer.weight * mask, requires_grad=False)
    pruned.masks[DOWN] = mask
    found = quantize(AWQ(), pruned, calibration.of(pruned))
    assert bool((found.weight(DOWN)[~mask] == 0).all())


def test_factors_are_judged_without_the_pruned_weights(
    model: Model, calibration: Calibration
) -> None:
    full, spec = model.copy(), LayerSpec(QuantSpec(1, 32, format="binary"))  # has no 0 of its own
    mask = full.masks[DOWN] = gaussian(*full.weight(DOWN).shape) > 0
    search = _Search(full, Plan({DOWN: spec}), next(calibration.blocks(full)), windows=None)
    rounded = search._rounded(DOWN, full.weight(DOWN) * mask, torch.ones(mask.shape[1]))
    assert torch.equal(rounded != 0, mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 2}, r"method.grid=2: at least 3 ratios"),
        ({"windows": 0}, r"method.windows=0: at least 1, or null for all"),
    ],
)
def test_options_that_make_no_sense_say_what_would(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(AWQ(), **options)
