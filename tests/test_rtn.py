"""RTN: clipping by squared error."""

from __future__ import annotations

import pytest
import torch

from bitsweep import formats
from bitsweep.errors import UserError
from bitsweep.methods.rtn import (
    RTN,
    SHRINKS,
    draw,
    fit_clipped,
    quantize_stochastic,
)
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor


def test_an_outlier_is_clipped_when_that_helps_the_rest() -> None:
    # symmetric 2 bits: codes -2 .. 1. At full range the scale is 2 * 3 / 3 = 2: 1 rounds to 0 (half
    # to even), -3 to -4; squared error 15 + 1. At scale s < 2, 1 becomes s and -3 becomes -2 s:
    # 15 (1 - s)^2 + (3 - 2 s)^2, least at s = 21 / 19 = 1.105; of the grid 2 * k, 1.12 is nearest.
    weight = torch.tensor([[1.0] * 15 + [-3.0]])
    spec = QuantSpec(2, -1, True, scale_dtype="float32")
    plain, clipped = QuantTensor.quantize(weight, spec), RTN(clip="mse").rows(weight, spec)
    assert plain.dequantize()[0, 0] == 0
    assert clipped.dequantize()[0, 0] == pytest.approx(1.12)


GRIDS = [
    *(QuantSpec(bits, 32, symmetric) for bits in (2, 3, 4, 8) for symmetric in (False, True)),
    *(QuantSpec(2, 32, format=name) for name in ("codebook", "vector2", "log")),
]


@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_no_group_has_more_error_than_without_clipping(spec: QuantSpec) -> None:
    groups = torch.randn(16, 4, 32, generator=torch.Generator().manual_seed(0))
    family = formats.get(spec.format)

    def error(params: dict[str, torch.Tensor]) -> torch.Tensor:
        codes = family.quantize(groups, params, spec)
        return (family.dequantize(codes, params, spec) - groups).square().sum(-1)

    assert bool(
        (error(fit_clipped(family, groups, spec, {})) <= error(family.fit(groups, spec))).all()
    )


def test_each_group_has_the_best_of_all_factors() -> None:
    groups, spec = torch.randn(16, 4, 32, generator=torch.Generator().manual_seed(0)), GRIDS[2]
    family = formats.get(spec.format)

    def scales(shrink: float) -> dict[str, torch.Tensor]:
        return family.fit(shrink * groups, spec)

    def error(params: dict[str, torch.Tensor]) -> torch.Tensor:
        codes = family.quantize(groups, params, spec)
        return (family.dequantize(codes, params, spec) - groups).square().sum(-1)

    least = torch.stack([error(scales(percent / 100)) for percent in range(100, 28, -2)]).amin(0)
    assert torch.equal(error(fit_clipped(family, groups, spec, {})), least)


def test_the_search_covers_what_its_page_says() -> None:
    assert (SHRINKS[0], SHRINKS[1], SHRINKS[-1], len(SHRINKS)) == (1.0, 0.98, 0.3, 36)


def test_an_unknown_clip_names_the_choices() -> None:
    with pytest.raises(UserError, match=r"method.clip=max: use none or mse"):
        RTN("max")


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("spec", [QuantSpec(2, 16), QuantSpec(3, 16, True), QuantSpec(4, 0)])
def test_stochastic_rounding_is_right_on_average_and_never_off_by_a_step(spec: QuantSpec) -> None:
    weight = torch.randn(4, 32, generator=dice())
    params = formats.fit(weight, spec)
    step = params["scale"].float().repeat_interleave(weight.numel() // params["scale"].numel())
    step = step.view(weight.shape)
    ends = [
        torch.full(weight.shape, code, dtype=torch.uint8) for code in (0, 2 ** int(spec.bits) - 1)
    ]
    low, high = (QuantTensor(codes, params, spec).dequantize() for codes in ends)
    inside = (low <= weight) & (weight <= high)
    assert float(inside.float().mean()) > 0.8
    draws = torch.stack(
        [quantize_stochastic(weight, spec, params, dice(i)).dequantize() for i in range(2000)]
    )
    assert bool(((draws - weight).abs() < step)[:, inside].all())
    # a draw varies by half a step at most: a mean of 2000 by 0.0112 steps, times 4.5
    assert bool(((draws.mean(0) - weight).abs() < 0.05 * step)[inside].all())


def test_the_chance_is_the_share_of_the_step_that_lies_below() -> None:
    # scale 1, codes 0 .. 3 with zero 1 stand for -1, 0, 1, 2
    params = {"scale": torch.ones(1, 1), "zero": torch.ones(1, 1, dtype=torch.uint8)}
    groups = (
        torch.tensor([-1.0, -0.75, 0.5, 1.0, 2.0, 2.6, -7.0]).repeat(4000, 1).T.reshape(1, 1, -1)
    )
    codes = draw(groups, params, QuantSpec(2, -1), dice()).view(7, 4000).float()
    expected = torch.tensor([0.0, 0.25, 1.5, 2.0, 3.0, 3.0, 0.0])
    torch.testing.assert_close(codes.mean(1), expected, rtol=0, atol=0.03)  # 4 / (2 sqrt(4000))
    assert bool((codes[[0, 3, 4, 5, 6]] == expected[[0, 3, 4, 5, 6], None]).all())


def test_what_lies_on_the_grid_stays() -> None:
    spec = QuantSpec(4, 16)
    rounded = QuantTensor.quantize(torch.randn(8, 32, generator=dice()), spec)
    again = quantize_stochastic(rounded.dequantize(), spec, rounded.params, dice(1))
    assert torch.equal(again.codes, rounded.codes)


def test_the_seed_counts_only_where_chance_is_asked() -> None:
    assert "seed" in RTN().ignores
    assert "seed" not in RTN(rounding="stochastic").ignores
    weight, spec = torch.randn(8, 32, generator=dice()), QuantSpec(4, 16)
    one, two, three = (
        quantize_stochastic(weight, spec, formats.fit(weight, spec), dice(seed)).codes
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_twice_the_squared_error_of_rounding_to_nearest() -> None:
    # w uniform within a step: nearest costs 1/12, stochastic E[t (1 - t)] = 1/6
    weight, spec = torch.rand(256, 64, generator=dice()), QuantSpec(4, 64, scale_dtype="float32")
    params = formats.fit(weight, spec)
    nearest = (QuantTensor.quantize(weight, spec, params).dequantize() - weight).square().mean()
    chance = quantize_stochastic(weight, spec, params, dice(1)).dequantize() - weight
    assert float(chance.square().mean() / nearest) == pytest.approx(2, rel=0.05)


def test_an_unknown_rounding_names_the_choices() -> None:
    with pytest.raises(UserError, match=r"method.rounding=up: use nearest or stochastic"):
        RTN(rounding="up")
