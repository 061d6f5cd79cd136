"""Sizes against sums on the page: every byte that is stored, none that is not."""

import pytest
import tiny
import torch

from bitsweep.activations import InputQuantizer
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration
from bitsweep.data import Data, Reference
from bitsweep.linear import quantized
from bitsweep.lowrank import Correction
from bitsweep.methods import place
from bitsweep.models import ModelSource, load
from bitsweep.probes.size import MIB, Size, parts, stored_bytes
from bitsweep.spec import InputSpec, QuantSpec
from bitsweep.tensor import QuantTensor
from bitsweep.transforms.low_rank import LowRank
from bitsweep.transforms.prune import Prune

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


def pruned(model, pattern="unstructured", sparsity=0.5):
    return Prune("magnitude", pattern, sparsity)(model.copy(), Calibration(model, None, None))


def test_a_pruned_layer_in_full_precision_is_a_mask_and_what_is_left(tmp_path):
    model = tiny.load("llama", tmp_path)
    found = sizes(pruned(model), model)
    assert found["bits_per_weight"].value == pytest.approx(
        ((1 + 16) * LINEAR + 2 * 32 * EMBEDDING) / (LINEAR + 2 * EMBEDDING), rel=1e-12
    )
    left = LINEAR / 8 + 4 * LINEAR / 2 + 4 * (NORMS + 2 * EMBEDDING)
    assert found["file_mib"].value == found["resident_mib"].value - rotary(model) == left / MIB


def rotary(model):
    return sum(buffer.nbytes for buffer in model.module.buffers()) / MIB


def test_a_pruned_layer_never_counts_more_than_the_dense_one(tmp_path):
    model = tiny.load("llama", tmp_path)
    few = sizes(pruned(model, sparsity=0.01), model)["file_mib"]  # 1 bit of mask, 0.32 saved
    assert few.value == 4 * (LINEAR + NORMS + 2 * EMBEDDING) / MIB
    assert few.delta.value == 1


def test_codes_of_pruned_weights_are_not_stored_and_their_mask_is(tmp_path):
    model = tiny.load("llama", tmp_path)
    copy = pruned(model, "2:4")
    for name, mask in copy.masks.items():
        place(copy, name, QuantTensor.quantize(model.weight(name), QuantSpec(4, 64)))
        assert copy.get(name).quant.mask is mask
    # half the codes; 4 bits of mask for 4 weights; scales and zeros stay
    assert sizes(copy, model)["bits_per_weight"].value == 4 / 2 + 1 + (16 + 4) / 64


def test_whole_rows_and_columns_cost_a_bit_each(tmp_path):
    model = tiny.load("llama", tmp_path)
    copy = pruned(model, "channels")
    # half of 256 channels, in three layers of two blocks: a bit for each of 256 + 128 lines
    gone = 2 * 3 * (4 * 128 * 128 - (256 + 128) // 8)
    full = 4 * (LINEAR + NORMS + 2 * EMBEDDING)
    assert sizes(copy, model)["file_mib"].value == (full - gone) / MIB


def test_a_correction_is_counted_in_16_bits(tmp_path):
    model = tiny.load("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj"  # 256 x 128
    copy = quantize(model, QuantSpec(4, 64), [name])
    without = sizes(copy, model)
    copy.get(name).correction = Correction(torch.ones(256, 3), torch.ones(3, 128))
    found = sizes(copy, model)
    added = 2 * 3 * (256 + 128)
    assert found["bits_per_weight"].value == 4 + (16 + 4) / 64 + 8 * added / (256 * 128)
    for metric in ("file_mib", "resident_mib"):
        assert found[metric].value - without[metric].value == pytest.approx(added / MIB)
    assert parts(copy, 4)["correction"] == added
    assert sum(parts(copy, 4).values()) == found["file_mib"].value * MIB


def test_a_layer_of_low_rank_counts_as_its_factors(tmp_path):
    model = tiny.load("llama", tmp_path)
    thin = LowRank(rank=8, activation_aware=False)(model.copy(), Calibration(model, None, None))
    factors = 2 * 8 * (2 * 256 + 2 * 192 + 3 * 384)  # q, o; k, v; gate, up, down
    expected = 4 * (factors + NORMS + 2 * EMBEDDING)
    assert sizes(thin, model)["file_mib"].value == expected / MIB


def test_static_ranges_of_inputs_are_a_part_of_the_file(tmp_path):
    model = tiny.load("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj"
    copy = quantize(model, QuantSpec(4, 64), [name])
    without = sizes(copy, model)["file_mib"].value
    spec = InputSpec(QuantSpec(8, -1, scale_dtype="float32"), range="minmax")
    ranges = {"scale": torch.ones(1, 1), "zero": torch.zeros(1, 1)}
    copy.get(name).input_quantizer = InputQuantizer(spec, ranges)
    assert parts(copy, 4)["input_ranges"] == 4 + 1  # a scale in float32, a zero of 8 bits
    assert (sizes(copy, model)["file_mib"].value - without) * MIB == pytest.approx(5)
    assert sum(parts(copy, 4).values()) == sizes(copy, model)["file_mib"].value * MIB


def test_the_stored_width_is_that_of_most_numbers_and_not_of_most_tensors(tmp_path):
    module = tiny.build("llama")
    for layer in module.model.layers:
        layer.mlp.bfloat16()  # 6 of 21 tensors, more than half of the numbers
    module.save_pretrained(tmp_path / "mixed")
    tiny.tokenizer().save_pretrained(tmp_path / "mixed")
    source = ModelSource("mixed", str(tmp_path / "mixed"), dtype="float32")
    assert stored_bytes(source, Artifacts(None)) == 2


def test_the_ratio_is_to_the_checkpoint_and_not_to_what_the_transforms_left(tmp_path):
    model = tiny.load("llama", tmp_path)
    copy = pruned(model)
    reference = Reference(model, Data("d"), Artifacts(None))
    reference.unrounded = copy
    found = {metric.name: metric for metric in Size()(copy, reference).metrics}["file_mib"]
    full = 4 * (LINEAR + NORMS + 2 * EMBEDDING) / MIB
    assert found.delta.value == pytest.approx(found.value / full)
