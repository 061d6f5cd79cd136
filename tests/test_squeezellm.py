"""SqueezeLLM: entries go where the layer's output feels them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration
from bitsweep.calibration.statistics import Energy
from bitsweep.errors import UserError
from bitsweep.methods.squeezellm import SqueezeLLM, quantize
from bitsweep.models import Model
from bitsweep.spec import PER_TENSOR, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

W3 = QuantSpec(3, format="codebook")


def layer() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(16, 96, generator=draw), torch.rand(96, generator=draw).pow(4) + 1e-3


def weighted(weight: Tensor, quant: QuantTensor, importance: Tensor) -> float:
    return float(((quant.dequantize() - weight).square() * importance).sum())


@pytest.mark.parametrize("spec", [W3, QuantSpec(1, PER_TENSOR, format="vector4")], ids=str)
def test_the_weighted_error_is_below_that_of_plain_clusters(spec: QuantSpec) -> None:
    weight, energy = layer()
    ours = quantize(weight, spec, energy.expand(weight.shape))
    plain = QuantTensor.quantize(weight, spec)
    assert weighted(weight, ours, energy) < weighted(weight, plain, energy)


def test_equal_importance_gives_the_plain_codebook() -> None:
    weight, _ = layer()
    ours = quantize(weight, W3, torch.ones_like(weight))
    assert torch.equal(ours.dequantize(), QuantTensor.quantize(weight, W3).dequantize())


def test_energy_is_the_diagonal_of_the_hessian() -> None:
    inputs = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    energy = Energy(2, torch.device("cpu"))
    energy.add(inputs[:1])
    energy.add(inputs[1:])
    assert energy.value().tolist() == [5.0, 2.0]  # (1 + 9) / 2, (4 + 0) / 2


def test_in_a_model_kept_weights_count_by_the_energy_of_their_inputs(
    model: Model, tmp_path: Path
) -> None:
    name, spec = "model.layers.1.mlp.down_proj", QuantSpec(2, format="codebook")
    pruned = model.copy()
    mask = pruned.masks[name] = (
        torch.rand(model.weight(name).shape, generator=torch.Generator().manual_seed(0)) > 0.3
    )
    text = tiny.letters(tmp_path, 2048, windows=4, window=32)
    calibration = Calibration(pruned, text, Artifacts(None))
    found = SqueezeLLM()(pruned.copy(), Plan({name: LayerSpec(spec)}), calibration)
    (energy,) = (e for names, e in calibration.full_precision(1, Energy).items() if name in names)
    expected = quantize(model.weight(name), spec, energy * mask)
    assert torch.equal(found.weight(name), expected.masked(mask).dequantize())


def test_formats_without_entries_are_refused() -> None:
    assert "try format=codebook" in (SqueezeLLM().skip(QuantSpec(4, 64)) or "")


def test_an_unknown_prefix_names_the_key() -> None:
    with pytest.raises(UserError, match=r"method.prefix=no: use quantized or full_precision"):
        SqueezeLLM(prefix="no")
