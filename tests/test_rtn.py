"""RTN: clipping by squared error."""

from __future__ import annotations

import pytest
import torch

from bitsweep import formats
from bitsweep.errors import UserError
from bitsweep.methods.rtn import RTN, SHRINKS, fit_clipped, quantize_clipped
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor


def test_an_outlier_is_clipped_when_that_helps_the_rest() -> None:
    # symmetric 2 bits: codes -2 .. 1. At full range the scale is 2 * 3 / 3 = 2: 1 rounds to 0 (half
    # to even), -3 to -4; squared error 15 + 1. At scale s < 2, 1 becomes s and -3 becomes -2 s:
    # 15 (1 - s)^2 + (3 - 2 s)^2, least at s = 21 / 19 = 1.105; of the grid 2 * k, 1.12 is nearest.
    weight = torch.tensor([[1.0] * 15 + [-3.0]])
    spec = QuantSpec(2, -1, True, scale_dtype="float32")
    plain, clipped = QuantTensor.quantize(weight, spec), quantize_clipped(weight, spec)
    assert plain.dequantize()[0, 0] == 0
    assert clipped.dequantize()[0, 0] == pytest.approx(1.12)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_group_has_more_error_than_without_clipping(bits: int, symmetric: bool) -> None:
    groups = torch.randn(16, 4, 32, generator=torch.Generator().manual_seed(0))
    spec, family = QuantSpec(bits, 32, symmetric), formats.get("int")

    def error(params: dict[str, torch.Tensor]) -> torch.Tensor:
        codes = family.quantize(groups, params, spec)
        return (family.dequantize(codes, params, spec) - groups).square().sum(-1)

    assert bool(
        (error(fit_clipped(family, groups, spec, {})) <= error(family.fit(groups, spec))).all()
    )


def test_the_search_covers_what_its_page_says() -> None:
    assert (SHRINKS[0], SHRINKS[1], SHRINKS[-1], len(SHRINKS)) == (1.0, 0.98, 0.3, 36)


def test_an_unknown_clip_names_the_choices() -> None:
    with pytest.raises(UserError, match=r"method.clip=max: use none or mse"):
        RTN("max")
