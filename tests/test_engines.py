"""The contract of every packed kernel on disk, and of the engines made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import Tensor, nn

from bitsweep import engines, models
from bitsweep.activations import InputQuantizer
from bitsweep.artifacts import Artifacts
from bitsweep.engines import registry, runner
from bitsweep.errors import UserError
from bitsweep.library import LibraryLinear
from bitsweep.linear import QuantEmbedding, QuantLinear, quantized
from bitsweep.models import Model
from bitsweep.spec import InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

torch.set_num_threads(1)

W4 = QuantSpec(bits=4, group_size=32)
W8 = QuantSpec(bits=8)
KERNELS = list(engines.kernels())
SHAPES = [(16, 32), (17, 64), (40, 33), (7, 172), (96, 96), (33, 512), (160, 384)]
GRIDS = [
    {},
    {"symmetric": True},
    {"zero": "real"},
    {"scale_dtype": "float32"},
    {"scale_dtype": "power_of_two", "symmetric": True},
]


def linear(out: int, columns: int, spec: QuantSpec, bias: bool = False) -> QuantLinear:
    generator = torch.Generator().manual_seed(out * columns)
    weight = 0.05 * torch.randn(out, columns, generator=generator) + 0.01
    quant = QuantTensor.quantize(weight, spec)
    values = nn.Parameter(torch.randn(out, generator=generator)) if bias else None
    return QuantLinear(quant, values, torch.float32)


def inputs(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.randn(rows, columns, generator=generator).to(torch.bfloat16)


def supported(kernel: engines.Kernel) -> Iterator[QuantLinear]:
    """A layer of each grid, group and awkward shape that the kernel takes."""
    for bits in (4, 8):
        for group in (-1, 0, 32, 64, 96, 256):
            for grid in GRIDS:
                spec = QuantSpec(bits=bits, group_size=group, ragged=True, **grid)  # type: ignore[arg-type]
                for out, columns in SHAPES:
                    layer = linear(out, columns, spec, bias=out % 2 == 1)
                    if kernel.refuses(layer) is None:
                        yield layer


@pytest.mark.parametrize("name", KERNELS)
def test_a_packed_layer_strays_from_dense_by_no_more_than_bf16_rounds(name: str) -> None:
    kernel, seen = engines.kernels()[name], 0
    for layer in supported(kernel):
        x = inputs(1 + seen % 5, layer.in_features)
        y, expected = kernel.pack(layer)(x).float(), layer(x.float())
        # |w| <= |code - middle| * scale + |middle - zero| * scale; both terms round by 2^-9 at
        # most, a part of the sum may round once more (8 bits: rank one, halves), the output and
        # the output with its bias once each.
        middle = 2 ** (layer.quant.spec.bits - 1)
        zero_only = replace(layer.quant, codes=torch.full_like(layer.quant.codes, int(middle)))
        shift = zero_only.dequantize()
        parts = (layer.weight - shift).abs() + shift.abs()
        bias = 0 if layer.bias is None else layer.bias.abs()
        bound = 2**-8 * (x.float().abs() @ parts.T + expected.abs() + bias)
        assert ((y - expected).abs() <= bound + 1e-6).all(), layer.quant.spec
        if layer.out_features >= 16:
            assert (y - expected).norm() <= kernel.TOLERANCE * expected.norm(), layer.quant.spec
        seen += 1
    assert seen >= 50


@pytest.mark.parametrize("name", KERNELS)
def test_leading_dimensions_are_kept(name: str) -> None:
    kernel = engines.kernels()[name]
    layer = next(supported(kernel))
    x = inputs(6, layer.in_features)
    packed = kernel.pack(layer)
    assert torch.equal(packed(x.view(2, 3, -1)), packed(x).view(2, 3, -1))
    assert packed(x).dtype == torch.bfloat16


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
    engine, why = engines.choose("auto", with_layers(llama, {name: spec}))
    assert engine is None
    assert why is not None
    assert why.startswith(f"no packed kernel for {name} (")
    assert re.search(reason, why)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.load("llama", tmp_path_factory.mktemp("llama"))


def with_layers(model: Model, specs: dict[str, QuantSpec]) -> Model:
    """A copy in which each named layer is rounded to nearest, and the plan says so."""
    copied = model.copy()
    for name, spec in specs.items():
        quant = QuantTensor.quantize(model.weight(name), spec)
        copied.replace(name, quantized(quant, model.get(name)))
    copied.plan = Plan({name: LayerSpec(spec) for name, spec in specs.items()})
    return copied


def by_role(model: Model) -> Model:
    """int8 everywhere, int4 in groups in the feed-forward: embedding and head included."""
    return with_layers(
        model,
        {n: W4 if layer.role.startswith("ffn") else W8 for n, layer in model.layers.items()},
    )


def tokens(model: Model, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, shape, generator=generator)


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
    ids = tokens(model, (1, 12))
    before = model.module(ids).logits
    engine, _ = engines.choose("auto", model)
    assert engine is not None
    engine.build(model).prefill(ids)
    assert torch.equal(model.module(ids).logits, before)
    assert {p.dtype for p in llama.module.parameters()} == {torch.float32}


def dense_bf16(model: Model) -> nn.Module:
    """The same codes dequantized, everything in bf16: what the packed model must equal."""
    dense = runner.cast(model, torch.bfloat16)
    for name, layer in engines.quantized_layers(model).items():
        like = dense.get(name)  # its bias is bf16 already; its weight makes the layer's dtype
        like.compute_dtype = torch.bfloat16  # type: ignore[assignment]
        like._dense = None  # type: ignore[assignment]
        dense.replace(name, quantized(layer.quant, like))
    return dense.module


def perplexity(module: nn.Module, ids: Tensor) -> float:
    with torch.inference_mode():
        logits = torch.cat([module(part).logits[:, :-1].double() for part in ids.split(16)])
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return float(losses.exp())


def assert_same_perplexity(model: Model, ids: Tensor) -> None:
    """Within 0.1 %. bf16 itself, packed or not, moves a small model's by up to 0.2 %."""
    engine, _ = engines.choose("auto", model)
    assert engine is not None
    packed = perplexity(engine.build(model).module, ids)  # type: ignore[attr-defined]
    assert packed == pytest.approx(perplexity(dense_bf16(model), ids), rel=1e-3)


@pytest.mark.parametrize(
    "spec", [W4, W8, replace(W8, group_size=64), None], ids=["w4g32", "w8", "w8g64", "by_role"]
)
def test_the_whole_models_perplexity_is_that_of_dense_in_bf16(
    spec: QuantSpec | None, llama: Model
) -> None:
    model = (
        by_role(llama) if spec is None else with_layers(llama, dict.fromkeys(llama.layers, spec))
    )
    assert_same_perplexity(model, tokens(llama, (64, 120)))


def test_a_trained_models_perplexity_is_that_of_dense_in_bf16(shared_data: Path) -> None:
    path = str(shared_data / "models" / "stories3M")
    source = models.load(models.ModelSource("stories3M", path), Artifacts(None))
    text = (shared_data / "text/tinystories/tinystories_val_head.txt").read_text()[:20_000]
    ids = torch.tensor(source.tokenizer(text)["input_ids"])
    assert_same_perplexity(by_role(source), ids[: len(ids) // 256 * 256].view(-1, 256))


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_decoding_with_a_cache_equals_reading_all_at_once(name: str, tmp_path: Path) -> None:
    source = tiny.load(name, tmp_path)
    model = by_role(source)
    engine, reason = engines.choose("auto", model)
    assert reason is None
    assert engine is not None
    run = engine.build(model)
    ids = tokens(model, (2, 20))
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
    ids = tokens(model, (1, 9))
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
