"""Proxies of the loss against their definitions, on a tiny model."""

from __future__ import annotations

import pytest
import tiny
import torch

from bitsweep.data import Data, Reference, TextSource
from bitsweep.methods import place
from bitsweep.probes.proxies import NAMES, Proxies, gradients
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

UP = "model.layers.0.mlp.up_proj"
SPEC = QuantSpec(bits=3, group_size=32)
TEXT = "Seven grey geese went home before the rain began. " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def model(folder):
    return tiny.load("llama_tied", folder)


def reference(model, folder, artifacts, calibrates=True):
    path = folder / "text.txt"
    path.write_text(TEXT)
    text = TextSource("text", str(path)) if calibrates else None
    return Reference(model, Data("d", window=64, calibration=text), artifacts)


def rounded(model, *names):
    copy = model.copy()
    codes = {name: QuantTensor.quantize(model.weight(name), SPEC) for name in names[:1]}
    for name in names:
        place(copy, name, codes[names[0]])
    copy.plan = Plan({name: LayerSpec(SPEC) for name in names})
    return copy


def windows(model):
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids)[: len(ids) // 64 * 64].view(-1, 64)


def values(measurement):
    return {metric.name: metric.value for metric in measurement.metrics}


def test_the_hessian_proxy_is_the_squared_error_of_the_output_per_token(model, folder, artifacts):
    quantized = rounded(model, UP)
    seen = []
    hook = model.get(UP).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.module(windows(model))
        hook.remove()
        error = (quantized.get(UP)(seen[0]) - model.get(UP)(seen[0])).square().sum(-1).mean()
    found = values(Proxies()(quantized, reference(model, folder, artifacts)))
    assert found["hessian_error"] == pytest.approx(float(error), rel=1e-4)


def test_gradients_are_those_of_autograd_on_a_model_of_its_own(model):
    own = tiny.build("llama_tied")
    own.load_state_dict(model.module.state_dict())
    sums = {}
    for window in windows(model):
        own.zero_grad()
        logits = own(window[None]).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, window[1:]).backward()
        for name, parameter in own.named_parameters():
            mean, square = sums.get(name, (0, 0))
            sums[name] = (mean + parameter.grad, square + parameter.grad.square())
    found = gradients(model, windows(model))
    count = len(windows(model))
    for name in (UP, "model.embed_tokens"):
        mean, square = sums[f"{name}.weight"]
        torch.testing.assert_close(found[f"mean {name}"], mean / count, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found[f"square {name}"], square / count, rtol=1e-4, atol=1e-9)
    assert "mean lm_head" not in found  # one tensor with the embedding
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_gradient_and_fisher_are_sums_over_the_error(model, folder, artifacts):
    quantized = rounded(model, UP)
    error = quantized.weight(UP) - model.weight(UP)
    known = gradients(model, windows(model))
    found = values(Proxies()(quantized, reference(model, folder, artifacts)))
    first = float((known[f"mean {UP}"] * error).abs().sum())
    second = float((known[f"square {UP}"] * error**2).sum() / 2)
    assert found["gradient_error"] == pytest.approx(first, rel=1e-4)
    assert found["fisher_error"] == pytest.approx(second, rel=1e-4)


def test_an_embedding_counts_by_how_often_its_tokens_come(model, folder, artifacts):
    names = ("model.embed_tokens", "lm_head")
    quantized = rounded(model, *names)
    error = (quantized.weight(names[0]) - model.weight(names[0])).square().sum(1)
    expected = float(error[windows(model).flatten()].mean())
    found = values(Proxies()(quantized, reference(model, folder, artifacts)))
    assert found["hessian_error"] == pytest.approx(expected, rel=1e-4)


def test_without_a_calibration_text_there_is_a_reason(model, folder, artifacts):
    found = Proxies()(rounded(model, UP), reference(model, folder, artifacts, calibrates=False))
    assert [metric.name for metric in found.metrics] == list(NAMES)
    assert {metric.reason for metric in found.metrics} == {"data=d has no calibration text"}
