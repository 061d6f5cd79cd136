"""Sizes against sums on the page: every byte that is stored, none that is not."""

import pytest
import tiny

from bitsweep.artifacts import Artifacts
from bitsweep.data import Data, Reference
from bitsweep.linear import quantized
from bitsweep.models import ModelSource, load
from bitsweep.probes.size import MIB, Size
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor

VOCABULARY, HIDDEN = tiny.VOCABULARY, 128
BLOCK = 128 * 128 + 2 * 64 * 128 + 128 * 128 + 3 * 128 * 256  # q, k and v, o, gate up down
NORMS = (2 * 2 + 1) * HIDDEN
LINEAR = 2 * BLOCK
EMBEDDING = VOCABULARY * HIDDEN


def sizes(model, full):
    found = Size()(model, Reference(full, Data("d"), Artifacts(None))).metrics
    return {metric.name: metric for metric in found}


def quantize(model, spec, names=None):
    copy = model.copy()
    for name, layer in copy.layers.items():
        if name in names if names is not None else layer.block is not None:
            quant = QuantTensor.quantize(copy.weight(name), spec)
            copy.replace(name, quantized(quant, copy.get(name)))
    return copy


def test_full_precision_counts_by_its_dtype(tmp_path):
    model = tiny.load("llama", tmp_path)
    found = sizes(model, model)
    assert found["file_mib"].value == 4 * (LINEAR + NORMS + 2 * EMBEDDING) / MIB
    assert found["bits_per_weight"].value == 32
    assert found["file_mib"].delta.value == 1


def test_a_tied_pair_counts_once(tmp_path):
    model = tiny.load("llama_tied", tmp_path)
    assert sizes(model, model)["file_mib"].value == 4 * (LINEAR + NORMS + EMBEDDING) / MIB


def test_w4_in_groups_of_64_costs_4_bits_and_a_scale_and_a_zero_a_group(tmp_path):
    model = tiny.load("llama", tmp_path)
    found = sizes(quantize(model, QuantSpec(4, 64)), model)
    assert found["bits_per_weight"].value == 4 + (16 + 4) / 64
    packed = LINEAR * (4 + (16 + 4) / 64) / 8
    untouched = 4 * (NORMS + 2 * EMBEDDING)
    assert found["file_mib"].value == pytest.approx((packed + untouched) / MIB, rel=1e-12)
    assert found["file_mib"].delta.value < 1


def test_a_symmetric_format_stores_no_zeros(tmp_path):
    model = tiny.load("llama", tmp_path)
    found = sizes(quantize(model, QuantSpec(4, 64, symmetric=True)), model)
    assert found["bits_per_weight"].value == 4 + 16 / 64


def test_a_tied_pair_quantized_as_one_tensor_counts_once(tmp_path):
    model = tiny.load("llama_tied", tmp_path)
    copy = model.copy()
    quant = QuantTensor.quantize(copy.weight("lm_head"), QuantSpec(8, 64, symmetric=True))
    for name in ("model.embed_tokens", "lm_head"):
        copy.replace(name, quantized(quant, copy.get(name)))
    expected = EMBEDDING * (8 + 16 / 64) / 8 + 4 * (LINEAR + NORMS)
    assert sizes(copy, model)["file_mib"].value == expected / MIB


def test_computing_a_16_bit_checkpoint_in_float32_does_not_inflate_the_file(tmp_path):
    module = tiny.build("llama").bfloat16()
    module.save_pretrained(tmp_path / "half")
    tiny.tokenizer().save_pretrained(tmp_path / "half")
    model = load(ModelSource("half", str(tmp_path / "half"), dtype="float32"), Artifacts(None))
    found = sizes(model, model)
    assert found["file_mib"].value == 2 * (LINEAR + NORMS + 2 * EMBEDDING) / MIB
    assert found["bits_per_weight"].value == 16
    assert found["resident_mib"].value > 4 * (LINEAR + NORMS + 2 * EMBEDDING) / MIB


def test_rounding_a_float32_checkpoint_to_16_bits_halves_the_file(tmp_path):
    model = tiny.load("llama", tmp_path, dtype="bfloat16")
    assert sizes(model, model)["file_mib"].value == 2 * (LINEAR + NORMS + 2 * EMBEDDING) / MIB
