"""Methods of other libraries: their codes are in our format, their modules do the computing."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import tiny
import torch

from bitsweep import formats, policies
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.data import TextSource
from bitsweep.library import LibraryLinear
from bitsweep.methods import Method, Particular
from bitsweep.methods.bitsandbytes import Bitsandbytes
from bitsweep.methods.torch_dynamic import TorchDynamic
from bitsweep.methods.torchao import Torchao
from bitsweep.models import Model
from bitsweep.policies import Policy, Rule
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, InputSpec, LayerSpec, QuantSpec

UNIFORM = Policy("uniform", (Rule(role="linear"),))
PLAIN = QuantSpec(8, PER_CHANNEL, scale_dtype="float32")
TOKEN, TENSOR = InputSpec(PLAIN), InputSpec(PLAIN, per="tensor")
SIGNED = InputSpec(replace(PLAIN, symmetric=True))
LOG = replace(PLAIN, format="log")
GROUPED = InputSpec(replace(SIGNED.quant, group_size=32))

POINTS: list[tuple[Method, QuantSpec, InputSpec | None]] = [
    (TorchDynamic(), QuantSpec(8, PER_CHANNEL), TENSOR),
    (TorchDynamic(), QuantSpec(8, PER_TENSOR), TENSOR),
    (Torchao(), QuantSpec(8, PER_CHANNEL, symmetric=True), None),
    (Torchao(), QuantSpec(8, 32, symmetric=True), None),
    (Torchao(), QuantSpec(8, PER_CHANNEL, symmetric=True), SIGNED),
    (Torchao(), QuantSpec(4, 32), None),
    (Torchao(), QuantSpec(3, 32, symmetric=True), None),
    (Torchao(), QuantSpec(4, 32, symmetric=True), TOKEN),
    (Torchao(), QuantSpec(8, PER_CHANNEL, format="e4m3"), None),
    (Bitsandbytes(), QuantSpec(8, PER_CHANNEL, symmetric=True), SIGNED),
    (Bitsandbytes(), QuantSpec(4, 64, format="nf"), None),
]


def name(point: tuple[Method, QuantSpec, InputSpec | None]) -> str:
    method, spec, inputs = point
    return f"{type(method).__name__}-{LayerSpec(spec, inputs)}"


every_point = pytest.mark.parametrize("point", POINTS, ids=map(name, POINTS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.load("qwen2", tmp_path_factory.mktemp("library"))  # its q, k, v have biases


def quantize(point: tuple[Method, QuantSpec, InputSpec | None], model: Model) -> Model:
    method, spec, inputs = point
    assert isinstance(method, Particular)
    if importlib.util.find_spec(method.library) is None:
        pytest.skip(f"{method.library} is not installed")
    plan = policies.make(UNIFORM, model, method.resolve(spec), "error", inputs)
    for layer, wanted in plan.layers.items():
        assert formats.get(wanted.weight.format).skip(wanted.weight) is None
        assert method.skip(wanted.weight) is None
        assert method.skip_layer(model.layers[layer], wanted) is None
    text = CalibrationSpec(TextSource("none", path=""))
    result = method(model.copy(), plan, Calibration(model, text, Artifacts(None)))
    policies.audit(result, plan)
    return result


@every_point
def test_the_codes_are_the_weights_that_the_library_multiplies_with(point, model: Model) -> None:
    # The columns of the identity give the weight back, where the library does not round inputs;
    # an input of one 1 and zeros is exact in every symmetric and asymmetric grid but for its scale.
    result = quantize(point, model)
    layer = "model.layers.1.mlp.up_proj"
    module = result.get(layer)
    assert isinstance(module, LibraryLinear)
    weight = module(torch.eye(module.in_features)).T
    step = weight.abs().max() / 100
    torch.testing.assert_close(weight, module.weight, atol=float(step), rtol=0.01)


@every_point
def test_the_model_is_hardly_another(point, model: Model) -> None:
    result = quantize(point, model)
    ids = torch.arange(64).view(1, 64)
    with torch.no_grad():
        before, after = model.module(ids).logits, result.module(ids).logits
    bound = {8: 0.15, 4: 0.6, 3: 1.0}[int(point[1].bits)]
    assert float((after - before).std() / before.std()) < bound


@every_point
def test_a_second_run_has_the_same_codes(point, model: Model) -> None:
    one, two = (quantize(point, model).get("model.layers.0.mlp.down_proj") for _ in range(2))
    assert torch.equal(one.quant.codes, two.quant.codes)


@pytest.mark.parametrize(
    ("method", "spec", "inputs", "reason"),
    [
        (TorchDynamic(), QuantSpec(4, PER_CHANNEL), TENSOR, "format=int bits=8 only"),
        (TorchDynamic(), QuantSpec(8, 64), TENSOR, "group_size=64"),
        (TorchDynamic(), QuantSpec(8, PER_CHANNEL), None, "input.per=tensor"),
        (TorchDynamic(), QuantSpec(8, PER_CHANNEL), replace(TENSOR, quant=LOG), "asks for alog8t"),
        (TorchDynamic(), QuantSpec(8, PER_CHANNEL), replace(SIGNED, per="tensor"), "a8t-sym"),
        (Torchao(), QuantSpec(4, PER_TENSOR), None, "group_size=0"),
        (Torchao(), QuantSpec(4, 32), SIGNED, "input.symmetric=true"),
        (Torchao(), QuantSpec(4, 32), TENSOR, "of 8 bits per token"),
        (Bitsandbytes(), QuantSpec(3, 64), None, "format=nf bits=4"),
        (Bitsandbytes(), QuantSpec(8, PER_CHANNEL), None, "input.symmetric=true"),
        (Bitsandbytes(), QuantSpec(8, PER_CHANNEL), GROUPED, "asks for a8g32-sym"),
        (Bitsandbytes(), QuantSpec(4, 64, format="nf"), TOKEN, "in full precision"),
    ],
)
def test_what_a_library_cannot_express_is_refused(
    method: Method, spec: QuantSpec, inputs: InputSpec | None, reason: str, model: Model
) -> None:
    assert isinstance(method, Particular)
    layer = model.layers["model.layers.0.mlp.up_proj"]
    resolved = method.resolve(spec)
    found = method.skip(resolved) or method.skip_layer(layer, LayerSpec(resolved, inputs))
    assert reason in (found or "")
    embedding = next(layer for layer in model.layers.values() if layer.kind == "embedding")
    assert "embedding" in (method.skip_layer(embedding, LayerSpec(resolved, inputs)) or "")
