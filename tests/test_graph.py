"""The ONNX graph of a decoder: run by onnxruntime, its numbers are those of ``dense``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from bitsweep.activations import InputQuantizer
from bitsweep.export import onnx as export
from bitsweep.linear import QuantEmbedding, QuantLinear, quantized
from bitsweep.models import Model
from bitsweep.spec import InputSpec, QuantSpec
from bitsweep.tensor import QuantTensor

ort = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("transformers.exporters")

from bitsweep.graph import files, qdq, tracing  # noqa: E402

W4 = QuantSpec(bits=4, group_size=32)
W8 = QuantSpec(bits=8, symmetric=True)
A8 = QuantSpec(bits=8, scale_dtype="float32")
FLOAT32 = 1e-5
"""Relative error (Frobenius norm) that other orders of float32 sums leave."""


def session(path: Path, optimized: Path | None = None) -> Any:
    """What a reader of a written graph makes, inputs left floating."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(path, options)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def load(name: str, folder: Path, spec: QuantSpec) -> Model:
    """A model of which every layer is quantized; tied ends hold one tensor."""
    model = tiny.load(name, folder)
    shared: dict[int, QuantTensor] = {}
    for layer in model.layers:
        weight = model.weight(layer)
        quant = shared.setdefault(weight.data_ptr(), QuantTensor.quantize(weight, spec))
        model.replace(layer, quantized(quant, model.get(layer)))
    return model


def decode(run: Any, ids: Tensor, past: dict[str, Any] | None) -> dict[str, Any]:
    """One call: all outputs by name, ``past`` those of the call before."""
    feed = {"input_ids": ids.numpy()}
    length = 0
    for value in run.get_inputs():
        if value.name.startswith("past_key_values"):
            name = value.name.replace("past_key_values", "present")
            empty = np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32)
            feed[value.name] = empty if past is None else past[name]
            length = feed[value.name].shape[2]
    feed["attention_mask"] = np.ones((len(ids), length + ids.shape[1]), np.int64)
    names = [value.name for value in run.get_outputs()]
    return dict(zip(names, run.run(None, feed), strict=True))


@pytest.mark.parametrize(("name", "spec"), [("llama_tied", W4), ("gpt2", W8)])
def test_a_written_graph_with_its_cache_gives_the_logits_of_dense(
    name: str, spec: QuantSpec, tmp_path: Path
) -> None:
    model = load(name, tmp_path, spec)
    assert export.refuses(model) is None
    export.write(model, tmp_path)
    run = session(tmp_path / "model.onnx")
    ids = torch.randint(256, (2, 15), generator=torch.Generator().manual_seed(0))
    outputs, logits = None, []
    for part in (ids[:, :9], ids[:, 9:10], ids[:, 10:]):  # a prompt, a token, several
        outputs = decode(run, part, outputs)
        logits.append(torch.from_numpy(outputs["logits"]))
    with torch.inference_mode():
        expected = model.module(ids).logits
    assert relative(torch.cat(logits, 1), expected) < FLOAT32
    assert_small(model, tmp_path)


def assert_small(model: Model, folder: Path) -> None:
    """The numbers of the file are the packed codes and parameters, once each, and little else."""
    quants = {id(m.quant): m.quant for m in model.module.modules() if hasattr(m, "quant")}
    packed = sum(sum(quant.nbytes().values()) for quant in quants.values())
    others = sum(4 * parameter.numel() for parameter in model.module.parameters())
    written = (folder / "model.onnx.data").stat().st_size
    assert packed < written < packed + others + 8192  # indices of columns, rotary frequencies


def holed(
    layer: nn.Module, fill: Any, x: Tensor, folder: Path, optimized: Path | None = None
) -> Tensor:
    """``layer`` alone in a graph, filled by ``fill``, on ``x``."""
    model: Any = nn.Module()
    model.layer = layer
    embeds = isinstance(layer, QuantEmbedding)
    kind = ir.DataType.INT64 if embeds else ir.DataType.FLOAT
    value = ir.Value(name="x", shape=ir.Shape(x.shape), type=ir.TensorType(kind))
    node = ir.node("Hole", [value], {"layer": "layer"}, domain=tracing.DOMAIN)
    y = node.outputs[0]
    y.name, y.shape, y.dtype = "y", ir.Shape(layer(x).shape), ir.DataType.FLOAT
    opsets = {"": tracing.OPSET}
    graph = ir.Graph([value], [y], nodes=[node], opset_imports=opsets, name="layer")
    made = ir.Model(graph, ir_version=10)
    held: Any = replace_module(model)
    fill(made, held)
    folder.mkdir(exist_ok=True)
    run = session(files.write(made, folder), optimized)
    return torch.from_numpy(run.run(None, {"x": x.numpy()})[0])


def replace_module(module: nn.Module) -> Any:
    """As much of a Model as fills a graph: names and modules."""

    class Held:
        def __init__(self) -> None:
            self.module = module

        def get(self, name: str) -> nn.Module:
            return self.module.get_submodule(name)

    return Held()


def linear(
    spec: QuantSpec, inputs: InputSpec | None = None, shape: tuple[int, int] = (33, 96)
) -> QuantLinear:
    generator = torch.Generator().manual_seed(1)
    weight = 0.05 * torch.randn(*shape, generator=generator) + 0.01
    layer = QuantLinear(QuantTensor.quantize(weight, spec), None, torch.float32)
    layer.input_quantizer = None if inputs is None else InputQuantizer(inputs)
    return layer


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [-1, 0, 32, 40, 96])
@pytest.mark.parametrize("bits", [4, 8])
def test_qdq_of_a_layer_is_dense(bits: int, group: int, symmetric: bool, tmp_path: Path) -> None:
    layer = linear(QuantSpec(bits, group, symmetric, ragged=True))
    x = numbers(2, 5, 96)
    assert relative(holed(layer, qdq.fill, x, tmp_path), layer(x)) < FLOAT32


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("group", "width"), [(-1, 33), (0, 32), (32, 96), (40, 96), (16, 48)])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_an_embedding_are_dense_bit_for_bit(
    bits: int, group: int, width: int, symmetric: bool, tmp_path: Path
) -> None:
    spec = QuantSpec(bits, group, symmetric, ragged=True)
    quant = QuantTensor.quantize(numbers(20, width), spec)
    layer = QuantEmbedding(quant, None, None, torch.float32)
    ids = torch.tensor([[0, 19, 7], [7, 7, 3]])
    assert torch.equal(holed(layer, qdq.fill, ids, tmp_path), layer(ids))


@pytest.mark.parametrize(
    "inputs",
    [
        InputSpec(A8),
        InputSpec(replace(A8, symmetric=True)),
        InputSpec(replace(A8, group_size=32)),
        InputSpec(replace(A8, group_size=32, format="narrow")),
        InputSpec(A8, per="tensor"),
        InputSpec(replace(A8, symmetric=True), per="tensor"),
    ],
    ids=str,
)
def test_inputs_are_quantized_in_the_graph_as_dense_does_it(
    inputs: InputSpec, tmp_path: Path
) -> None:
    layer = linear(QuantSpec(8, 48 if inputs.per == "token" else -1), inputs)
    x = numbers(2, 5, 96)
    # An input halfway between two codes may go either way: one of 96 is off by a step of 255.
    assert relative(holed(layer, qdq.fill, x, tmp_path), layer(x)) < 1e-3


def test_pruned_weights_and_columns_in_another_order_are_in_the_graph(tmp_path: Path) -> None:
    layer = linear(W4)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3))
    mask = numbers(33, 96) > 0
    layer.quant = replace(layer.quant.masked(mask), permutation=order)
    x = numbers(2, 5, 96)
    assert relative(holed(layer, qdq.fill, x, tmp_path), layer(x)) < FLOAT32


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (QuantSpec(3, 32), "lm_head: bits=3: ONNX stores integers of 4 and 8 bits"),
        (QuantSpec(4, 32, format="nf"), "lm_head: format=nf: ONNX's DequantizeLinear has integers"),
        (QuantSpec(4, 32, zero="real"), "lm_head: zero=real: ONNX's zero points are codes"),
    ],
)
def test_what_onnx_can_not_say_is_refused_by_name(
    spec: QuantSpec, reason: str, model: Model
) -> None:
    changed = model.copy()
    quant = QuantTensor.quantize(model.weight("lm_head"), spec)
    changed.replace("lm_head", quantized(quant, model.get("lm_head")))
    assert str(export.refuses(changed)).startswith(reason)


def test_inputs_of_other_widths_are_refused_by_name(model: Model) -> None:
    changed = model.copy()
    layer = quantized(QuantTensor.quantize(model.weight("lm_head"), W8), model.get("lm_head"))
    layer.input_quantizer = InputQuantizer(InputSpec(replace(A8, bits=4)))
    changed.replace("lm_head", layer)
    assert export.refuses(changed) == (
        "lm_head: inputs a4: a graph has inputs of 8 bits, input.format=int or narrow"
    )
