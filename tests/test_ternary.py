"""Ternary: absmean scales, five codes a byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from desk import lay

from bitsweep import config, formats
from bitsweep.compose import compose
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, QuantSpec
from bitsweep.store import Store
from bitsweep.tensor import QuantTensor


def spec(group_size: int = PER_CHANNEL) -> QuantSpec:
    return QuantSpec(1.6, group_size, format="ternary", scale_dtype="float32")


def test_the_scale_is_the_mean_size_and_half_of_it_becomes_0() -> None:
    # (4 + 1 + 1.1 + 1.9) / 4 = 2: scaled 2, -0.5, 0.55, -0.95
    quant = QuantTensor.quantize(torch.tensor([[4.0, -1.0, 1.1, -1.9]]), spec())
    assert quant.params["scale"].tolist() == [[2.0]]
    assert quant.codes.tolist() == [[2, 1, 2, 0]]
    assert quant.dequantize().tolist() == [[2, 0, 2, -2]]


def test_per_tensor_it_is_the_rounding_of_bitnet() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().mean()
    theirs = (weight / (scale + 1e-9)).round().clamp(-1, 1) * scale
    torch.testing.assert_close(QuantTensor.quantize(weight, spec(PER_TENSOR)).dequantize(), theirs)


@pytest.mark.parametrize(("columns", "packed"), [(5, 1), (6, 2), (64, 13)])
def test_five_codes_fill_a_byte(columns: int, packed: int) -> None:
    quant = QuantTensor.quantize(torch.randn(1, columns), spec())
    assert quant.nbytes() == {"codes": packed, "scale": 4}
    assert quant.pack()["codes"].numel() == packed


def test_the_bits_are_said_as_they_are_packed() -> None:
    skip = formats.get("ternary").skip
    for bits in (1.58, 2, 4):
        asked = QuantSpec(bits, 64, format="ternary")
        assert skip(asked) == f"bits={bits:g}: format=ternary has 1.6 bits"
    columns = config.job(compose(["format=ternary", "bits=1.6"])).point.columns()
    assert (columns["bits"], columns["label"]) == (1.6, "rtn ternary1.6g64 uniform")


def test_a_run_counts_fractional_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lay(tmp_path)("run", "format=ternary", "bits=1.6", "group_size=64") == 0
    records = list(Store(tmp_path / "results" / "adhoc").records())
    assert [record.status for record in records] == ["ok"]
    bits = records[0].metrics["bits_per_weight"].value
    # 1.6 bits in rows of 128 or 256: 26 or 52 bytes, and 16 bits for each 64
    assert bits == pytest.approx(1.6 + 16 / 64, abs=0.03)
