"""Calibration: which windows, what layers see of them, and what is computed only once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.calibration.statistics import Hessian
from bitsweep.data import TextSource
from bitsweep.errors import UserError
from bitsweep.linear import quantized
from bitsweep.models import Model
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor

LETTERS = "abcdefghijklmnopqrstuvwxyz      "


@pytest.fixture(scope="module")
def spec(folder: Path) -> CalibrationSpec:
    """5000 random letters, one token each: 78 windows of 64."""
    path = folder / "text.txt"
    path.write_text("".join(random.Random(0).choices(LETTERS, k=5000)))
    return CalibrationSpec(TextSource("letters", str(path)), windows=16, window=64)


def calibrate(
    model: Model, spec: CalibrationSpec, artifacts: Artifacts | None = None
) -> Calibration:
    return Calibration(model, spec, artifacts or Artifacts(None))


def linears(model: Model, block: int | None) -> list[str]:
    return [x.name for x in model.layers.values() if x.block == block and x.kind != "embedding"]


def hessians_of_a_plain_pass(model: Model, tokens: Tensor) -> dict[str, Tensor]:
    """X^T X / tokens of every linear layer, by hooks on one ordinary forward pass, float64."""
    found: dict[str, Tensor] = {}

    def note(name: str, inputs: Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        found[name] = rows.T @ rows / len(rows)

    hooks = [
        model.get(name).register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name, layer in model.layers.items()
        if layer.kind != "embedding"
    ]
    with torch.no_grad():
        model.module(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def walk(model: Model, calibration: Calibration) -> Iterator[dict[str, Tensor]]:
    for block in calibration.blocks(model):
        here = block.index if block.index < len(model.blocks) else None
        observed = block.observe(linears(model, here), Hessian)
        yield {name: hessian.value() for name, hessian in observed.items()}


def test_windows_are_parts_of_the_text_that_do_not_overlap(
    model: Model, spec: CalibrationSpec
) -> None:
    tokens = calibrate(model, replace(spec, windows=78)).tokens
    texts = [model.tokenizer.decode(window) for window in tokens]
    whole = Path(spec.source.path).read_text()
    assert tokens.shape == (78, 64)
    assert sorted(whole.index(text) for text in texts) == list(range(0, 78 * 64, 64))


def test_the_seed_draws_the_windows_and_nothing_else_does(
    model: Model, spec: CalibrationSpec
) -> None:
    first = calibrate(model, spec).tokens
    random.seed(7)
    torch.manual_seed(7)
    assert torch.equal(first, calibrate(model, spec).tokens)
    assert not torch.equal(first, calibrate(model, replace(spec, seed=1)).tokens)


def test_the_identity_follows_the_tokens(model: Model, spec: CalibrationSpec) -> None:
    identity = calibrate(model, spec).identity
    assert identity == calibrate(model, spec).identity
    assert (identity["windows"], identity["window"], identity["seed"]) == (16, 64, 0)
    assert identity["sha256"] != calibrate(model, replace(spec, seed=1)).identity["sha256"]
    assert identity["text_sha256"] == calibrate(model, replace(spec, seed=1)).text_sha256


def test_no_window_given_takes_the_context(model: Model, spec: CalibrationSpec) -> None:
    assert calibrate(model, replace(spec, window=None)).tokens.shape == (16, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": 79}, "calibration.windows=79: the text letters has 78 windows of 64 tokens"),
        ({"window": 129}, "calibration.window=129: a window has 2 to 128 tokens"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_can(
    model: Model, spec: CalibrationSpec, change: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        calibrate(model, replace(spec, **change)).tokens  # noqa: B018 - raises


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_block_by_block_every_layer_sees_what_it_sees_in_one_pass(
    name: str, folder: Path, spec: CalibrationSpec
) -> None:
    model = tiny.load(name, folder)
    calibration = calibrate(model, replace(spec, windows=70))  # two batches, the last one smaller
    expected = hessians_of_a_plain_pass(model, calibration.tokens)
    seen: dict[str, Tensor] = {}
    for block in walk(model, calibration):
        seen |= block
    assert seen.keys() == expected.keys()
    for layer, hessian in expected.items():
        assert float((seen[layer] - hessian).abs().max() / hessian.abs().max()) < 1e-5, layer


def test_layers_that_read_one_tensor_share_one_statistic(
    model: Model, spec: CalibrationSpec
) -> None:
    block = next(calibrate(model, spec).blocks(model))
    found = block.observe(linears(model, 0), Hessian)
    q, k, v, o, gate, up, down = (found[name] for name in linears(model, 0))
    assert q is k is v
    assert gate is up
    assert len({id(x) for x in (q, o, gate, down)}) == 4


def test_a_block_sees_what_the_blocks_before_it_became(model: Model, spec: CalibrationSpec) -> None:
    changed = model.copy()
    calibration = calibrate(model, spec)
    name = "model.layers.0.mlp.down_proj"
    for block in calibration.blocks(changed):
        if block.index == 0:
            codes = QuantTensor.quantize(changed.weight(name), QuantSpec(2, 64))
            changed.replace(name, quantized(codes, changed.get(name)))
        if block.index == 1:
            seen = block.observe(linears(changed, 1), Hessian)
    layer = "model.layers.1.self_attn.q_proj"
    became = hessians_of_a_plain_pass(changed, calibration.tokens)[layer].float()
    before = hessians_of_a_plain_pass(model, calibration.tokens)[layer].float()
    torch.testing.assert_close(seen[layer].value(), became, rtol=1e-4, atol=1e-6)
    assert float((became - before).abs().max()) > 1e-3


def test_full_precision_statistics_are_made_once_for_all(
    model: Model, spec: CalibrationSpec, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = 0
    add = Hessian.add

    def counted(self: Hessian, inputs: Tensor) -> None:
        nonlocal batches
        batches += 1
        add(self, inputs)

    monkeypatch.setattr(Hessian, "add", counted)
    expected = hessians_of_a_plain_pass(model, calibrate(model, spec).tokens)
    for _ in range(3):  # as three points of a sweep: a Calibration each, one store
        calibration = calibrate(model, spec, Artifacts(artifacts.root))
        for index in range(3):
            for names, hessian in calibration.full_precision(index, Hessian).items():
                for name in names:
                    torch.testing.assert_close(
                        hessian, expected[name].float(), rtol=1e-4, atol=1e-5
                    )
    assert batches == 2 * 4 + 1  # q = k = v, o, gate = up, down of two blocks, and the head


def test_a_walk_leaves_the_model_and_the_random_state_alone(
    model: Model, spec: CalibrationSpec
) -> None:
    state, modules = torch.get_rng_state(), dict(model.module.named_modules())
    list(walk(model, calibrate(model, spec)))
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(model.module.named_modules()) == modules
    assert not any(module._forward_pre_hooks for module in modules.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma2", "gptj"])
def test_a_block_run_by_itself_gives_what_the_next_one_gets(
    name: str, folder: Path, spec: CalibrationSpec
) -> None:
    tested = tiny.load(name, folder)
    walk = calibrate(tested, spec).blocks(tested.copy())
    first = next(walk)
    outputs, some = first.outputs(), torch.tensor([7, 0, 3])
    part = first.run(first.inputs()[some], some)
    torch.testing.assert_close(part, outputs[some], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs, next(walk).inputs(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_stand_in_for_those_of_a_block_and_get_gradients(
    name: str, folder: Path, spec: CalibrationSpec
) -> None:
    tested = tiny.load(name, folder)
    block = next(calibrate(tested, spec).blocks(tested.copy()))
    layer = next(item.name for item in tested.layers.values() if item.role == "ffn.down")
    some, weight = torch.tensor([2, 5]), tested.weight(layer).detach().clone().requires_grad_()
    plain = block.run(block.inputs()[some], some)
    given = block.run(block.inputs()[some], some, {layer: weight})
    assert torch.equal(given, plain)
    # the block's last step adds x @ W^T to the residual: its output's sum has gradient sum(x) in
    # every row of W
    given.sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, weight.grad[:1].expand_as(weight))
    assert float(weight.grad.abs().max()) > 0


def test_a_pass_ends_at_the_last_layer_that_is_watched(
    model: Model, spec: CalibrationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, down = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
    whole = next(calibrate(model, spec).blocks(model)).observe([up], Hessian)[up].value()
    monkeypatch.setattr("bitsweep.calibration.replay.BATCH_TOKENS", 256)
    block = next(calibrate(model, spec).blocks(model))
    computed: list[int] = []
    hook = model.get(down).register_forward_hook(lambda *_: computed.append(1))
    pieces = block.observe([up], Hessian)[up].value()
    hook.remove()
    assert len(computed) == 1  # of four batches: the first shows which layer comes last
    torch.testing.assert_close(pieces, whole)
