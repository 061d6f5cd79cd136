"""SmoothQuant: equation 4 on the page, the function unchanged on every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.errors import UserError
from bitsweep.models import Model
from bitsweep.transforms.rotate import Rotate
from bitsweep.transforms.smooth import SAMPLE, AbsMaxAndSample, Smooth, _rounded

UNREACHED = {"olmo2", "opt_post_norm"}
"""No norm of theirs feeds a layer without its output being used elsewhere as well."""

NORM = "model.layers.0.input_layernorm"
QKV = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]


@pytest.fixture(scope="module")
def spec(folder: Path) -> CalibrationSpec:
    return tiny.letters(folder, 4096, windows=4, window=64)


def smoothed(model: Model, spec: CalibrationSpec, step: Smooth) -> Model:
    return step(model.copy(), Calibration(model, spec, Artifacts(None)))


def moved(model: Model, became: Model) -> float:
    """How far the logits moved, as a share of their range."""
    ids = torch.arange(64).view(2, 32)
    with torch.no_grad():
        before = model.module(ids, use_cache=False).logits
        after = became.module(ids, use_cache=False).logits
    return float((after - before).abs().max() / (before.max() - before.min()))


def inputs_of(model: Model, name: str, spec: CalibrationSpec) -> Tensor:
    """What the layer sees on the calibration text, ``(tokens, in)``."""
    seen: list[Tensor] = []
    hook = model.get(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokens = Calibration(model, spec, Artifacts(None)).tokens
    with torch.no_grad():
        model.module(tokens, use_cache=False)
    hook.remove()
    return torch.cat(seen).flatten(0, -2)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_full_precision_is_unchanged_to_1e_4_of_the_logits_range(
    name: str, folder: Path, spec: CalibrationSpec
) -> None:
    model = tiny.load(name, folder)
    became = smoothed(model, spec, Smooth(sources="all"))
    assert moved(model, became) <= 1e-4
    fed = {layer.name for layer in model.layers.values() if layer.block is not None}
    fed -= {layer.name for layer in model.layers.values() if layer.source is None}
    feeding = {model.layers[layer].source for layer in fed}
    for layer in model.layers:
        same = torch.equal(became.weight(layer), model.weight(layer))
        assert same == (layer not in fed | feeding)
    reason = Smooth().skip(model) or ""
    assert ("transforms.smooth.sources=all" in reason) == (name in UNREACHED)


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.8, 1.0])
def test_the_factor_is_equation_4(strength: float, model: Model, spec: CalibrationSpec) -> None:
    x = inputs_of(model, QKV[0], spec).abs().amax(0)
    w = torch.cat([model.weight(name) for name in QKV]).abs().amax(0)
    s = x**strength / w ** (1 - strength)
    became = smoothed(model, spec, Smooth(strength))
    for name in QKV:
        torch.testing.assert_close(became.weight(name), model.weight(name) * s)
    before = model.get(NORM).get_parameter("weight")
    torch.testing.assert_close(became.get(NORM).get_parameter("weight"), before / s)


def test_half_strength_makes_inputs_and_weights_equally_large(
    model: Model, spec: CalibrationSpec
) -> None:
    became = smoothed(model, spec, Smooth(0.5))
    x = inputs_of(became, QKV[0], spec).abs().amax(0)
    w = torch.cat([became.weight(name) for name in QKV]).abs().amax(0)
    torch.testing.assert_close(x, w, rtol=1e-4, atol=1e-5)


def test_norms_alone_are_sources_unless_all_are_asked(model: Model, spec: CalibrationSpec) -> None:
    for sources, fed in (("norm", False), ("all", True)):
        became = smoothed(model, spec, Smooth(sources=sources))
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            layer = f"model.layers.1.{name}"
            assert torch.equal(became.weight(layer), model.weight(layer)) is not fed
    assert torch.equal(became.weight("lm_head"), model.weight("lm_head"))


def test_repeated_heads_share_the_largest_of_their_channels(
    model: Model, spec: CalibrationSpec
) -> None:
    value, out = "model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj"
    became = smoothed(model, spec, Smooth(0.5, sources="all"))
    x = inputs_of(model, out, spec).abs().amax(0).view(2, 2, 32).amax(1)  # 2 heads a value
    w = model.weight(out).abs().amax(0).view(2, 2, 32).amax(1)
    s = (x / w).sqrt()
    repeated = s.repeat_interleave(2, dim=0).flatten()
    torch.testing.assert_close(became.weight(out), model.weight(out) * repeated)
    first = (became.weight(value) / model.weight(value)).view(2, 32, 128)  # and of norm -> value
    ratio = first / first[:1, :1]
    torch.testing.assert_close(
        ratio, (s[0, 0] / s).unsqueeze(-1).expand_as(ratio), rtol=1e-3, atol=0
    )


def with_outlier(model: Model) -> Model:
    """The same model, one channel of whose first norm is 50 times as large."""
    loud = model.copy()
    weight = loud.get(NORM).get_parameter("weight").clone()
    weight[7] *= 50
    loud.get(NORM).weight = nn.Parameter(weight, requires_grad=False)
    return loud


def rounding_error(model: Model, spec: CalibrationSpec) -> float:
    """Of query, key and value with weights and inputs in 8 bits, each relative to its size."""
    total = 0.0
    for name in QKV:
        x, w = inputs_of(model, name, spec), model.weight(name)
        exact = x @ w.T
        total += float((_rounded(x, 8) @ _rounded(w, 8).T - exact).square().sum())
        total /= float(exact.square().sum())
    return total


def test_smoothing_lowers_the_error_that_an_outlier_causes(
    model: Model, spec: CalibrationSpec
) -> None:
    loud = with_outlier(model)
    error = rounding_error(loud, spec)
    assert rounding_error(smoothed(loud, spec, Smooth(0.5)), spec) < error / 4


def test_a_searched_strength_is_no_worse_than_any_given_one(
    model: Model, spec: CalibrationSpec
) -> None:
    loud = with_outlier(model)
    x = {name: inputs_of(loud, name, spec) for name in QKV}

    def error(became: Model) -> float:
        shares = []
        for name in QKV:
            factor = (became.weight(name) / loud.weight(name))[0]
            exact = x[name] @ loud.weight(name).T
            rounded = _rounded(x[name] / factor, 8) @ _rounded(became.weight(name), 8).T
            shares.append(float((rounded - exact).square().sum() / exact.square().sum()))
        return sum(shares)

    searched = error(smoothed(loud, spec, Smooth("search")))  # 256 tokens: all of them are judged
    given = [error(smoothed(loud, spec, Smooth(a))) for a in (0.25, 0.5, 0.75)]
    assert searched <= min(given) * (1 + 1e-3)
    assert searched <= error(loud)


def test_a_search_without_rounding_leaves_all_as_it_is(model: Model, spec: CalibrationSpec) -> None:
    became = smoothed(model, spec, Smooth("search", weight_bits=16, input_bits=16))
    for name in model.layers:
        torch.testing.assert_close(became.weight(name), model.weight(name), rtol=0, atol=0)


def test_a_rotated_model_can_be_smoothed(folder: Path, spec: CalibrationSpec) -> None:
    model = tiny.load("gpt2", folder)  # its norms have become RMS norms of weight one
    calibration = Calibration(model, spec, Artifacts(None))
    rotated = Rotate()(model.copy(), calibration)
    became = smoothed(rotated, spec, Smooth(sources="all"))
    assert moved(model, became) <= 1e-4
    assert not torch.equal(became.get("transformer.h.0.ln_1").weight, torch.ones(128))


def test_a_dead_channel_keeps_its_scale(model: Model, spec: CalibrationSpec) -> None:
    dead = model.copy()
    weight = dead.get(NORM).get_parameter("weight").clone()
    weight[3] = 0
    dead.get(NORM).weight = nn.Parameter(weight, requires_grad=False)
    became = smoothed(dead, spec, Smooth(0.5))
    for name in QKV:
        assert torch.equal(became.weight(name)[:, 3], dead.weight(name)[:, 3])


def test_a_sample_is_spread_evenly_and_bounded() -> None:
    statistic = AbsMaxAndSample(1, torch.device("cpu"))
    numbers = torch.arange(3000.0).unsqueeze(1)
    for part in numbers.split(7):
        statistic.add(part)
    largest, *rows = statistic.value().flatten().tolist()
    assert largest == 2999
    assert rows == list(range(0, 3000, 8))  # the least power of two with at most 512 tokens
    assert len(rows) <= SAMPLE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": "best"}, r"transforms.smooth.strength=best: use a number from 0 to 1 or se"),
        ({"strength": 1.5}, r"transforms.smooth.strength=1.5: use a number from 0 to 1"),
        ({"sources": "norms"}, r"transforms.smooth.sources=norms: use norm or all"),
        ({"weight_bits": 1}, r"transforms.smooth.weight_bits=1: use 2 to 16"),
        ({"input_bits": 32}, r"transforms.smooth.input_bits=32: use 2 to 16"),
    ],
)
def test_wrong_options_name_their_key(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Smooth(**options)  # type: ignore[arg-type]
