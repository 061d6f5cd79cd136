"""The GPTQ layout: words as by hand, both conventions of zeros, plans and their configuration."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from bitsweep.errors import UserError
from bitsweep.export.gptq import Gptq
from bitsweep.models import Layer, Model
from bitsweep.spec import InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

LINEAR = Layer("m.0.q", "attention.qkv", 0, (64, 96), "linear", None)
HEAD = Layer("lm_head", "head", None, (64, 96), "linear", None)


def words(codes: list[int], bits: int) -> list[int]:
    """A stream of codes, the first in the lowest bits, as signed 32-bit words."""
    stream = sum(code << (bits * place) for place, code in enumerate(codes))
    count = -(-bits * len(codes) // 32)
    unsigned = [stream >> (32 * place) & 0xFFFFFFFF for place in range(count)]
    return [word - (word >> 31 << 32) for word in unsigned]


def random_weight(rows: int = 64, columns: int = 96) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def quantized(spec: QuantSpec, permuted: bool = False, rows: int = 64) -> QuantTensor:
    columns = 172 if spec.group_size == -1 else 96
    quant = QuantTensor.quantize(random_weight(rows, columns), spec)
    if permuted:
        order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
        rising = torch.cat([group.sort().values for group in order.split(32)])
        quant = replace(quant, permutation=rising)
    return quant


def back(quant: QuantTensor) -> QuantTensor:
    writer = Gptq()
    tensors = writer.tensors("m", quant)
    reader = Gptq(checkpoint_format=writer.checkpoint_format)
    return reader.quant("m", tensors, LayerSpec(quant.spec))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_lie_down_each_column_and_zeros_along_each_row(bits: int) -> None:
    quant = quantized(QuantSpec(bits, 32))
    tensors = Gptq().tensors("m", quant)
    assert tensors["m.qweight"].shape == (96 * bits // 32, 64)
    assert tensors["m.qweight"][:, 5].tolist() == words(quant.codes[5].tolist(), bits)
    assert tensors["m.qzeros"].shape == (3, 64 * bits // 32)
    assert tensors["m.qzeros"][1].tolist() == words(quant.params["zero"][:, 1].tolist(), bits)
    assert torch.equal(tensors["m.scales"], quant.params["scale"].T)
    assert tensors["m.scales"].dtype == torch.float16
    assert tensors["m.g_idx"].tolist() == [0] * 32 + [1] * 32 + [2] * 32


def test_at_three_bits_two_codes_of_32_lie_across_a_seam() -> None:
    codes = [0] * 32
    codes[10], codes[21] = 0b101, 0b110
    tensors = Gptq().tensors("m", replace(quantized(QuantSpec(3, 32)), codes=_rows(codes)))
    first, second, third = tensors["m.qweight"][:3, 0].tolist()
    assert first & 0xFFFFFFFF == 0b01 << 30  # code 10: two low bits in one word, one in the next
    assert second & 0xFFFFFFFF == 0b1 | 0b0 << 31  # code 21: its lowest bit, 0, ends the word
    assert third == 0b11


def _rows(codes: list[int]) -> Tensor:
    return torch.tensor([codes * 3] * 64, dtype=torch.uint8)


def test_symmetric_layers_store_one_less_than_the_zero_that_every_code_is_offset_by() -> None:
    writer = Gptq()
    tensors = writer.tensors("m", quantized(QuantSpec(4, 32, symmetric=True)))
    assert writer.checkpoint_format == "gptq"
    assert tensors["m.qzeros"].unique().tolist() == [0x77777777]  # 8 - 1 in each field


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_layer_is_read_back_to_the_last_bit(bits: int, permuted: bool, symmetric: bool) -> None:
    quant = quantized(QuantSpec(bits, 32, symmetric), permuted)
    again = back(quant)
    assert torch.equal(again.codes, quant.codes)
    assert again.params.keys() == quant.params.keys()
    assert all(torch.equal(again.params[name], quant.params[name]) for name in quant.params)
    assert (again.permutation is None) == (not permuted)
    assert torch.equal(again.dequantize(), quant.dequantize())


def test_rows_and_columns_that_leave_part_of_a_word_empty_are_read_back() -> None:
    quant = quantized(QuantSpec(4, -1), rows=43)
    tensors = Gptq().tensors("m", quant)
    assert tensors["m.qweight"].shape == (22, 43)  # 172 codes of 4 bits: 21.5 words
    assert tensors["m.qzeros"].shape == (1, 6)  # 43 of them: 5.4
    assert torch.equal(back(quant).codes, quant.codes)
    assert torch.equal(back(quant).params["zero"], quant.params["zero"])


def test_the_loaders_formula_gives_our_weights() -> None:
    """``scales[g_idx] * (code - zeros[g_idx])``, as GPTQModel computes it, in float32."""
    quant = quantized(QuantSpec(4, 32), permuted=True)
    tensors = Gptq().tensors("m", quant)
    group = tensors["m.g_idx"].long()
    scales, zeros = tensors["m.scales"].float(), quant.params["zero"].T.float()
    weight = scales[group] * (quant.codes.T.float() - zeros[group])
    assert torch.equal(weight.T, quant.dequantize())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_in_the_older_convention_what_a_zero_of_0_borrowed_comes_back(bits: int) -> None:
    quant = quantized(QuantSpec(bits, 32))
    zero = quant.params["zero"].clone()
    zero[3, 1] = zero[31, 0] = zero[63, 2] = 0
    quant = replace(quant, params={**quant.params, "zero": zero})
    tensors = Gptq().tensors("m", quant)
    ones = sum(1 << place for place in range(0, 32, bits))
    tensors["m.qzeros"] = _wrapped(tensors["m.qzeros"].long() - ones)  # GPTQModel's v2 to v1
    read = Gptq(checkpoint_format="gptq").quant("m", tensors, LayerSpec(quant.spec))
    assert torch.equal(read.params["zero"], zero)


def test_in_the_older_convention_of_three_bits_each_zero_is_one_less_by_itself() -> None:
    quant = quantized(QuantSpec(3, 32))
    tensors = Gptq().tensors("m", quant)
    less = [(zero - 1) % 8 for zero in quant.params["zero"][:, 0].tolist()]
    tensors["m.qzeros"][0] = torch.tensor(words(less, 3))
    read = Gptq(checkpoint_format="gptq").quant("m", tensors, LayerSpec(quant.spec))
    assert torch.equal(read.params["zero"][:, 0], quant.params["zero"][:, 0])


def _wrapped(values: Tensor) -> Tensor:
    """int64 to the int32 of the same low bits."""
    return ((values + 2**31) % 2**32 - 2**31).to(torch.int32)


@pytest.mark.parametrize(
    ("layer", "spec", "says"),
    [
        (replace(LINEAR, kind="embedding"), QuantSpec(4, 32), "embedding: .*along its tokens"),
        (LINEAR, QuantSpec(4, 32, format="nf"), "format=nf: .*uniform"),
        (LINEAR, QuantSpec(5, 32), "bits=5: .*2, 3, 4 or 8"),
        (LINEAR, QuantSpec(4, 32, zero="real"), "zero=real"),
        (LINEAR, QuantSpec(4, 32, scale_dtype="float32"), "scale_dtype=float32: .*float16"),
        (LINEAR, QuantSpec(4, 32, scale_dtype="power_of_two"), "scale_dtype=power_of_two"),
        (LINEAR, QuantSpec(4, 0), "group_size=0: .*per tensor"),
        (LINEAR, QuantSpec(4, 48), "group_size=48: .*-1, 16, 32, 64"),
        (LINEAR, QuantSpec(4, 64, ragged=True), "64 does not divide in_features=96.*ragged"),
        (replace(LINEAR, shape=(43, 96)), QuantSpec(3, 32), "bits=3 packs 32 codes"),
    ],
)
def test_what_the_files_can_not_say_is_named(layer: Layer, spec: QuantSpec, says: str) -> None:
    reason = Gptq().rules.layer(layer, LayerSpec(spec))
    assert reason is not None
    assert re.search(says, reason)


def test_quantized_inputs_are_refused() -> None:
    spec = LayerSpec(QuantSpec(4, 32), InputSpec(QuantSpec(8)))
    reason = Gptq().rules.layer(LINEAR, spec)
    assert reason is not None
    assert "input.bits=8" in reason


def test_a_transposed_linear_of_gpt2_lies_as_any_other() -> None:
    assert Gptq().rules.layer(replace(LINEAR, kind="conv1d"), LayerSpec(QuantSpec(4, 32))) is None


def test_pruned_weights_are_refused() -> None:
    quant = quantized(QuantSpec(4, 32))
    with pytest.raises(UserError, match="mask of pruned weights"):
        Gptq().tensors("m", quant.masked(torch.ones(64, 96, dtype=torch.bool)))


def test_symmetric_and_asymmetric_layers_do_not_share_a_checkpoint() -> None:
    specs = {"m.0.q": QuantSpec(4, 32), "lm_head": QuantSpec(8, 32, symmetric=True)}
    plan = Plan({name: LayerSpec(spec) for name, spec in specs.items()})
    with pytest.raises(UserError, match="symmetric=true of lm_head"):
        Gptq().config(plan, {"m.0.q": LINEAR, "lm_head": HEAD})


def every(model: Model, spec: QuantSpec) -> dict[str, LayerSpec]:
    """Of each linear layer of the blocks."""
    return {n: LayerSpec(spec) for n, layer in model.layers.items() if layer.block is not None}


def test_a_uniform_plan_needs_no_override(model: Model) -> None:
    plan = Plan(every(model, QuantSpec(4, 32)))
    config = Gptq().config(plan, model.layers)
    assert "dynamic" not in config
    assert (config["bits"], config["group_size"], config["sym"]) == (4, 32, False)
    assert config["checkpoint_format"] == "gptq_v2"
    assert Gptq().plan(config, model.layers) == plan


def test_a_mixed_plan_comes_back_from_its_overrides(model: Model) -> None:
    layers = every(model, QuantSpec(4, 32, True))
    down, out = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj"
    layers[down] = LayerSpec(QuantSpec(8, 64, True))
    layers["lm_head"] = LayerSpec(QuantSpec(8, -1, True))
    del layers[out]
    config = Gptq().config(Plan(layers), model.layers)
    assert config["lm_head"] is True
    assert config["checkpoint_format"] == "gptq"
    assert config["dynamic"] == {
        r"-:model\.layers\.0\.self_attn\.o_proj$": {},
        r"+:model\.layers\.1\.mlp\.down_proj$": {"bits": 8, "group_size": 64},
        r"+:lm_head$": {"bits": 8, "group_size": -1},
    }
    assert Gptq().plan(json.loads(json.dumps(config)), model.layers) == Plan(layers)


def test_a_plan_that_every_block_shares_is_said_as_transformers_reads_it(model: Model) -> None:
    layers = {n: s for n, s in every(model, QuantSpec(4, 32)).items() if "mlp" in n}
    config = Gptq().config(Plan(layers), model.layers)
    (shown,) = config["modules_in_block_to_quantize"]
    assert shown == ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
    del config["dynamic"]
    assert Gptq().plan(config, model.layers) == Plan(layers)


def test_the_first_expression_that_matches_decides(model: Model) -> None:
    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "dynamic": {r"-:.*\.1\.mlp": {}, r".*mlp\.(up|gate)_proj": {"bits": 8, "mse": 2.0}},
    }
    found = Gptq().plan(config, model.layers).layers
    assert found["model.layers.0.mlp.up_proj"].weight == QuantSpec(8, 32, True)
    assert found["model.layers.0.mlp.down_proj"].weight == QuantSpec(4, 32, True)
    assert not [name for name in found if "layers.1.mlp" in name]


def test_act_order_is_said_when_a_layer_has_it(model: Model) -> None:
    plan, writer = Plan(every(model, QuantSpec(4, 32))), Gptq()
    assert writer.config(plan, model.layers)["desc_act"] is False
    writer.tensors("m", quantized(QuantSpec(4, 32), permuted=True))
    assert writer.config(plan, model.layers)["desc_act"] is True


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quant_method", "awq"),
        ("checkpoint_format", "marlin"),
        ("pack_dtype", "int16"),
        ("rotation", "hadamard"),
        ("bits", None),
    ],
)
def test_a_configuration_of_something_else_is_refused(key: str, value: Any, model: Model) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, key: value}
    with pytest.raises(UserError, match=rf"quantization_config.{key}={value}"):
        Gptq().plan(config, model.layers)


def test_tensors_that_contradict_the_plan_are_refused() -> None:
    spec = LayerSpec(QuantSpec(4, 32))
    tensors = Gptq().tensors("m", quantized(spec.weight))
    reader = Gptq(checkpoint_format="gptq_v2")
    with pytest.raises(UserError, match=r"m\.qweight: \(12, 64\) is not \(24, 64\)"):
        reader.quant("m", tensors, LayerSpec(QuantSpec(8, 32)))
    with pytest.raises(UserError, match=r"m\.qzeros: sym=true has zeros of 8 only"):
        reader.quant("m", tensors, LayerSpec(QuantSpec(4, 32, symmetric=True)))
    with pytest.raises(UserError, match=r"m\.g_idx: does not put equally many"):
        reader.quant("m", {**tensors, "m.g_idx": torch.zeros(96, dtype=torch.int32)}, spec)
    with pytest.raises(UserError, match="m: its files have no scales"):
        reader.quant("m", {k: v for k, v in tensors.items() if k != "m.scales"}, spec)


THEIRS = """
import sys, torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
source, folder = sys.argv[1:]
torch.set_num_threads(1)
config = QuantizeConfig(
    device="cpu", bits=2, group_size=16, sym=False, desc_act=True, offload_to_disk=False,
    act_group_aware=False, dynamic={r"+:.*gate_proj": {"bits": 8}, r"-:.*o_proj": {}},
)
model = GPTQModel.load(source, config)
torch.manual_seed(0)
rows = torch.randint(0, 256, (8, 64)).tolist()
model.quantize([{"input_ids": row, "attention_mask": [1] * 64} for row in rows], batch_size=1)
model.save(folder)
loaded = GPTQModel.load(folder, device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH)
layers = loaded.model.named_modules()
dense = {n: m.dequantize_weight().T for n, m in layers if hasattr(m, "dequantize_weight")}
torch.save({name: weight.contiguous() for name, weight in dense.items()}, folder + ".pt")
"""


def test_what_gptqmodel_wrote_is_read_as_it_reads_it(model: Model, tmp_path: Path) -> None:
    """Needs an environment with GPTQModel: ``$BITSWEEP_PEERS/gptqmodel``, as parity makes it."""
    python = Path(os.environ.get("BITSWEEP_PEERS", "none")) / "gptqmodel" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs $BITSWEEP_PEERS/gptqmodel")
    folder = tmp_path / "theirs"
    variables = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "OMP_NUM_THREADS": "1"}
    source = tiny.llama(tmp_path / "llama")
    subprocess.run([python, "-c", THEIRS, source, folder], env=variables, check=True)
    config = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    reader = Gptq()
    plan = reader.plan(config, model.layers)
    dense = torch.load(f"{folder}.pt", weights_only=True)
    assert plan.layers.keys() == dense.keys()
    zeros = 0
    for name, spec in plan.layers.items():
        quant = reader.quant(name, tensors, spec)
        zeros += int((quant.params["zero"] == 0).sum())
        assert torch.equal(quant.dequantize().half(), dense[name])  # they compute in float16
    assert zeros > 0  # the borrow of the older convention was met
