"""The contract of every packed kernel on disk, and of the engines made of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import executed
import pytest
import tiny
import torch
from executed import PLANS, W8, tokens, with_layers
from torch import Tensor, nn

from bitsweep import engines, models
from bitsweep.activations import InputQuantizer
from bitsweep.artifacts import Artifacts
from bitsweep.engines import registry, runner
from bitsweep.errors import UserError
from bitsweep.library import LibraryLinear
from bitsweep.linear import QuantEmbedding, QuantLinear, quantized
from bitsweep.models import Model
from bitsweep.reference.evaluate import evaluation_ids
from bitsweep.spec import InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

torch.set_num_threads(1)

W4 = QuantSpec(bits=4, group_size=32)
KERNELS = list(engines.kernels())
GRAPHS = list(engines.graphs())
SHAPES = [(16, 32), (17, 64), (40, 33), (7, 172), (96, 96), (33, 512), (160, 384)]
GRIDS = [
    {},
    {"symmetric": True},
    {"zero": "real"},
    {"scale_dtype": "float32"},
    {"scale_dtype": "power_of_two", "symmetric": True},
]


INPUTS = [None, *dict.fromkeys(plan.inputs for plan in PLANS.values() if plan.inputs is not None)]


def linear(
    out: int, columns: int, spec: QuantSpec, inputs: InputSpec | None = None, ordered: bool = False
) -> QuantLinear:
    """Random codes; ``ordered``: groups of columns in another order, as GPTQ's act_order has."""
    generator = torch.Generator().manual_seed(out * columns)
    weight = 0.05 * torch.randn(out, columns, generator=generator) + 0.01
    quant = QuantTensor.quantize(weight, spec)
    if ordered:
        quant = replace(quant, permutation=torch.randperm(columns, generator=generator))
    bias = nn.Parameter(torch.randn(out, generator=generator)) if out % 2 else None
    layer = QuantLinear(quant, bias, torch.float32)
    layer.input_quantizer = None if inputs is None else InputQuantizer(inputs)
    return layer


def rows(count: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(count + columns)
    return torch.randn(count, columns, generator=generator).to(torch.bfloat16)


@functools.cache
def weights(bits: int) -> list[QuantLinear]:
    """A layer of each grid, group and awkward shape."""
    return [
        linear(out, columns, QuantSpec(bits, group, ragged=True, **grid), None, out % 3 == 1)  # type: ignore[arg-type]
        for group in (-1, 0, 32, 64, 96, 256)
        for grid in GRIDS
        for out, columns in SHAPES
    ]


def supported(kernel: engines.Kernel) -> Iterator[QuantLinear]:
    """The layers of 4 and 8 bits that the kernel takes, with any inputs that it takes."""
    for bits in (4, 8):
        for layer in weights(bits):
            for inputs in INPUTS:
                layer.input_quantizer = None if inputs is None else InputQuantizer(inputs)
                reason = kernel.refuses(layer)
                if reason is None:
                    yield layer
                else:
                    assert re.match(r"it(s inputs)? ", reason), "a reason speaks of the layer"


@pytest.mark.parametrize("name", KERNELS)
def test_a_packed_layer_strays_from_dense_by_no_more_than_bf16_rounds(name: str) -> None:
    kernel, seen = engines.kernels()[name], 0
    for layer in supported(kernel):
        x = rows(1 + seen % 5, layer.in_features)
        y, expected = kernel.pack(layer)(x).float(), layer(x.float())
        # |w| <= |code - middle| * scale + |middle - zero| * scale; both terms round by 2^-9 at
        # most, a part of the sum may round once more (8 bits: rank one, halves), the output and
        # the output with its bias once each. Quantized inputs are the same to the last bit.
        middle = 2 ** (layer.quant.spec.bits - 1)
        zero_only = replace(layer.quant, codes=torch.full_like(layer.quant.codes, int(middle)))
        shift = zero_only.dequantize()
        parts = (layer.weight - shift).abs() + shift.abs()
        bias = 0 if layer.bias is None else layer.bias.abs()
        given = x.float() if layer.input_quantizer is None else layer.input_quantizer(x.float())
        bound = 2**-8 * (given.abs() @ parts.T + expected.abs() + bias)
        assert ((y - expected).abs() <= bound + 1e-6).all(), layer.quant.spec
        if layer.out_features >= 16:
            assert (y - expected).norm() <= kernel.TOLERANCE * expected.norm(), layer.quant.spec
        seen += 1
    assert seen >= 50


@pytest.mark.parametrize("name", KERNELS)
def test_leading_dimensions_are_kept(name: str) -> None:
    kernel = engines.kernels()[name]
    layer = next(supported(kernel))
    x = rows(6, layer.in_features)
    packed = kernel.pack(layer)
    assert torch.equal(packed(x.view(2, 3, -1)), packed(x).view(2, 3, -1))
    assert packed(x).dtype == torch.bfloat16
    assert packed(x[:0]).shape == (0, layer.out_features)  # an expert whom no token chose


@pytest.mark.parametrize("group", [-1, 32, 48])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_lookup_is_the_dense_one_bit_for_bit(bits: int, group: int) -> None:
    for grid in GRIDS:
        spec = QuantSpec(bits=bits, group_size=group, ragged=True, **grid)  # type: ignore[arg-type]
        quant = QuantTensor.quantize(torch.randn(20, 99), spec)
        layer = QuantEmbedding(quant, None, torch.tensor(3.0), torch.bfloat16)
        kernel = next(k for k in engines.kernels().values() if k.refuses(layer) is None)
        ids = torch.tensor([[0, 19, 7], [7, 7, 3]])
        assert torch.equal(kernel.pack(layer)(ids), layer(ids))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(W4, bits=3), "torch_int4: it has 3 bits, not 4.*torch_int8: it has 3 bits, not 8"),
        (replace(W4, bits=2), "it has 2 bits"),
        (replace(W8, bits=6), "it has 6 bits"),
        (replace(W4, group_size=16), "torch_int4: its group_size=16 is not a multiple of 32"),
        (
            replace(W8, group_size=16),
            "torch_int4_pair: its group_size=16 is not.*torch_int8: it has groups of 16, not one",
        ),
    ],
)
def test_a_layer_without_a_kernel_is_refused_by_name(
    spec: QuantSpec, reason: str, llama: Model
) -> None:
    name = "model.layers.1.mlp.up_proj"
    model = with_layers(llama, {name: spec})
    why = engines.Layerwise.plan(list(engines.kernels().values()), model).refuses(model)
    assert why is not None
    assert why.startswith(f"no packed kernel for {name} (")
    assert re.search(reason, why)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.load("llama", tmp_path_factory.mktemp("llama"))


def by_role(model: Model) -> Model:
    """int8 everywhere, int4 in groups in the feed-forward: embedding and head included."""
    return with_layers(
        model,
        {n: W4 if layer.role.startswith("ffn") else W8 for n, layer in model.layers.items()},
    )


def test_a_mix_by_role_runs_each_layer_on_its_own_kernel(llama: Model) -> None:
    engine, reason = engines.choose("auto", by_role(llama))
    assert reason is None
    assert engine is not None
    assert engine.name == "torch_int4+torch_int8"
    packed = engine.build(by_role(llama)).module  # type: ignore[attr-defined]
    kinds = {name: type(packed.get_submodule(name)).__name__ for name in llama.layers}
    assert kinds["model.layers.0.mlp.down_proj"] == "Int4Linear"
    assert kinds["model.layers.0.self_attn.q_proj"] == kinds["lm_head"] == "Int8Linear"
    assert kinds["model.embed_tokens"] == "Lookup"
    assert not any(isinstance(m, QuantLinear | QuantEmbedding) for m in packed.modules())


def test_one_kernel_asked_for_refuses_what_only_the_other_runs(llama: Model) -> None:
    engine, reason = engines.choose("torch_int4", by_role(llama))
    assert engine is None
    assert reason == (
        "no packed kernel for model.embed_tokens and 9 more layers "
        "(torch_int4: it has 8 bits, not 4)"
    )


def test_dense_is_for_models_without_quantized_layers_only(llama: Model) -> None:
    engine, reason = engines.choose("auto", llama)
    assert engine is not None
    assert engine.name == "dense"
    engine, reason = engines.choose("dense", with_layers(llama, {"lm_head": W8}))
    assert engine is None
    assert reason == "dense would time dequantized weights: lm_head"


def test_kernels_for_weights_refuse_a_layer_whose_inputs_are_quantized(llama: Model) -> None:
    model = with_layers(llama, {"lm_head": W4, "model.embed_tokens": W4})
    model.get("lm_head").input_quantizer = InputQuantizer(InputSpec(QuantSpec(8)))
    assert engines.choose("torch_int4", model)[1] == (
        "no packed kernel for lm_head (torch_int4: it has quantized inputs (a8-float16), and this "
        "kernel takes floating ones)"
    )


def test_a_quantized_cache_is_refused_by_all(llama: Model) -> None:
    model = with_layers(llama, {"lm_head": W8})
    model.plan = Plan({"lm_head": LayerSpec(W8)}, kv=W8)
    assert "key-value cache" in str(engines.choose("auto", model)[1])


def test_a_layer_that_a_library_executes_is_no_kernels(llama: Model) -> None:
    model, name = llama.copy(), "model.layers.0.mlp.up_proj"
    quant = QuantTensor.quantize(model.weight(name), W4)
    assert engines.choose("auto", with_layers(llama, {name: W4}))[1] is None
    model.replace(name, LibraryLinear(nn.Identity(), quant, 0, None, torch.float32))
    assert engines.choose("torch_int4", model) == (
        None,
        f"no engine here knows another library's layers: {name}",
    )


def test_an_unknown_engine_is_a_mistake_that_names_the_known_ones(llama: Model) -> None:
    with pytest.raises(UserError, match=r"engine=vllm: no such engine.*auto, dense, torch_int4"):
        engines.choose("vllm", llama)


def test_building_an_engine_leaves_the_model_as_it_was(llama: Model) -> None:
    model = by_role(llama)
    ids = tokens((1, 12))
    before = model.module(ids).logits
    engine, _ = engines.choose("auto", model)
    assert engine is not None
    engine.build(model).prefill(ids)
    assert torch.equal(model.module(ids).logits, before)
    assert {p.dtype for p in llama.module.parameters()} == {torch.float32}


@pytest.fixture(scope="module")
def trained() -> tuple[Model, Tensor]:
    """The reference, and 32 windows of its evaluation text."""
    model = models.load(models.ModelSource("reference", "pkg:reference"), Artifacts(None))
    return model, evaluation_ids(model.tokenizer, 40)[: 32 * 48].view(32, 48)


def assert_same_perplexity(name: str, model: Model, ids: Tensor) -> None:
    """Within 0.1 % of exact layers in a model of the engine's own dtype."""
    engine, _ = engines.choose(name, model)
    assert engine is not None
    run = executed.perplexity(engine.build(model), ids)
    full = executed.perplexity(executed.dense(model, executed.compute_dtype(name)), ids)
    assert run == pytest.approx(full, rel=1e-3), engine.name


@pytest.mark.parametrize("plan", PLANS)
def test_the_whole_models_perplexity_on_kernels_is_that_of_dense_in_bf16(
    plan: str, trained: tuple[Model, Tensor]
) -> None:
    model, ids = executed.uniform(trained[0], plan), trained[1]
    kernels = [name for name in KERNELS if engines.choose(name, model)[0] is not None]
    if not kernels:
        reasons = [str(engines.choose(name, model)[1]) for name in KERNELS]
        assert all(re.match(r"no packed kernel for \S+.* \(\w+: it", why) for why in reasons)
    for name in kernels:
        assert_same_perplexity(name, model, ids)


def test_a_mix_by_roles_perplexity_is_that_of_dense_in_bf16(trained: tuple[Model, Tensor]) -> None:
    assert_same_perplexity("auto", by_role(trained[0]), trained[1])


@pytest.mark.parametrize("name", GRAPHS)
def test_the_whole_models_perplexity_in_a_runtime_is_that_of_dense(
    name: str, trained: tuple[Model, Tensor]
) -> None:
    """Of the last plan that it takes: with quantized inputs where it takes such."""
    if (reason := engines.failure(name)) is not None:
        pytest.skip(reason)
    made = (executed.uniform(trained[0], plan) for plan in reversed(PLANS))
    model = next(model for model in made if engines.choose(name, model)[0] is not None)
    assert_same_perplexity(name, model, trained[1])


@pytest.mark.parametrize("plan", ["by_role", "w8-sym a8"])
def test_a_trained_models_perplexity_is_that_of_dense_in_bf16(plan: str, shared_data: Path) -> None:
    path = str(shared_data / "models" / "stories3M")
    source = models.load(models.ModelSource("stories3M", path), Artifacts(None))
    text = (shared_data / "text/tinystories/tinystories_val_head.txt").read_text()[:20_000]
    ids = torch.tensor(source.tokenizer(text, verbose=False)["input_ids"])
    model = by_role(source) if plan == "by_role" else executed.uniform(source, plan)
    assert_same_perplexity("auto", model, ids[: len(ids) // 256 * 256].view(-1, 256))


@pytest.mark.parametrize("plan", ["w8-sym", "w8-sym a8"])
def test_generation_on_kernels_is_that_of_dense_in_bf16(
    plan: str, trained: tuple[Model, Tensor]
) -> None:
    """Rounding decides where two tokens are nearly as likely; from there on texts may differ."""
    model, prompts = executed.uniform(trained[0], plan), trained[1][:16, :12]
    engine, _ = engines.choose("auto", model)
    assert engine is not None
    packed = engines.generate(engine.build(model), prompts, 16)
    full = engines.generate(executed.dense(model, torch.bfloat16), prompts, 16)
    assert packed.shape == (16, 16)
    assert (packed == full).float().mean() > 0.8
    assert (packed[:, 0] == full[:, 0]).float().mean() > 0.9


def test_generation_fills_up_a_row_that_ended_and_stops_when_all_have() -> None:
    """The next token is the last one plus 1; token 5 ends."""

    def logits(ids: Tensor) -> Tensor:
        return nn.functional.one_hot(ids[:, -1] + 1, 16).float()

    counting = SimpleNamespace(
        prefill=lambda ids: (logits(ids), None), decode=lambda ids, cache: logits(ids)
    )
    prompts = torch.tensor([[0, 2], [0, 3]])
    assert engines.generate(counting, prompts, 9, ends=[5]).tolist() == [[3, 4, 5], [4, 5, 5]]
    assert engines.generate(counting, prompts, 2).tolist() == [[3, 4], [4, 5]]


@pytest.mark.parametrize("inputs", [None, executed.int8(symmetric=False)], ids=["a16", "a8"])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_decoding_with_a_cache_equals_reading_all_at_once(
    name: str, inputs: InputSpec | None, tmp_path: Path
) -> None:
    source = tiny.load(name, tmp_path)
    model = by_role(source) if inputs is None else executed.uniform(source, "w8 a8")
    engine, reason = engines.choose("auto", model)
    assert reason is None
    assert engine is not None
    run = engine.build(model)
    ids = tokens((2, 20))
    logits, cache = run.prefill(ids[:, :17])
    for position in range(17, 20):
        logits = run.decode(ids[:, position : position + 1], cache)
    with torch.inference_mode():
        expected = model.module(ids).logits[:, -1]
    assert logits.shape == expected.shape
    assert (logits - expected).norm() <= 0.05 * expected.norm()


def test_tied_ends_of_a_model_both_run_packed(tmp_path: Path) -> None:
    model = tiny.load("llama_tied", tmp_path)
    quant = QuantTensor.quantize(model.weight("model.embed_tokens"), W8)
    for name in ("model.embed_tokens", "lm_head"):
        model.replace(name, quantized(quant, model.get(name)))
    engine, _ = engines.choose("auto", model)
    assert engine is not None
    run = engine.build(model)
    ids = tokens((1, 9))
    with torch.inference_mode():
        expected = model.module(ids).logits[:, -1]
    assert (run.prefill(ids)[0] - expected).norm() <= 0.05 * expected.norm()


def test_cast_keeps_ties_and_leaves_buffers_and_the_source_alone(tmp_path: Path) -> None:
    model = tiny.load("llama_tied", tmp_path)
    cast = runner.cast(model, torch.bfloat16)
    assert {p.dtype for p in cast.module.parameters()} == {torch.bfloat16}
    assert cast.get("lm_head").weight is cast.get("model.embed_tokens").weight
    assert {b.dtype for b in cast.module.buffers()} == {torch.float32}
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}


def test_available_repeats_a_kernels_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(name="broken", device="cpu", TOLERANCE=0.01, refuses=lambda _: None)
    broken.pack = lambda layer: (_ for _ in ()).throw(RuntimeError("no such\ninstruction"))
    wrong = SimpleNamespace(
        **{**vars(broken), "name": "wrong", "pack": lambda _: lambda x: x[:, :32]}
    )
    kernels = {**engines.kernels(), "broken": broken, "wrong": wrong}
    monkeypatch.setattr(registry, "kernels", lambda: kernels)
    said = engines.available()
    assert said["torch_int4"] == said["torch_int8"] == said["dense"] == "ok"
    assert said["broken"] == "RuntimeError: no such"
    assert said["wrong"].startswith("wrong by")
