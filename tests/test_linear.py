"""Quantized tensors and modules: what they compute, what they weigh, how they move."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitsweep.linear import QuantEmbedding, QuantLinear, quantized
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, QuantSpec
from bitsweep.tensor import QuantTensor

W4 = QuantSpec(4, 16)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        # 6 x 100 codes of 3 bits are 1800 bits; 6 groups of float16; 6 zeros of 3 bits are 18 bits
        (QuantSpec(3, PER_CHANNEL), {"codes": 225, "scale": 12, "zero": 3}),
        # 2400 bits; rows of 64 + 36 weights: 12 scales, no zeros
        (QuantSpec(4, 64, True, ragged=True), {"codes": 300, "scale": 24}),
        (QuantSpec(2, 25, scale_dtype="float32"), {"codes": 150, "scale": 96, "zero": 6}),
        (QuantSpec(8, PER_TENSOR, True, scale_dtype="power_of_two"), {"codes": 600, "scale": 1}),
        (QuantSpec(4, 50, zero="real"), {"codes": 300, "scale": 24, "zero": 24}),
    ],
    ids=str,
)
def test_bytes_are_those_on_the_page(spec: QuantSpec, sizes: dict[str, int]) -> None:
    assert QuantTensor.quantize(random(6, 100), spec).nbytes() == sizes


def test_a_permutation_costs_four_bytes_a_column() -> None:
    codes = QuantTensor.quantize(random(6, 32), W4)
    moved = QuantTensor(codes.codes, codes.params, W4, torch.arange(32))
    assert moved.nbytes()["permutation"] == 4 * 32


def masks() -> dict[str, Tensor]:
    """Of 6 x 32 weights: scattered, 2 rows and 12 columns gone, nothing gone, everything gone."""
    scattered, lines = random(6, 32) > 0, torch.ones(6, 32, dtype=torch.bool)
    lines[[1, 4]], lines[:, 20:] = False, False
    whole = torch.ones(6, 32, dtype=torch.bool)
    return {"scattered": scattered, "lines": lines, "whole": whole, "gone": ~whole}


@pytest.mark.parametrize("kind", ["scattered", "lines", "whole", "gone"])
def test_a_mask_is_stored_in_the_bytes_that_size_counts_and_comes_back(kind: str) -> None:
    mask = masks()[kind]
    quant = QuantTensor.quantize(random(6, 32), W4).masked(mask)
    packed = quant.pack()
    stored = packed["mask" if kind == "scattered" else "mask_lines"]
    # a bit a weight is 192 bits, a bit a row and a column 38
    assert quant.nbytes()["mask"] == stored.nbytes == (24 if kind == "scattered" else 5)
    assert quant.nbytes()["codes"] == packed["codes"].nbytes
    again = QuantTensor.unpack(packed, W4, (6, 32))
    assert again.mask is not None
    assert torch.equal(again.mask, mask)
    assert torch.equal(again.codes, quant.codes)
    assert torch.equal(again.dequantize(), quant.dequantize())


def test_groups_follow_the_permutation() -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    weight = random(6, 32)
    ordered = QuantTensor.quantize(weight[:, order], W4)
    natural = torch.empty_like(ordered.codes).index_copy_(1, order, ordered.codes)
    moved = QuantTensor(natural, ordered.params, W4, order)
    assert torch.equal(moved.dequantize()[:, order], ordered.dequantize())
    again = QuantTensor.unpack(moved.pack(), W4, (6, 32))
    assert torch.equal(again.dequantize(), moved.dequantize())


def test_a_linear_computes_with_the_dequantized_weight() -> None:
    dense = nn.Linear(32, 6)
    module = quantized(QuantTensor.quantize(dense.weight, W4), dense)
    assert isinstance(module, QuantLinear)
    x = random(2, 3, 32)
    assert torch.equal(module(x), F.linear(x, module.quant.dequantize(), dense.bias))
    assert module.bias is dense.bias


def test_a_conv1d_keeps_its_output() -> None:
    dense = Conv1D(6, 32)
    module = quantized(QuantTensor.quantize(dense.weight.T, QuantSpec(8, 16)), dense)
    assert module.weight.shape == (6, 32)
    x = random(2, 3, 32)
    torch.testing.assert_close(module(x), dense(x), atol=0.01, rtol=0)


def test_an_embedding_looks_up_dequantized_rows() -> None:
    dense = nn.Embedding(10, 32, padding_idx=3)
    module = quantized(QuantTensor.quantize(dense.weight, W4), dense)
    assert isinstance(module, QuantEmbedding)
    ids = torch.tensor([[0, 3, 9]])
    assert torch.equal(module(ids), module.quant.dequantize()[ids])
    assert module.padding_idx == 3


def test_an_embedding_keeps_the_factor_on_its_output() -> None:
    dense = nn.Embedding(10, 32)
    dense.register_buffer("embed_scale", torch.tensor(3.0), persistent=False)
    module = quantized(QuantTensor.quantize(dense.weight, W4), dense)
    ids = torch.tensor([4])
    assert torch.equal(module(ids), 3 * module.quant.dequantize()[ids])


def test_changing_the_dtype_leaves_codes_and_scales() -> None:
    dense = nn.Linear(32, 6)
    module = quantized(QuantTensor.quantize(dense.weight, QuantSpec(4, 16, True)), dense)
    before = module.weight
    module.to(torch.bfloat16)
    assert module.quant.params["scale"].dtype == torch.float16
    assert torch.equal(module.weight, before.to(torch.bfloat16))
    assert module.bias.dtype == torch.bfloat16


def test_moving_takes_the_codes_along(device: str) -> None:
    dense = nn.Linear(32, 6)
    module = quantized(QuantTensor.quantize(dense.weight, W4), dense).to(device)
    assert {module.quant.codes.device.type, module.weight.device.type} == {device}


def test_a_dense_weight_made_under_inference_mode_serves_training() -> None:
    dense = nn.Linear(32, 6)
    module = quantized(QuantTensor.quantize(dense.weight, W4), dense)
    with torch.inference_mode():
        module(random(1, 32))
    x = random(1, 32).requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
