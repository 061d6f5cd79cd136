"""Fold: a factor moved from a layer into its readers changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from bitsweep.models import Model
from bitsweep.models.fold import edges, factors_since, fold


@pytest.mark.parametrize(
    "name", ["llama", "llama_tied", "gemma2", "gemma3", "gpt2", "opt", "gpt_neox", "falcon", "glm"]
)
def test_logits_stay_and_no_tensor_of_another_copy_is_written(name: str, tmp_path: Path) -> None:
    model = tiny.load(name, tmp_path)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    folded = model.copy()
    generator = torch.Generator().manual_seed(0)
    found = edges(folded)
    assert found
    for source, readers in found.items():
        channels = folded.layers[readers[0]].shape[1]
        fold(folded, source, torch.rand(channels, generator=generator) + 0.5)
        moved = folded.get(source).weight
        assert not torch.equal(moved, model.get(source).weight)
    ids = torch.arange(48).view(2, 24)
    with torch.no_grad():
        one, two = model.module(ids).logits, folded.module(ids).logits
    assert float((one - two).abs().max()) < 1e-4 * float(one.max() - one.min())
    after = model.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_what_has_other_channels_or_is_tied_is_left_out(tmp_path: Path) -> None:
    grouped = edges(tiny.load("llama_tied", tmp_path))
    # two heads of values serve four of queries: no factor per input of o_proj fits them
    assert "model.layers.0.self_attn.v_proj" not in grouped
    assert "model.norm" not in grouped
    assert grouped["model.layers.0.mlp.up_proj"] == ["model.layers.0.mlp.down_proj"]
    assert "model.norm" in edges(tiny.load("llama", tmp_path))
    assert "transformer.h.0.attn.c_attn" not in edges(tiny.load("gpt2", tmp_path))


def test_what_rows_and_columns_were_multiplied_with_is_kept(model: Model) -> None:
    up, down = (f"model.layers.0.mlp.{name}_proj" for name in ("up", "down"))
    folded, factor = model.copy(), torch.linspace(0.5, 2, model.layers[up].shape[0])
    fold(folded, up, factor)
    rows, columns = factors_since(model, folded, up)
    torch.testing.assert_close(rows, 1 / factor)
    assert bool((columns == 1).all())
    rows, columns = factors_since(model, folded, down)
    assert bool((rows == 1).all())
    torch.testing.assert_close(columns, factor)
