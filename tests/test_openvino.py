"""OpenVINO: what it executes equals dense, what it would do otherwise is refused; its files too."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from bitsweep import engines, models
from bitsweep.activations import InputQuantizer
from bitsweep.artifacts import Artifacts
from bitsweep.engines import Runner, _openvino, runner
from bitsweep.engines.openvino import Openvino, compiled_for, executed
from bitsweep.engines.openvino_bf16 import OpenvinoBf16
from bitsweep.export import openvino as export
from bitsweep.linear import QuantEmbedding, QuantLinear, quantized
from bitsweep.models import Model
from bitsweep.reference.text import text
from bitsweep.spec import InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

if _openvino.missing() is not None:
    pytest.skip(str(_openvino.missing()), allow_module_level=True)

W4 = QuantSpec(4, 64)
W8 = QuantSpec(8, symmetric=True)
A8 = InputSpec(QuantSpec(8, 32, format="narrow", scale_dtype="float32"))
DOWN = "model.layers.0.mlp.down_proj"


def linear(spec: QuantSpec, columns: int, inputs: InputSpec | None = None) -> QuantLinear:
    weight = torch.randn(40, columns, generator=torch.Generator().manual_seed(columns))
    layer = QuantLinear(QuantTensor.quantize(weight, spec), None, torch.float32)
    layer.input_quantizer = None if inputs is None else InputQuantizer(inputs)
    return layer


def with_layers(source: Model, specs: dict[str, LayerSpec]) -> Model:
    """A copy in which each named layer is rounded to nearest; a tied pair shares its codes."""
    model, shared = source.copy(), dict[int, QuantTensor]()
    for name, spec in specs.items():
        weight = source.weight(name)
        quant = shared.setdefault(weight.data_ptr(), QuantTensor.quantize(weight, spec.weight))
        layer = quantized(quant, source.get(name))
        if spec.input is not None and isinstance(layer, QuantLinear):
            layer.input_quantizer = InputQuantizer(spec.input)
        model.replace(name, layer)
    model.plan = Plan(specs)
    return model


def everywhere(source: Model, spec: QuantSpec, inputs: InputSpec | None = None) -> Model:
    return with_layers(source, {name: LayerSpec(spec, inputs) for name in source.layers})


@pytest.fixture(scope="module")
def source() -> Model:
    return models.load(models.ModelSource("reference", "pkg:reference"), Artifacts(None))


@pytest.fixture(scope="module")
def ids(source: Model) -> Tensor:
    """48 windows of 40 tokens of text that the reference has not seen."""
    found = torch.tensor(source.tokenizer(text("evaluation", 40))["input_ids"])
    return found[: 48 * 40].view(48, 40)


def built(engine: engines.Engine, model: Model) -> Runner:
    assert engine.refuses(model) is None
    return engine.build(model)


def perplexity_by_tokens(run: Runner, ids: Tensor, last: int = 8) -> float:
    """Of the ``last`` tokens of each window, read one at a time behind the others."""
    prompt = ids.shape[1] - last
    logits, cache = run.prefill(ids[:, :prompt])
    found = [logits]
    for at in range(prompt, ids.shape[1] - 1):
        found.append(run.decode(ids[:, at : at + 1], cache))
    return exp_loss(torch.stack(found, 1), ids[:, -last:])


def dense_perplexity(model: Model, ids: Tensor, last: int = 8) -> float:
    """Of the same tokens, all windows read at once."""
    with torch.inference_mode():
        return exp_loss(model.module(ids).logits[:, -last - 1 : -1], ids[:, -last:])


def exp_loss(logits: Tensor, ids: Tensor) -> float:
    loss = nn.functional.cross_entropy(logits.double().flatten(0, 1), ids.flatten())
    return float(loss.exp())


@pytest.mark.parametrize(
    ("engine", "inputs", "tolerance"),
    [(Openvino(), None, 1e-6), (OpenvinoBf16(), None, 1e-3), (Openvino(), A8, 1e-3)],
    ids=["f32", "bf16", "int8 inputs"],
)
@pytest.mark.parametrize("spec", [W4, W8], ids=str)
def test_the_references_perplexity_is_that_of_dense(
    engine: Openvino,
    inputs: InputSpec | None,
    tolerance: float,
    spec: QuantSpec,
    source: Model,
    ids: Tensor,
) -> None:
    """In float32 to rounding; bf16 rounds by itself, an int8 input at a tie may go either way."""
    model = everywhere(source, spec, inputs)
    found = perplexity_by_tokens(built(engine, model), ids)
    assert found == pytest.approx(dense_perplexity(model, ids), rel=tolerance)


def test_decoding_on_a_cache_equals_reading_all_at_once(source: Model, ids: Tensor) -> None:
    run = built(Openvino(), everywhere(source, W4))
    whole, _ = run.prefill(ids[:3])
    first, cache = run.prefill(ids[:3, :37])
    for at in range(37, 40):
        first = run.decode(ids[:3, at : at + 1], cache)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-4)


def test_each_prompt_has_a_cache_of_its_own(source: Model, ids: Tensor) -> None:
    run = built(Openvino(), everywhere(source, W4))
    (_, one), (_, two) = run.prefill(ids[:1, :20]), run.prefill(ids[1:3, :30])
    run.decode(ids[1:3, 30:31], two)
    alone, _ = run.prefill(ids[:1, :21])
    torch.testing.assert_close(run.decode(ids[:1, 20:21], one), alone, rtol=1e-4, atol=1e-4)


def test_greedy_tokens_are_those_of_dense(source: Model, ids: Tensor) -> None:
    model = everywhere(source, W4)
    expected = engines.generate(runner.TorchRunner(model.module), ids[:2, :24], 16)
    assert torch.equal(engines.generate(built(Openvino(), model), ids[:2, :24], 16), expected)


@pytest.mark.parametrize("engine", [Openvino(), OpenvinoBf16()], ids=lambda engine: engine.name)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(group_size=0, symmetric=True),
        QuantSpec(group_size=-1, scale_dtype="float32"),
        QuantSpec(group_size=16, zero="real"),
        QuantSpec(group_size=64),
        QuantSpec(group_size=32, format="narrow"),
    ],
    ids=str,
)
def test_a_layer_is_taken_after_a_matrix_of_its_kind_came_out_right(
    engine: Openvino, bits: int, spec: QuantSpec
) -> None:
    spec = replace(spec, bits=bits)
    assert engine.misfit(linear(spec, 192)) is None
    table = QuantTensor.quantize(torch.randn(40, 192), spec)
    assert engine.misfit(QuantEmbedding(table, None, None, torch.float32)) is None


@pytest.mark.parametrize(("spec", "group"), [(W4, 64), (W4, 16), (W8, 128), (QuantSpec(8), 32)])
def test_inputs_of_8_bits_are_multiplied_as_they_are_declared(spec: QuantSpec, group: int) -> None:
    inputs = InputSpec(replace(A8.quant, group_size=group))
    assert Openvino().misfit(linear(spec, 256, inputs)) is None


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (linear(QuantSpec(3, 64), 192), "it has 3 bits, not 4 or 8"),
        (linear(QuantSpec(4, 48), 192), "its group_size=48 is not a power of two"),
        (linear(QuantSpec(4, 8), 192), "its group_size=8 is not a power of two from 16 up"),
        (linear(QuantSpec(4, 64, format="nf"), 192), "format=nf, not integers"),
        (linear(QuantSpec(4, 64, ragged=True), 96), "group_size=64 does not divide rows of 96"),
        (linear(W4, 64, InputSpec(QuantSpec(8, 32, scale_dtype="float32"))), "input.format=narrow"),
        (linear(W4, 64, InputSpec(replace(A8.quant, bits=4))), "input.bits=8"),
        (linear(W4, 64, InputSpec(replace(A8.quant, group_size=-1))), "in groups, one size"),
        (linear(W4, 64, InputSpec(replace(A8.quant, group_size=24))), "a multiple of 16"),
        (linear(W4, 128, InputSpec(replace(A8.quant, group_size=128))), "leave inputs floating"),
    ],
)
def test_a_layer_that_would_not_run_as_it_is_is_refused(layer: QuantLinear, reason: str) -> None:
    assert reason in (Openvino().misfit(layer) or "")


def test_columns_in_another_order_run_with_floating_inputs_only() -> None:
    layer = linear(W4, 128)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    layer.quant = replace(layer.quant, permutation=order)
    assert Openvino().misfit(layer) is None
    layer.input_quantizer = InputQuantizer(A8)
    assert "act_order" in (Openvino().misfit(layer) or "")


def test_inputs_quantized_in_some_layers_only_are_refused(source: Model) -> None:
    model = with_layers(source, {"lm_head": LayerSpec(W4), DOWN: LayerSpec(W4, A8)})
    reason = Openvino().refuses(model)
    assert reason == (
        "it quantizes the inputs of all compressed layers alike or of none: "
        f"narrow8g32 ({DOWN}), floating (lm_head)"
    )


def test_bf16_leaves_inputs_floating_and_says_so(source: Model) -> None:
    reason = OpenvinoBf16().refuses(with_layers(source, {DOWN: LayerSpec(W4, A8)}))
    assert reason is not None
    assert reason.startswith(f"{DOWN}: inputs of narrow8g32: in bf16 it leaves inputs floating")


def test_a_layer_that_was_dequantized_after_all_is_found(source: Model) -> None:
    model, ops = everywhere(source, W4), _openvino.operators()
    graph = _openvino.convert(model, last_only=True)
    node = next(node for node in graph.get_ordered_ops() if node.get_friendly_name() == DOWN)
    node.input(1).replace_source_output(ops.constant(model.weight(DOWN).numpy()).output(0))
    with pytest.raises(RuntimeError, match=f"OpenVINO dequantized {DOWN}$"):
        compiled_for(graph, model, torch.float32)


def test_its_library_reports_to_nobody() -> None:
    """Where ``openvino_telemetry`` can not be imported OpenVINO takes its own stub."""
    if "openvino_telemetry" in sys.modules:
        pytest.skip("somebody else imported openvino first")
    telemetry = sys.modules["openvino.tools.ovc"].telemetry  # type: ignore[attr-defined]
    assert type(telemetry).__module__ == "openvino.tools.ovc.telemetry_stub"


def test_a_missing_library_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert (Openvino().missing() or "").startswith("pip install 'bitsweep[openvino]'")


# ------------------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A tied model of one block, its ends 8 bits and the rest 4, and the folder of its IR."""
    folder = tmp_path_factory.mktemp("ir")
    path = tiny.save("llama_tied", folder / "tied", num_hidden_layers=1)
    tied = models.load(models.ModelSource("tied", str(path)), Artifacts(None))
    specs = {name: LayerSpec(W4) for name in tied.layers}
    specs |= dict.fromkeys(("model.embed_tokens", "lm_head"), LayerSpec(W8))
    model = with_layers(tied, specs)
    assert export.refuses(model) is None
    export.write(model, folder)
    return model, folder


def read(folder: Path) -> Any:
    return _openvino.library().Core().read_model(folder / "openvino_model.xml")


def test_files_read_back_have_the_models_logits(exported: tuple[Model, Path]) -> None:
    model, folder = exported
    core, settings = _openvino.library().Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(folder / "openvino_model.xml", "CPU", settings)
    ids = torch.arange(48).view(2, 24)
    given = {"input_ids": ids.numpy(), "attention_mask": np.ones((2, 24), np.int64)}
    with torch.inference_mode():
        expected = model.module(ids).logits
    torch.testing.assert_close(torch.tensor(compiled(given)["logits"]), expected)
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    assert executed(compiled) >= set(engines.quantized_layers(model))


def test_codes_in_the_file_are_ours_bit_for_bit(exported: tuple[Model, Path]) -> None:
    model, folder = exported
    graph = read(folder)
    for name in ("model.layers.0.mlp.up_proj", "lm_head"):
        node = next(node for node in graph.get_ordered_ops() if node.get_friendly_name() == name)
        while node.get_type_name() != "Constant":
            node = node.input_value(1 if node.get_friendly_name() == name else 0).get_node()
        quant = model.get(name).quant  # type: ignore[union-attr]
        data = torch.tensor(node.data).flatten().view(torch.uint8)
        if name == "lm_head":
            assert torch.equal(data ^ 128, quant.codes.flatten())
        else:
            assert torch.equal(
                torch.stack([data & 15, data >> 4], 1).flatten(), quant.codes.flatten()
            )


def test_a_tied_pair_is_one_constant(exported: tuple[Model, Path]) -> None:
    model, folder = exported
    shape = list(model.get("lm_head").quant.shape)  # type: ignore[union-attr]
    constants = [node for node in read(folder).get_ops() if node.get_type_name() == "Constant"]
    assert sum(list(node.shape) == shape for node in constants) == 1


def test_what_the_engine_does_not_execute_is_not_exported(source: Model) -> None:
    model = with_layers(source, {DOWN: LayerSpec(QuantSpec(3, 64))})
    assert export.refuses(model) == f"{DOWN}: it has 3 bits, not 4 or 8"
