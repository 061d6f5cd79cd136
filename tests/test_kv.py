"""The quantized cache: the same numbers in full windows as in decoding, on every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from transformers import DynamicCache

from bitsweep import engines, kv, policies
from bitsweep.activations.quantizer import restored
from bitsweep.models import Model
from bitsweep.spec import Plan, QuantSpec

OWN_ATTENTION = {"bloom", "falcon", "gptj", "mpt"}
"""Architectures that do not ask transformers' registry for their attention function."""

THROUGH_REGISTRY = sorted(set(tiny.ARCHITECTURES) - OWN_ATTENTION)
IDS = torch.arange(40, 64).view(2, 12)


def with_cache(model: Model, bits: float, group_size: int = -1) -> Model:
    plan = Plan(kv=QuantSpec(bits, group_size))
    assert kv.skip(plan, model) is None
    done = model.copy()
    kv.install(done, plan)
    policies.audit(done, plan)
    return done


@torch.no_grad()
def logits(model: Model) -> Tensor:
    return model.module(IDS, use_cache=False).logits


@torch.no_grad()
def decoded(model: Model, prompt: int = 3) -> Tensor:
    """The same logits from a prompt and then one token at a time."""
    cache = DynamicCache(config=model.module.config)
    pieces = [IDS[:, :prompt], *IDS[:, prompt:].split(1, dim=1)]
    steps = [model.module(p, past_key_values=cache, use_cache=True).logits for p in pieces]
    return torch.cat(steps, dim=1)


@pytest.mark.parametrize("name", THROUGH_REGISTRY)
def test_decoding_with_the_cache_sees_what_a_full_window_sees(name: str, folder: Path) -> None:
    source = tiny.load(name, folder)
    done = with_cache(source, 4)
    full, before = logits(done), logits(source)
    scale = float(before.std())
    assert float((full - before).abs().max()) > 0.01 * scale  # it is quantized at all
    torch.testing.assert_close(decoded(done), full, atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("name", THROUGH_REGISTRY)
def test_attention_is_otherwise_the_model_s_own(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.load(name, folder)
    done = with_cache(source, 8)
    monkeypatch.setattr(kv.KVQuantizer, "forward", lambda self, x: x)
    assert torch.equal(logits(done), logits(source))


@pytest.mark.parametrize("name", sorted(OWN_ATTENTION))
def test_an_attention_that_cannot_be_reached_is_refused(name: str, folder: Path) -> None:
    reason = kv.skip(Plan(kv=QuantSpec(4)), tiny.load(name, folder))
    assert reason is not None
    assert reason.startswith("kv.bits=4: ")
    assert reason.endswith("only kv.bits=16 can be measured")


def test_each_head_of_each_token_is_quantized_once_after_rotation(model: Model) -> None:
    done, seen = with_cache(model, 4), {}
    attention = done.get("model.layers.0.self_attn")

    def watch(module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        seen.setdefault("in", []).append(args[0])
        seen.setdefault("out", []).append(output)

    attention.kv_quantizer.register_forward_hook(watch)  # type: ignore[union-attr,operator]
    cache = DynamicCache(config=done.module.config)
    with torch.no_grad():
        done.module(IDS, past_key_values=cache, use_cache=True)
    keys, values = seen["in"]
    assert keys.shape == (2, 2, 12, 32)  # 2 windows, 2 heads of keys, 12 tokens, 32 numbers
    assert torch.equal(keys, cache.layers[0].keys)
    assert torch.equal(values, cache.layers[0].values)
    by_hand = restored(keys.reshape(-1, 32), QuantSpec(4))
    assert torch.equal(seen["out"][0].reshape(-1, 32), by_hand)


def test_more_bits_less_change(model: Model) -> None:
    before = logits(model)
    moved = [float((logits(with_cache(model, b)) - before).square().sum()) for b in (2, 4, 8)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < moved[0] / 1000


def test_groups_along_the_head_have_ranges_of_their_own(model: Model) -> None:
    before = logits(model)
    moved = [
        float((logits(with_cache(model, 4, size)) - before).square().sum()) for size in (-1, 8)
    ]
    assert moved[1] < moved[0]


def test_the_source_keeps_its_own_attention(model: Model) -> None:
    before, name = logits(model), model.module.config._attn_implementation
    done = with_cache(model, 2)
    assert model.module.config._attn_implementation == name
    assert done.module.config._attn_implementation == kv.PREFIX + name
    assert torch.equal(logits(model), before)
    assert not kv.installed(model)


def test_a_copy_of_a_model_with_a_quantized_cache_has_one_too(model: Model) -> None:
    done = with_cache(model, 2)
    assert torch.equal(logits(done.copy()), logits(done))


def test_a_cache_that_was_forgotten_fails_the_audit(model: Model) -> None:
    plan = Plan(kv=QuantSpec(4))
    with pytest.raises(RuntimeError, match=r"self_attn has a cache of full precision, .* w4"):
        policies.audit(model.copy(), plan)
    with pytest.raises(RuntimeError, match="self_attn has a cache of w4, the plan says None"):
        policies.audit(with_cache(model, 4), Plan())


def test_no_engine_times_a_quantized_cache(model: Model) -> None:
    engine, reason = engines.choose("auto", with_cache(model, 4))
    assert engine is None
    assert reason == engines.CACHE


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (QuantSpec(1), r"kv.bits=1: format=int has 2"),
        (QuantSpec(4, 24), r"kv.group_size=24 does not divide the head of 32 numbers"),
        (QuantSpec(4, format="power"), r"kv.format=power: is fitted to a whole tensor"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_key_to_change(
    model: Model, spec: QuantSpec, reason: str
) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(kv.skip(Plan(kv=spec), model))
