"""Memory is that of a process which holds the packed model and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from bitsweep import activations
from bitsweep.artifacts import Artifacts
from bitsweep.data import Reference
from bitsweep.engines.runner import cast
from bitsweep.errors import UserError
from bitsweep.linear import quantized
from bitsweep.models import Model, ModelSource, load
from bitsweep.probes.memory import Memory, packed
from bitsweep.spec import InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

A8 = InputSpec(QuantSpec(8, -1, scale_dtype="float32"))


def quantize(model: Model, spec: QuantSpec, inputs: InputSpec | None = None) -> Model:
    """All layers of ``model``, both ends of a tied pair as one tensor."""
    copied, ends = model.copy(), dict[str, QuantTensor]()
    for name, layer in model.layers.items():
        own = QuantTensor.quantize(model.weight(name), spec)
        if model.tied and layer.role in ("embedding", "head"):
            own = ends.setdefault("both", own)
        copied.replace(name, quantized(own, model.get(name)))
    linear = {name for name, layer in model.layers.items() if layer.kind != "embedding"}
    layers = {n: LayerSpec(spec, inputs if n in linear else None) for n in model.layers}
    copied.plan = Plan(layers)
    activations.install(copied, copied.plan, tiny_calibration(model))
    return copied


def tiny_calibration(model: Model) -> Any:
    return None  # inputs are dynamic here


def there_and_back(model: Model, folder: Path, compute: torch.dtype | None = None) -> Model:
    packed.write(model, folder, compute)
    back = packed.bare(folder, Artifacts(None))
    packed.fill(back, folder)
    return back


def measure(probe: Memory, model: Model, full: Model) -> Any:
    data: Any = None
    return probe(model, Reference(full, data, Artifacts(None)))


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "gemma2", "bloom"])
def test_a_packed_model_comes_back_with_the_same_logits(name: str, tmp_path: Path) -> None:
    model = quantize(tiny.load(name, tmp_path), QuantSpec(3, 32), A8)
    (tmp_path / "packed").mkdir()
    back = there_and_back(model, tmp_path / "packed")
    assert torch.equal(tiny.logits(back), tiny.logits(model))
    assert not any(tensor.is_meta for tensor in back.module.state_dict().values())
    assert back.plan == model.plan


def test_a_model_in_full_precision_comes_back_in_the_engines_dtype(tmp_path: Path) -> None:
    model = tiny.load("llama_tied", tmp_path)
    (tmp_path / "packed").mkdir()
    back = there_and_back(model, tmp_path / "packed", torch.bfloat16)
    assert torch.equal(tiny.logits(back), tiny.logits(cast(model, torch.bfloat16)))
    assert back.module.get_output_embeddings().weight is back.module.get_input_embeddings().weight


def test_codes_lie_packed_in_the_file_and_a_tied_pair_once(tmp_path: Path) -> None:
    model = quantize(tiny.load("llama_tied", tmp_path), QuantSpec(4, 32, True))
    (tmp_path / "packed").mkdir()
    packed.write(model, tmp_path / "packed", torch.bfloat16)
    quants = {id(module.quant): module.quant for module in map(model.get, model.layers)}
    codes = sum(sum(quant.nbytes().values()) for quant in quants.values())
    norms = 2 * 5 * 128  # bf16, two a block and the last
    rotary = 2 * 4 * 16  # float32: inverse frequencies, and as they were
    header = 10_000
    size = (tmp_path / "packed" / packed.FILE).stat().st_size
    assert codes + norms + rotary <= size <= codes + norms + rotary + header


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that say 30, 40 and 20 MiB of a packed model, 100 of bf16."""
    own = {"load": 30.0, "prefill": 40.0, "decode": 20.0}

    def child(self: Memory, folder: Path, engine: str, phase: str) -> float:
        return 100.0 if engine == "dense" else own[phase]

    monkeypatch.setattr(Memory, "_child", child)


def test_each_phase_has_its_peak_and_its_ratio_to_bf16(numbers: None, model: Model) -> None:
    found = measure(Memory(prompt=64), quantize(model, QuantSpec(4, 32)), model)
    assert {m.name: (m.value, m.delta and m.delta.value) for m in found.metrics} == {
        "load_peak_mib": (30, 0.3),
        "prefill_peak_mib": (40, 0.4),
        "decode_peak_mib": (20, 0.2),
    }
    assert found.details[0]["bf16_peak_mib"] == {"load": 100, "prefill": 100, "decode": 100}
    signature = found.metrics[0].signature
    assert signature.startswith("memory|engine:torch_int4|prompt:64|batch:1|tokens:16|threads:1|")


def test_a_process_takes_the_packed_weights_and_little_more(tmp_path: Path) -> None:
    """25.8 million weights: 49 MiB in bf16, 14 in four bits with 16 for a scale and 4 for a zero
    of 32; the rest of a decode step is small."""
    big = {"hidden_size": 512, "intermediate_size": 8192, "num_attention_heads": 4, "head_dim": 128}
    tiny.save("llama", tmp_path / "big", **big)
    full = load(ModelSource("big", str(tmp_path / "big")), Artifacts(None))
    found = {}
    models = {"auto": quantize(full, QuantSpec(4, 32)), "dense": cast(full, torch.bfloat16)}
    for engine, model in models.items():
        (tmp_path / engine).mkdir()
        packed.write(model, tmp_path / engine, torch.bfloat16)
        probe = Memory(prompt=16, tokens=2)
        found[engine] = probe._child(tmp_path / engine, engine, "decode")
    assert 14 < found["auto"] < 45
    assert 49 < found["dense"] < 80


def test_a_point_without_an_engine_has_empty_cells_with_the_reason(model: Model) -> None:
    found = measure(Memory(), quantize(model, QuantSpec(3, 32)), model)
    assert {metric.value for metric in found.metrics} == {None}
    assert all(metric.reason for metric in found.metrics)
    assert found.details == []


def test_a_prompt_longer_than_the_context_is_not_measured(model: Model) -> None:
    found = measure(Memory(prompt=120, tokens=16), model, model)
    assert found.metrics[0].reason == (
        "a prompt of 120 and 16 tokens are longer than the context of 128"
    )


def test_numbers_that_make_no_prompt_are_refused() -> None:
    with pytest.raises(UserError, match=r"probes.memory.tokens=0: give at least 1"):
        Memory(tokens=0)
