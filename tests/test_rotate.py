"""Rotations folded into the weights: the function stays, on every architecture or with a reason."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from bitsweep import models
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.data import TextSource
from bitsweep.errors import Refused, UserError
from bitsweep.methods.gptq import GPTQ
from bitsweep.models import Model
from bitsweep.models.norms import NormKind, norm_kind
from bitsweep.policies import Policy, Rule, make
from bitsweep.spec import QuantSpec
from bitsweep.transforms._channels import channels
from bitsweep.transforms._folding import check_unchanged, sample_logits
from bitsweep.transforms._hadamard import hadamard, hadamard_orders, random_rotation
from bitsweep.transforms._residual import find
from bitsweep.transforms.rotate import Rotate

POST_NORM = {"gemma2", "gemma3", "glm4", "olmo2", "opt_post_norm"}
TOKENS = torch.arange(64).view(2, 32)
NONE: Any = None
"""Of the calibration, at which a rotation does not look."""


@functools.cache
def load(name: str, folder: Path) -> Model:
    return tiny.load(name, folder)


def logits(model: Model) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.module(TOKENS, use_cache=False).logits
    return out


def moved(model: Model, became: Model) -> float:
    """How far the logits moved, as a share of their range."""
    before, after = logits(model), logits(became)
    return float((after - before).abs().max() / (before.max() - before.min()))


@pytest.mark.parametrize("name", [n for n in tiny.ARCHITECTURES if n not in POST_NORM])
def test_full_precision_is_unchanged_to_1e_4_of_the_logits_range(name: str, folder: Path) -> None:
    model = load(name, folder)
    became = Rotate()(model.copy(), NONE)
    assert moved(model, became) <= 1e-4
    for layer in model.layers.values():  # all that touch the stream are others now
        if layer.role not in ("ffn.down", "attention.out"):
            assert not torch.equal(became.weight(layer.name), model.weight(layer.name))


@pytest.mark.parametrize("name", sorted(POST_NORM))
def test_post_norm_blocks_are_refused(name: str, folder: Path) -> None:
    bare = models.skeleton(tiny.source(name, folder), Artifacts(None))
    assert "post-norm blocks" in (Rotate().skip(bare) or "")


def test_norms_that_add_one_to_their_weight_are_folded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny.ARCHITECTURES, "gemma", ("gemma", tiny.ARCHITECTURES["llama"][1]))
    model = tiny.load("gemma", folder)
    norm = model.get("model.norm")
    assert norm_kind(norm) == NormKind(centres=False, offset=1.0, eps=1e-6)
    became = Rotate()(model.copy(), NONE)
    assert moved(model, became) <= 1e-4
    assert not became.get("model.norm").get_parameter("weight").any()  # 1 + 0: nothing is left


def test_what_a_norm_computes_is_found_by_trying_it() -> None:
    assert norm_kind(nn.LayerNorm(16, eps=1e-3)) == NormKind(True, 0.0, 1e-3)
    assert norm_kind(nn.RMSNorm(16, eps=1e-5)) == NormKind(False, 0.0, 1e-5)
    assert norm_kind(nn.LayerNorm(16, eps=1e-3, device="meta")) == NormKind(True, 0.0, 1e-3)
    assert norm_kind(nn.GroupNorm(4, 16)) is None


def rectify(model: Model) -> Model:
    """``model`` with a ReLU on the residual stream in front of its last block."""
    model.get(model.blocks[-1]).register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0].relu(), *args[1:]), kwargs), with_kwargs=True
    )
    return model


def test_a_stream_that_is_more_than_a_sum_is_refused(folder: Path) -> None:
    model = load("llama", folder)
    bare = rectify(models.skeleton(model.source, Artifacts(None)).copy())
    assert "the residual stream is more than a sum" in (Rotate().skip(bare) or "")


def test_what_the_trace_missed_shows_in_the_logits(folder: Path) -> None:
    model = rectify(load("llama", folder).copy())  # hooks are not traced where there are weights
    with pytest.raises(RuntimeError, match=r"transforms=\[rotate\]: moved the full-precision"):
        Rotate()(model, NONE)


def test_a_head_is_untied_and_both_matrices_are_counted(folder: Path) -> None:
    model = load("llama_tied", folder)
    became = Rotate()(model.copy(), NONE)
    assert (model.tied, became.tied) == (True, False)
    head, embedding = model.get("lm_head").weight, model.get("model.embed_tokens").weight
    assert head is embedding
    assert became.parameters == model.parameters + head.numel()
    bare = models.skeleton(model.source, Artifacts(None)).copy()
    Rotate().reshape(bare)
    assert bare.parameters == became.parameters


def test_layer_norms_become_rms_norms_of_weight_one_and_their_bias_moves_on(folder: Path) -> None:
    model = load("gpt2", folder)
    became = Rotate()(model.copy(), NONE)
    norm = became.get("transformer.h.0.ln_1")
    assert isinstance(norm, nn.RMSNorm)
    assert norm.eps == model.get("transformer.h.0.ln_1").eps
    assert torch.equal(norm.weight, torch.ones(128))
    assert model.get("lm_head").bias is None
    assert became.get("lm_head").bias.shape == (tiny.VOCABULARY,)
    table = model.weight("transformer.wte")
    lengths = (table - table.mean(1, keepdim=True)).norm(dim=1)  # without its mean, then rotated
    torch.testing.assert_close(became.weight("transformer.wte").norm(dim=1), lengths)


def test_heads_leave_the_stream_and_rotate_value_and_out(folder: Path) -> None:
    model = load("llama", folder)
    plain = Rotate(heads=False)(model.copy(), NONE)
    both = Rotate()(model.copy(), NONE)
    for name in model.layers:
        same = torch.equal(plain.weight(name), both.weight(name))
        assert same == (not name.endswith(("v_proj", "o_proj")))
    # within each of the 4 heads of 32 channels, a row of W_o keeps its length
    rows = [m.weight("model.layers.1.self_attn.o_proj").view(128, 4, 32) for m in (plain, both)]
    torch.testing.assert_close(rows[0].norm(dim=-1), rows[1].norm(dim=-1))


@pytest.mark.parametrize("name", ["gpt2", "phi3", "gpt_neox", "bloom"])
def test_heads_of_a_fused_query_key_value_are_found(name: str, folder: Path) -> None:
    model = load(name, folder)
    outs = [layer for layer in model.layers.values() if layer.role == "attention.out"]
    plain, both = (Rotate(heads=heads)(model.copy(), NONE) for heads in (False, True))
    for layer in outs:
        assert not torch.equal(plain.weight(layer.name), both.weight(layer.name))


def test_channels_are_followed_to_their_source(folder: Path) -> None:
    model = load("phi3", folder)  # 4 heads of 32 over 2 of the value, all in one; gate and up
    block = "model.layers.0."
    found = channels(model, [f"{block}self_attn.qkv_proj", f"{block}mlp.gate_up_proj"])
    value = torch.arange(64).view(2, 32) + 128 + 64  # behind 128 of query and 64 of key
    repeated = value.repeat_interleave(2, dim=0).flatten()
    assert torch.equal(found[f"{block}self_attn.o_proj"], repeated)
    assert torch.equal(found[f"{block}mlp.down_proj"], torch.arange(256) + 256)  # the second half


def test_a_hadamard_rotation_spreads_one_outlier_over_all_channels() -> None:
    rotation = random_rotation(96, "hadamard", torch.Generator().manual_seed(0))
    spread = rotation(torch.eye(96, dtype=torch.float64))
    torch.testing.assert_close(spread.abs(), torch.full((96, 96), 96**-0.5, dtype=torch.float64))
    torch.testing.assert_close(spread @ spread.T, torch.eye(96, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 24, 28, 36, 44, 60, 64, 76, 108])
def test_rows_of_a_hadamard_matrix_are_orthogonal_signs(n: int) -> None:
    h = hadamard(n)
    assert h.shape == (n, n)
    assert torch.equal(h.abs(), torch.ones_like(h))
    assert torch.equal(h @ h.T, n * torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("n", [64, 128, 192, 256, 288, 576, 768, 896, 960, 1536, 2560, 4096, 5120])
def test_the_widths_of_real_models_have_one(n: int) -> None:
    orders = hadamard_orders(n)
    assert orders is not None
    assert math.prod(orders) == n


@pytest.mark.parametrize(("n", "matrix"), [(70, "hadamard"), (64, "orthogonal")])
def test_any_width_has_a_random_orthogonal_matrix(n: int, matrix: str) -> None:
    if matrix == "hadamard":
        assert hadamard_orders(n) is None
    rotation = random_rotation(n, matrix, torch.Generator().manual_seed(0))
    r = rotation(torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(r @ r.T, torch.eye(n, dtype=torch.float64))
    assert r.abs().unique().numel() > n


def test_an_orthogonal_matrix_keeps_the_function_too(folder: Path) -> None:
    model = load("qwen3", folder)
    assert moved(model, Rotate(matrix="orthogonal")(model.copy(), NONE)) <= 1e-4


def test_weights_of_sixteen_bits_stay_so_and_the_logits_near(folder: Path) -> None:
    model = tiny.load("llama", folder / "half", dtype="bfloat16")
    became = Rotate()(model.copy(), NONE)
    assert {p.dtype for p in became.module.parameters()} == {torch.bfloat16}
    assert moved(model, became) < 0.05


def test_rotation_after_prune_is_refused(folder: Path) -> None:
    model = load("llama", folder).copy()
    model.transformed = ("prune",)
    assert "put rotate before prune" in (Rotate().skip(model) or "")
    model.transformed, model.masks = (), {"model.layers.0.mlp.up_proj": torch.ones(256, 128) > 0}
    with pytest.raises(Refused, match="put rotate before prune"):
        Rotate()(model, NONE)


def test_the_stream_is_what_embeddings_and_out_layers_write(folder: Path) -> None:
    stream = find(load("gpt2", folder))
    assert stream.writers[:2] == ("transformer.wte", "transformer.wpe")
    assert stream.writers[2:] == tuple(
        f"transformer.h.{i}.{name}.c_proj" for i in range(2) for name in ("attn", "mlp")
    )
    assert stream.norms["transformer.ln_f"] == ("lm_head",)
    assert stream.norms["transformer.h.1.ln_2"] == ("transformer.h.1.mlp.c_fc",)
    assert (stream.width, stream.centred, stream.direct) == (128, True, ())


def test_gptq_runs_on_what_a_rotation_leaves(folder: Path) -> None:
    model = load("gpt2", folder)
    (folder / "text.txt").write_text("a cat sat on a mat. " * 60)
    spec = CalibrationSpec(TextSource("cat", str(folder / "text.txt")), windows=8, window=32)
    became = Rotate()(model.copy(), NONE)
    plan = make(Policy("all", (Rule(),)), became, QuantSpec(8, 32))
    calibration = Calibration(became.copy(), spec, Artifacts(None))
    result = GPTQ()(became, plan, calibration)
    assert moved(model, result) < 0.05


def test_a_moved_function_is_never_kept(folder: Path) -> None:
    model = load("llama", folder).copy()
    before = sample_logits(model)
    norm = model.get("model.norm")
    norm.weight = nn.Parameter(norm.weight * 1.01, requires_grad=False)
    with pytest.raises(RuntimeError, match="leave it out for this model"):
        check_unchanged(model, before, "rotate")


def test_an_unknown_matrix_is_refused() -> None:
    with pytest.raises(UserError, match=r"matrix=dct: use hadamard or orthogonal"):
        Rotate(matrix="dct")
