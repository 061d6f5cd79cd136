"""Codebooks: optimal clusters of one weight, vectors below one bit, and what they take."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.errors import UserError
from bitsweep.formats.codebook import _spread, scalar_clusters
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, QuantSpec
from bitsweep.tensor import QuantTensor


def weights(out_features: int = 16, in_features: int = 96) -> Tensor:
    return 0.1 * torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0))


def error(weight: Tensor, spec: QuantSpec) -> float:
    return float((QuantTensor.quantize(weight, spec).dequantize() - weight).square().sum())


def codebook(bits: float, group_size: int = PER_CHANNEL, vector: int = 1) -> QuantSpec:
    name = "codebook" if vector == 1 else f"vector{vector}"
    return QuantSpec(bits, group_size, format=name, scale_dtype="float32")


def least_error(row: list[float], counts: list[float], entries: int) -> float:
    """Of every way to cut the sorted ``row`` into intervals, by trying them all."""
    pairs = sorted(zip(row, counts, strict=True))
    best = float("inf")
    for inner in itertools.combinations(range(1, len(pairs)), entries - 1):
        total = 0.0
        for start, stop in itertools.pairwise((0, *inner, len(pairs))):
            part = pairs[start:stop]
            mean = sum(x * h for x, h in part) / sum(h for _, h in part)
            total += sum(h * (x - mean) ** 2 for x, h in part)
        best = min(best, total)
    return best


@pytest.mark.parametrize("weighted", [False, True])
def test_entries_of_a_small_group_are_the_best_there_are(weighted: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(5, 12, generator=draw)
    counts = torch.rand(5, 12, generator=draw) + 0.1 if weighted else torch.ones(5, 12)
    found = scalar_clusters(rows, counts, 4)
    errors = (rows.unsqueeze(2) - found.unsqueeze(1)).square().amin(2).mul(counts).sum(1)
    for row, count, ours in zip(rows, counts, errors, strict=True):
        assert float(ours) == pytest.approx(least_error(row.tolist(), count.tolist(), 4), rel=1e-5)


def test_four_entries_of_a_gaussian_are_those_of_lloyd_and_max() -> None:
    # Max, 1960: 2 bits, entries +-0.4528 and +-1.510, mean squared error 0.1175
    spec = codebook(2, PER_TENSOR)
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    entries = QuantTensor.quantize(weight, spec).params["codebook"].flatten()
    expected = torch.tensor([-1.510, -0.4528, 0.4528, 1.510])
    torch.testing.assert_close(entries, expected, atol=0.03, rtol=0)
    assert error(weight, spec) / weight.numel() == pytest.approx(0.1175, rel=0.02)


def test_as_many_entries_as_weights_lose_nothing() -> None:
    assert error(weights(16, 16), codebook(4)) == 0


@pytest.mark.parametrize("vector", [1, 2, 4, 8])
@pytest.mark.parametrize("group_size", [PER_TENSOR, PER_CHANNEL, 48])
def test_more_bits_less_error_below_one_bit_too(vector: int, group_size: int) -> None:
    specs = [codebook(width / vector, group_size, vector) for width in range(1, 6)]
    errors = [error(weights(), spec) for spec in specs]
    assert errors == sorted(errors, reverse=True)


def test_vectors_beat_single_weights_at_equal_bits() -> None:
    weight = weights(64, 256)
    errors = [error(weight, codebook(1, PER_TENSOR, vector)) for vector in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)


def test_a_weight_without_importance_moves_no_entry() -> None:
    weight = weights(4, 64)
    counts = torch.ones(4, 64)
    weight[:, ::2], counts[:, ::2] = 9.0, 0.0
    ours = formats.fit(weight, codebook(2), counts)["codebook"]
    alone = formats.fit(weight[:, 1::2], codebook(2))["codebook"]
    torch.testing.assert_close(ours, alone)


@pytest.mark.parametrize("vector", [1, 4])
def test_the_seed_of_the_process_changes_nothing(vector: int) -> None:
    spec = codebook(1, PER_TENSOR, vector)
    first = QuantTensor.quantize(weights(), spec)
    torch.rand(3)
    assert torch.equal(first.codes, QuantTensor.quantize(weights(), spec).codes)


def test_every_entry_is_counted() -> None:
    # 16 rows of 96 / 4 = 24 codes of 2 bits; 16 codebooks of 4 entries of 4 float16
    sizes = QuantTensor.quantize(weights(), QuantSpec(0.5, format="vector4")).nbytes()
    assert sizes == {"codes": 16 * 24 * 2 // 8, "codebook": 16 * 4 * 4 * 2}


def test_a_short_last_group_has_a_codebook_of_its_own() -> None:
    spec = replace(codebook(1, 64, 2), ragged=True)
    quant = QuantTensor.quantize(weights(), spec)
    tail = formats.fit(weights()[:, 64:], codebook(1, PER_CHANNEL, 2))["codebook"]
    torch.testing.assert_close(quant.params["codebook"][:, 1:], tail)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (QuantSpec(9, 0, format="codebook"), "bits=9: format=codebook has 1 to 8 bits"),
        (QuantSpec(3, 0, format="vector4"), "bits=3: format=vector4 has 0.25 to 2 bits in steps"),
        (QuantSpec(0.3, 0, format="vector4"), "bits=0.3: format=vector4 has 0.25 to 2 bits"),
        (QuantSpec(1, 6, format="vector4"), "group_size=6: format=vector4 needs a multiple of 4"),
        (QuantSpec(8, 64, format="codebook"), "takes 64 bits a weight; try group_size=0"),
        (QuantSpec(4, 0, True, "codebook"), "symmetric=true: a codebook has no zero-point"),
        (QuantSpec(4, 0, format="codebook", scale_dtype="power_of_two"), "scale_dtype=power_of"),
        (QuantSpec(4, -2, format="codebook"), "group_size=-2"),
    ],
)
def test_a_codebook_refuses_what_it_is_not(spec: QuantSpec, reason: str) -> None:
    assert reason in (formats.get(spec.format).skip(spec) or "")


def test_weights_beyond_float16_say_what_to_do() -> None:
    with pytest.raises(UserError, match=r"scale_dtype=float16: .*; try scale_dtype=float32"):
        QuantTensor.quantize(weights() * 1e7, QuantSpec(4, format="codebook"))


def test_centers_of_vectors_begin_where_there_is_error() -> None:
    points = torch.zeros(1, 1000, 2)
    points[0, 17] = 100  # all others have none once one of them is a center
    centers = _spread(points, torch.ones_like(points), 2)
    assert sorted(centers[0, :, 0].tolist()) == [0.0, 100.0]
