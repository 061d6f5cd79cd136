"""The engine onnxruntime: which operators run, that they equal ``dense``, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_graph import A8, FLOAT32, W4, W8, holed, linear, numbers, relative

from bitsweep import engines, models
from bitsweep.activations import InputQuantizer
from bitsweep.artifacts import Artifacts
from bitsweep.engines import runner
from bitsweep.linear import QuantLinear, quantized
from bitsweep.models import Model
from bitsweep.reference.text import documents
from bitsweep.spec import InputSpec, QuantSpec
from bitsweep.tensor import QuantTensor

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers.exporters")

from bitsweep.graph import contrib, qdq  # noqa: E402

NARROW = InputSpec(replace(A8, group_size=32, format="narrow"))
PER_TENSOR = InputSpec(A8, per="tensor")
FLIPS = 2e-3
"""Relative error where an input lies halfway between two codes and went the other way."""

SERVED = {
    "w4g32": (replace(W4, ragged=True), None),
    "w4g48 ragged": (QuantSpec(4, 48, ragged=True), None),
    "w4 per channel": (QuantSpec(4, -1, symmetric=True), None),
    "w4 per tensor": (QuantSpec(4, 0), None),
    "w4g96 in blocks": (QuantSpec(4, 96, ragged=True), None),
    "w4g64 a8 in groups": (QuantSpec(4, 64, ragged=True), NARROW),
    "w8 a8 in groups": (W8, NARROW),
    "w2g32 a8 in groups": (QuantSpec(2, 32, ragged=True), NARROW),
    "w8 a8 per token": (QuantSpec(8), InputSpec(A8)),
    "w8 a8 per token symmetric": (W8, InputSpec(replace(A8, symmetric=True))),
    "w8 a8 per token narrow": (W8, InputSpec(replace(A8, format="narrow"))),
    "w8 a8 per tensor": (QuantSpec(8), PER_TENSOR),
    "w8 per tensor a8 per tensor": (QuantSpec(8, 0), PER_TENSOR),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_layer_equals_dense_with_the_same_input_quantizer(name: str, tmp_path: Path) -> None:
    spec, inputs = SERVED[name]
    for index, shape in enumerate([(33, 96), (5, 250), (64, 256)]):
        layer = linear(spec, inputs, shape)
        if inputs is NARROW and shape[1] % 32:
            assert "full groups" in str(contrib.refuses(layer))
            continue
        assert contrib.refuses(layer) is None
        x = numbers(2, 7, shape[1])
        y = holed(layer, contrib.fill, x, tmp_path / str(index))
        assert relative(y, layer(x)) < (FLOAT32 if inputs is None else FLIPS)


def test_blockwise_inputs_are_narrow_and_not_the_symmetric_integers(tmp_path: Path) -> None:
    layer = linear(W4, NARROW)
    x = numbers(2, 7, 96)
    y = holed(layer, contrib.fill, x, tmp_path)
    exact = relative(y, layer(x))
    layer.input_quantizer = InputQuantizer(InputSpec(replace(A8, group_size=32, symmetric=True)))
    assert exact < 1e-4 < relative(y, layer(x))


@pytest.mark.parametrize(
    ("spec", "inputs", "reason"),
    [
        (W8, None, "8 bits with floating inputs: onnxruntime would dequantize the whole matrix"),
        (QuantSpec(2, 32), None, "2 bits with floating inputs"),
        (QuantSpec(3, 32), None, "it is w3g32: MatMulNBits has integers of 2, 4 and 8 bits"),
        (QuantSpec(4, 12), None, "group_size=12: its blocks are 16, 32, 64, 128 or 256"),
        (QuantSpec(4, 32, format="nf"), None, "it is nf4g32: MatMulNBits has integers"),
        (QuantSpec(4, 32, zero="real"), None, "its zeros are zero=real"),
        (W4, InputSpec(A8), "it is w4g32 with inputs a8: MatMulInteger has 8 bits and one scale"),
        (W4, InputSpec(replace(A8, group_size=32)), "MatMulNBits quantizes them in groups as"),
        (
            QuantSpec(4, 48),
            NARROW,
            "input.group_size=32 does not divide the weight's group_size=48",
        ),
        (W8, InputSpec(replace(A8, bits=4)), "inputs a4: a graph has inputs of 8 bits"),
    ],
)
def test_a_layer_that_would_run_otherwise_is_refused(
    spec: QuantSpec, inputs: InputSpec | None, reason: str
) -> None:
    assert reason in str(contrib.refuses(linear(spec, inputs)))


def test_a_model_is_refused_by_its_first_layer_that_does_not_fit(model: Model) -> None:
    changed = quantize(model, QuantSpec(8), None)
    reason = engines.choose("onnxruntime", changed)[1]
    assert re.match(r"onnxruntime: .*q_proj and 14 more layers: 8 bits with floating", str(reason))


def quantize(model: Model, spec: QuantSpec, inputs: InputSpec | None) -> Model:
    """Every layer to ``spec``; the ends of a tied pair are one tensor."""
    copied, shared = model.copy(), dict[int, QuantTensor]()
    for name in model.layers:
        weight = model.weight(name)
        quant = shared.setdefault(weight.data_ptr(), QuantTensor.quantize(weight, spec))
        layer = quantized(quant, model.get(name))
        if isinstance(layer, QuantLinear) and inputs is not None:
            layer.input_quantizer = InputQuantizer(inputs)
        copied.replace(name, layer)
    return copied


def perplexity(run: engines.Runner, ids: torch.Tensor, start: int) -> float:
    """Of tokens ``start`` and later ``(batch, tokens)``, decoded one by one on the cache."""
    logits, cache = run.prefill(ids[:, :start])
    losses = []
    for position in range(start, ids.shape[1]):
        losses.append(torch.nn.functional.cross_entropy(logits.double(), ids[:, position]))
        logits = run.decode(ids[:, position : position + 1], cache)
    return float(torch.stack(losses).mean().exp())


@pytest.mark.parametrize(
    ("spec", "inputs"),
    [(replace(W4, group_size=64), None), (replace(W4, group_size=64), NARROW)],
    ids=["w4", "w4a8"],
)
def test_the_reference_decodes_as_dense(spec: QuantSpec, inputs: InputSpec) -> None:
    source = models.load(models.ModelSource("reference", "pkg:reference"), Artifacts(None))
    model = quantize(source, spec, inputs)
    chosen, reason = engines.choose("onnxruntime", model)
    assert reason is None
    assert chosen is not None
    run, dense = chosen.build(model), runner.TorchRunner(model.module)
    texts = (source.tokenizer(text)["input_ids"] for text in documents("evaluation"))
    ids = torch.tensor([next(each for each in texts if len(each) >= 48)[:48] for _ in range(8)])
    assert perplexity(run, ids, 8) == pytest.approx(perplexity(dense, ids, 8), rel=1e-3)
    if inputs is None:  # an input that goes to its other code may turn the order of two tokens
        written = [runner.generate(each, ids[:, :8], 12) for each in (run, dense)]
        assert torch.equal(*written)


@pytest.mark.parametrize(
    ("spec", "inputs", "fill", "operators"),
    [
        (W4, None, contrib.fill, ["MatMulNBits"]),
        (W4, NARROW, contrib.fill, ["MatMulNBits"]),
        (W8, PER_TENSOR, contrib.fill, ["DynamicQuantizeMatMul"]),
        (W4, None, qdq.fill, ["MatMulNBits"]),  # what an exported file becomes
        (W8, PER_TENSOR, qdq.fill, ["DynamicQuantizeMatMul"]),
    ],
)
def test_what_runs_is_one_packed_operator(
    spec: QuantSpec, inputs: InputSpec | None, fill: Any, operators: list[str], tmp_path: Path
) -> None:
    layer, seen = linear(spec, inputs), tmp_path / "optimized.onnx"
    holed(layer, fill, numbers(2, 5, 96), tmp_path, optimized=seen)
    assert [node.op_type for node in onnx.load(seen).graph.node] == operators
