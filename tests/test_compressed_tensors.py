"""compressed-tensors: our codes in its files, opened by its own code and by plain transformers."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import tiny
import torch

from bitsweep.errors import UserError
from bitsweep.export._words import codes as codes_of
from bitsweep.export._words import words
from bitsweep.export.compressed_tensors import CompressedTensors
from bitsweep.models import Layer, Model
from bitsweep.spec import InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

INT8 = InputSpec(QuantSpec(bits=8, scale_dtype="float32"))
LAYER = Layer("up", "ffn.up", 0, (40, 96), "linear", None)


def weight(out: int = 40, width: int = 96) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(0))


def scheme(spec: QuantSpec, inputs: InputSpec | None = None):
    """The library's scheme of a layer, from our configuration."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    plan = Plan({"up": LayerSpec(spec, inputs)})
    group = CompressedTensors().config(plan, {"up": LAYER})["config_groups"]["group_0"]
    return quantization.QuantizationScheme(**group)


def library(name: str):
    compressors = pytest.importorskip("compressed_tensors.compressors")
    return compressors.BaseCompressor.get_value_from_registry(name)


def test_packed_rows_are_the_librarys_to_the_last_bit_at_every_width() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    for bits in range(2, 9):
        for columns in (32, 33, 40, 96):
            codes = torch.randint(0, 2**bits, (5, columns), dtype=torch.uint8)
            signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
            assert torch.equal(words(codes, bits), helpers.pack_to_int32(signed, bits))
            assert torch.equal(codes_of(words(codes, bits), bits, columns), codes)


SPECS = [
    QuantSpec(bits=bits, group_size=group, symmetric=symmetric, scale_dtype=dtype)
    for bits in (2, 3, 4, 8)
    for group, dtype in ((-1, "float16"), (0, "float16"), (32, "float32"), (12, "float16"))
    for symmetric in (True, False)
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_weight_comes_back_bit_for_bit_and_the_library_reads_the_same_one(spec) -> None:
    quant = QuantTensor.quantize(weight(), spec)
    for inputs in (None, INT8):
        container = CompressedTensors()
        tensors = container.tensors("up", quant, inputs)
        back = container.quant("up", tensors, LayerSpec(spec, inputs))
        assert torch.equal(back.codes, quant.codes)
        assert back.params.keys() == quant.params.keys()
        for name, value in quant.params.items():
            assert back.params[name].dtype == value.dtype
            assert torch.equal(back.params[name], value)
        known = scheme(spec, inputs)
        own = {key.removeprefix("up."): value for key, value in tensors.items()}
        own["weight_scale"] = own["weight_scale"].float()  # as a model in float32 loads it
        read = library(known.format).decompress(own, known)["weight"]
        assert torch.equal(read, quant.dequantize())


def test_the_library_compresses_our_weight_to_our_tensors() -> None:
    spec = QuantSpec(bits=4, group_size=32, scale_dtype="float32")
    quant = QuantTensor.quantize(weight(), spec)
    signed = quant.params["zero"].to(torch.int8) - 8
    state = {
        "weight": weight(),
        "weight_scale": quant.params["scale"],
        "weight_zero_point": signed,
    }
    theirs = library("pack-quantized").compress(state, scheme(spec))
    ours = CompressedTensors().tensors("up", quant)
    assert {f"up.{key}" for key in theirs} == ours.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[f"up.{key}"], value), key


def test_a_plan_comes_back_from_its_configuration() -> None:
    layers = {name: Layer(name, "ffn.up", 0, (8, 64), "linear", None) for name in "abcd"}
    plan = Plan(
        {
            "a": LayerSpec(QuantSpec(bits=4, group_size=32, symmetric=True)),
            "b": LayerSpec(QuantSpec(bits=8, symmetric=True), INT8),
            "c": LayerSpec(QuantSpec(bits=3, symmetric=True, scale_dtype="float32")),
        }
    )
    config = CompressedTensors().config(plan, layers)
    assert config["format"] == "mixed-precision"
    assert config["ignore"] == ["d"]
    assert CompressedTensors().plan(config, layers) == plan


def test_classes_and_patterns_of_other_writers_are_matched_and_ignored() -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head"]
    layers = {name: Layer(name, "ffn.up", 0, (8, 64), "linear", None) for name in names}
    weights = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "first": {"targets": ["re:.*layers\\.1\\."], "weights": {**weights, "num_bits": 8}},
            "rest": {"targets": ["Linear"], "weights": weights},
        },
        "ignore": ["lm_head"],
    }
    found = CompressedTensors().plan(config, layers).layers
    assert {name: str(spec) for name, spec in found.items()} == {
        names[0]: "w4g32-sym",
        names[1]: "w8g32-sym",
    }


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (LayerSpec(QuantSpec(format="nf", group_size=32)), "format=nf"),
        (LayerSpec(QuantSpec(zero="real", group_size=32)), "zero=real"),
        (LayerSpec(QuantSpec(scale_dtype="power_of_two")), "scale_dtype=power_of_two"),
        (LayerSpec(QuantSpec(group_size=64, ragged=True)), "leaves a part of a group"),
        (
            LayerSpec(QuantSpec(bits=8), InputSpec(QuantSpec(bits=8), "tensor", "minmax")),
            "input.range=minmax",
        ),
        (LayerSpec(QuantSpec(bits=8), InputSpec(QuantSpec(bits=8))), "input.scale_dtype"),
    ],
)
def test_what_the_files_can_not_say_is_refused_naming_layer_and_key(spec, reason) -> None:
    said = CompressedTensors().rules.layer(LAYER, spec)
    assert said is not None
    assert said.startswith("up (")
    assert reason in said


def test_an_embedding_and_a_conv1d_are_refused() -> None:
    for kind, word in (("embedding", "an embedding"), ("conv1d", "a Conv1D")):
        layer = Layer("wte", "embedding", None, (40, 96), kind, None)  # type: ignore[arg-type]
        assert word in str(CompressedTensors().rules.layer(layer, LayerSpec(QuantSpec())))


def test_codes_in_another_order_or_with_a_mask_are_refused() -> None:
    spec = QuantSpec(bits=4, group_size=32)
    quant = QuantTensor.quantize(weight(), spec)
    ordered = copy.copy(quant)
    object.__setattr__(ordered, "permutation", torch.randperm(96))
    with pytest.raises(UserError, match="static_groups=true"):
        CompressedTensors().tensors("up", ordered)
    with pytest.raises(UserError, match="mask of pruned weights"):
        CompressedTensors().tensors("up", quant.masked(weight() > 0))


def test_packed_zeros_in_a_mix_are_refused_as_transformers_misreads_them() -> None:
    plan = Plan({"a": LayerSpec(QuantSpec(bits=4)), "b": LayerSpec(QuantSpec(bits=8))})
    with pytest.raises(UserError, match="symmetric=true"):
        CompressedTensors().config(plan, {})


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"quantization_status": "frozen"}, "frozen"),
        ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"type": "float"}}}}, "type"),
        (
            {
                "config_groups": {
                    "g": {
                        "targets": ["Linear"],
                        "weights": {"group_size": 32, "actorder": "group"},
                    }
                }
            },
            "actorder=group",
        ),
    ],
)
def test_a_configuration_of_others_that_is_not_ours_is_refused_by_its_key(edit, word) -> None:
    with pytest.raises(UserError, match=word):
        CompressedTensors().plan({"config_groups": {}, **edit}, {"up": LAYER})


def exported(model: Model, folder: Path, *, inputs: InputSpec | None = None, **axes) -> Model:
    """``model`` with every linear layer of its blocks quantized, written to ``folder``."""
    from export_helpers import quantize, write

    quantized = quantize(model, QuantSpec(**axes), inputs)
    write(quantized, "compressed-tensors", folder)
    return quantized


def opened(folder: Path):
    """What the model card's own lines make of the files in ``folder``."""
    card = (folder / "README.md").read_text()
    (lines,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    scope: dict = {}
    exec(lines.replace("FOLDER", str(folder)), scope)
    assert scope["tokenizer"] is not None
    return scope["model"]


@pytest.mark.parametrize(
    ("axes", "inputs"),
    [
        ({"bits": 4, "group_size": 32, "symmetric": True}, None),
        ({"bits": 3, "symmetric": True}, None),
        ({"bits": 4, "group_size": 32, "scale_dtype": "float32"}, None),
        ({"bits": 8, "scale_dtype": "float32"}, None),
        ({"bits": 4, "group_size": 0}, None),
        ({"bits": 8, "symmetric": True}, INT8),
        ({"bits": 8}, INT8),
        ({"bits": 4, "group_size": 32, "symmetric": True}, INT8),
        ({"bits": 4, "group_size": 0}, INT8),
    ],
)
def test_the_cards_own_lines_compute_our_logits(model, tmp_path, axes, inputs) -> None:
    pytest.importorskip("compressed_tensors")
    ours = exported(model, tmp_path / "out", inputs=inputs, **axes)
    theirs = opened(tmp_path / "out")
    with torch.no_grad():
        found = theirs(torch.arange(64).view(1, 64)).logits
    assert torch.equal(found, tiny.logits(ours))


def test_of_packed_zeros_beside_quantized_inputs_the_card_names_versions_that_open_them(
    model, tmp_path
) -> None:
    compressed_tensors = pytest.importorskip("compressed_tensors")
    ours = exported(model, tmp_path / "out", inputs=INT8, bits=4, group_size=32)
    card = (tmp_path / "out/README.md").read_text()
    assert "'transformers<5.18' 'compressed-tensors<0.20'" in card
    if compressed_tensors.__version__ < "0.20":
        found = opened(tmp_path / "out")(torch.arange(64).view(1, 64)).logits
        assert torch.equal(found, tiny.logits(ours))
    else:  # the day it opens, the card has nothing to say any more
        with pytest.raises(RuntimeError):
            opened(tmp_path / "out")
