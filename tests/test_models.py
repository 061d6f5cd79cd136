"""Models: parts found by dataflow in every architecture, loading, identity, copies, bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import yaml
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from bitsweep import models
from bitsweep.artifacts import Artifacts
from bitsweep.errors import UserError
from bitsweep.models import Model, ModelSource

REPO = Path(__file__).parents[1]
ALL = pytest.mark.parametrize("name", tiny.ARCHITECTURES)
IDS = torch.tensor([[72, 101, 108, 108, 111, 44, 32, 119]])

# The linear layers of a block: role, name within the block, what feeds it ("-": nothing that a
# factor per channel can pass from). Layers between two "|" can be quantized together.
LLAMA = """
    attention.qkv self_attn.q_proj input_layernorm
    attention.qkv self_attn.k_proj input_layernorm
    attention.qkv self_attn.v_proj input_layernorm |
    attention.out self_attn.o_proj self_attn.v_proj |
    ffn.gate mlp.gate_proj post_attention_layernorm
    ffn.up mlp.up_proj post_attention_layernorm |
    ffn.down mlp.down_proj mlp.up_proj"""
GEMMA = LLAMA.replace("post_attention_layernorm", "pre_feedforward_layernorm")
BLOOM = """
    attention.qkv self_attention.query_key_value input_layernorm |
    attention.out self_attention.dense self_attention.query_key_value |
    ffn.up mlp.dense_h_to_4h post_attention_layernorm |
    ffn.down mlp.dense_4h_to_h -"""
OPT = """
    attention.qkv self_attn.q_proj self_attn_layer_norm
    attention.qkv self_attn.k_proj self_attn_layer_norm
    attention.qkv self_attn.v_proj self_attn_layer_norm |
    attention.out self_attn.out_proj self_attn.v_proj |
    ffn.up fc1 final_layer_norm |
    ffn.down fc2 fc1"""
GLM = LLAMA.replace(
    """
    ffn.gate mlp.gate_proj post_attention_layernorm
    ffn.up mlp.up_proj post_attention_layernorm |
    ffn.down mlp.down_proj mlp.up_proj""",
    """
    ffn.up mlp.gate_up_proj post_attention_layernorm |
    ffn.down mlp.down_proj mlp.gate_up_proj""",
)
BLOCKS = {
    "llama": LLAMA,
    "llama_tied": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "phi": """
    attention.qkv self_attn.q_proj input_layernorm
    attention.qkv self_attn.k_proj input_layernorm
    attention.qkv self_attn.v_proj input_layernorm
    ffn.up mlp.fc1 input_layernorm |
    attention.out self_attn.dense self_attn.v_proj
    ffn.down mlp.fc2 -""",
    "phi3": """
    attention.qkv self_attn.qkv_proj input_layernorm |
    attention.out self_attn.o_proj self_attn.qkv_proj |
    ffn.up mlp.gate_up_proj post_attention_layernorm |
    ffn.down mlp.down_proj mlp.gate_up_proj""",
    "gpt2": """
    attention.qkv attn.c_attn ln_1 |
    attention.out attn.c_proj attn.c_attn |
    ffn.up mlp.c_fc ln_2 |
    ffn.down mlp.c_proj -""",
    "gpt_neox": """
    attention.qkv attention.query_key_value input_layernorm
    ffn.up mlp.dense_h_to_4h post_attention_layernorm |
    attention.out attention.dense attention.query_key_value
    ffn.down mlp.dense_4h_to_h -""",
    "opt": OPT,
    # the norm's output is the residual too, so no factor can leave it
    "opt_post_norm": OPT.replace("self_attn_layer_norm", "-").replace("final_layer_norm", "-"),
    "bloom": BLOOM,
    "falcon": """
    attention.qkv self_attention.query_key_value input_layernorm
    ffn.up mlp.dense_h_to_4h input_layernorm |
    attention.out self_attention.dense -
    ffn.down mlp.dense_4h_to_h -""",
    "glm": GLM,
    "glm4": GLM,
}

NOT_LAYERS = {
    "gpt2": {"transformer.wpe"},
    "gpt_bigcode": {"transformer.wpe"},
    "opt": {"model.decoder.embed_positions"},
    "opt_post_norm": {
        "model.decoder.embed_positions",
        "model.decoder.project_in",
        "model.decoder.project_out",
    },
}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """A loaded tiny instance by name, built once for this file."""
    store = Artifacts(None)
    sources: dict[str, ModelSource] = {}

    def get(name: str) -> Model:
        if name not in sources:
            sources[name] = tiny.source(name, tmp_path_factory.mktemp(name))
        return models.load(sources[name], store)

    return get


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    return model.module(input_ids=IDS, use_cache=False).logits


@contextmanager
def hooks() -> Iterator[list[Any]]:
    """Collects hook handles and removes them afterwards."""
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def inputs_of(model: Model, names: list[str]) -> dict[str, torch.Tensor]:
    """What each named layer gets when the model reads IDS, in order of execution."""
    seen: dict[str, torch.Tensor] = {}
    with hooks() as handles:
        for name in names:

            def keep(_: nn.Module, args: Any, name: str = name) -> None:
                seen[name] = args[0].clone()

            handles.append(model.get(name).register_forward_pre_hook(keep))
        logits(model)
    return seen


# --- parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_roles_order_and_sources_of_a_block_are_those_of_its_architecture(name, load) -> None:
    model = load(name)
    block = model.blocks[1]
    expected = [[line.split() for line in g.strip().splitlines()] for g in BLOCKS[name].split("|")]
    found = []
    for group in model.sequential(1):
        found.append([])
        for layer in map(model.layers.__getitem__, group):
            source = (layer.source or "-").removeprefix(f"{block}.")
            found[-1].append([layer.role, layer.name.removeprefix(f"{block}."), source])
    assert found == expected


@ALL
def test_every_matrix_of_the_decoder_is_a_layer(name, load) -> None:
    model = load(name)
    matrices = {
        child
        for child, module in model.module.named_modules()
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding)
    }
    assert set(model.layers) == matrices - NOT_LAYERS.get(name, set())


@ALL
def test_layers_stand_in_order_of_execution_from_embedding_to_head(name, load) -> None:
    model = load(name)
    assert list(model.layers) == list(inputs_of(model, list(model.layers)))
    roles = [layer.role for layer in model.layers.values()]
    assert (roles[0], roles[-1]) == ("embedding", "head")
    assert roles.count("embedding") == roles.count("head") == 1


@ALL
def test_all_blocks_are_found_in_order_and_hold_the_same_layers(name, load) -> None:
    model = load(name)
    assert [int(block.rpartition(".")[2]) for block in model.blocks] == [0, 1]
    inner = [
        [layer.name.removeprefix(block) for layer in model.layers.values() if layer.block == index]
        for index, block in enumerate(model.blocks)
    ]
    assert inner[0] == inner[1]
    assert all(inner)


@ALL
def test_layers_of_one_group_do_not_see_each_other_and_those_of_the_next_do(name, load) -> None:
    model = load(name)
    groups = model.sequential(1)
    names = [layer for group in groups for layer in group]
    before = inputs_of(model, names)
    for here, group in enumerate(groups):
        with hooks() as handles:
            for layer in group:
                double = lambda _, args, output: 2 * output  # noqa: E731
                handles.append(model.get(layer).register_forward_hook(double))
            after = inputs_of(model, names)
        changed = {layer for layer in names if not torch.equal(before[layer], after[layer])}
        assert not changed & set(group)
        assert changed >= set(groups[here + 1] if here + 1 < len(groups) else [])


@ALL
def test_a_factor_moved_from_a_source_to_its_layers_leaves_the_function_unchanged(
    name, load
) -> None:
    model = load(name)
    expected = logits(model)
    fed: dict[str, list[str]] = {}
    for layer in model.layers.values():
        if layer.source is not None:
            fed.setdefault(layer.source, []).append(layer.name)
    assert fed
    for source, consumers in fed.items():
        width = model.layers[consumers[0]].shape[1]
        if source not in model.layers or model.layers[source].shape[0] == width:
            factor = torch.rand(width, generator=torch.manual_seed(0)) + 0.5
        elif model.layers[source].shape[0] < width:
            factor = torch.tensor([1.7])  # grouped heads: the same channel feeds several columns
        else:
            continue  # one part of a fused output; which part is the architecture's secret
        with hooks() as handles:
            handles.append(
                model.get(source).register_forward_hook(lambda _, a, out, f=factor: out * f)
            )
            for consumer in consumers:
                handles.append(
                    model.get(consumer).register_forward_pre_hook(
                        lambda _, args, f=factor: (args[0] / f, *args[1:])
                    )
                )
            torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@ALL
def test_weight_is_out_by_in_and_a_view_of_what_is_stored(name, load) -> None:
    model = load(name)
    for layer in model.layers.values():
        weight = model.weight(layer.name)
        assert tuple(weight.shape) == layer.shape
        assert weight.data_ptr() == model.get(layer.name).weight.data_ptr()
    for layer in (layer for layer in model.layers.values() if layer.block == 0):
        x = torch.randn(3, layer.shape[1], generator=torch.manual_seed(0))
        bias = getattr(model.get(layer.name), "bias", None)
        expected = nn.functional.linear(x, model.weight(layer.name), bias)
        torch.testing.assert_close(model.get(layer.name)(x), expected, rtol=1e-5, atol=1e-5)


@ALL
def test_skeleton_from_the_configuration_equals_the_loaded_model(name, load) -> None:
    model = load(name)
    skeleton = models.skeleton(model.source, Artifacts(None))
    assert {tensor.device.type for tensor in skeleton.module.parameters()} == {"meta"}
    for part in ("layers", "blocks", "tied", "parameters", "checkpoint", "max_positions"):
        assert getattr(skeleton, part) == getattr(model, part), part


def test_context_length_is_read_under_each_of_its_names(load) -> None:
    lengths = {name: load(name).max_positions for name in ("llama", "gpt2", "mpt", "bloom")}
    assert lengths == {"llama": 128, "gpt2": 128, "mpt": 128, "bloom": 2048}


@pytest.mark.parametrize(
    ("name", "parameters", "blocks"), [("stories260K", 260_032, 5), ("stories3M", 3_148_224, 6)]
)
def test_real_checkpoints_have_the_parts_that_their_provenance_states(
    name, parameters, blocks, shared_data, artifacts
) -> None:
    model = models.load(ModelSource(name, str(shared_data / "models" / name)), artifacts)
    assert (model.parameters, len(model.blocks), model.tied) == (parameters, blocks, True)
    assert len(model.layers) == 7 * blocks + 2


# --- tied ends -------------------------------------------------------------------------------


def test_tied_ends_are_one_tensor_and_untying_gives_the_head_its_own_copy(tmp_path) -> None:
    tied = tiny.load("llama_tied", tmp_path / "tied")
    untied = tiny.load("llama_tied", tmp_path / "untied", untie=True)
    assert (tied.tied, untied.tied) == (True, False)
    assert torch.equal(logits(tied), logits(untied))
    head, embedding = untied.weight("lm_head"), untied.weight("model.embed_tokens")
    assert torch.equal(head, embedding)
    assert head.data_ptr() != embedding.data_ptr()
    assert untied.parameters == tied.parameters + embedding.numel()
    assert models.skeleton(untied.source, Artifacts(None)).tied is False


def test_untying_an_untied_model_changes_nothing(tmp_path, load) -> None:
    model = tiny.load("llama", tmp_path, untie=True)
    assert torch.equal(logits(model), logits(load("llama")))


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_tying_is_what_the_tensors_say(name, load) -> None:
    model = load(name)
    same = model.weight("lm_head").data_ptr() == model.weight("model.embed_tokens").data_ptr()
    assert model.tied is same is (name == "llama_tied")


# --- copies ----------------------------------------------------------------------------------


@ALL
def test_a_copy_computes_the_same_from_the_same_storage(name, load) -> None:
    model = load(name)
    copy = model.copy()
    pairs = zip(model.module.parameters(), copy.module.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    modules = {id(module) for module in model.module.modules()}
    assert not any(id(module) in modules for module in copy.module.modules())
    assert torch.equal(logits(model), logits(copy))
    head, embedding = copy.module.get_output_embeddings(), copy.module.get_input_embeddings()
    assert (head.weight is embedding.weight) is model.tied


def test_replacing_a_layer_in_a_copy_leaves_its_source_alone(load) -> None:
    model = load("llama")
    expected, name = logits(model), "model.layers.0.mlp.up_proj"
    original, copy = model.get(name), model.copy()
    zeros = nn.Linear(128, 256, bias=False)
    nn.init.zeros_(zeros.weight)
    copy.replace(name, zeros)
    assert copy.get(name) is zeros
    assert model.get(name) is original
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(copy), expected)
    second = copy.copy()
    assert torch.equal(logits(second), logits(copy))


def test_changing_a_copys_configuration_leaves_its_source_alone(load) -> None:
    model = load("llama")
    copy = model.copy()
    copy.module.config.use_cache = False
    assert model.module.config.use_cache is True
    assert copy.get("model.layers.0").self_attn.config is copy.module.config


# --- loading ---------------------------------------------------------------------------------


def test_a_checkpoint_is_read_once_for_all_who_ask(tmp_path, artifacts) -> None:
    source = tiny.source("llama", tmp_path)
    assert models.load(source, artifacts) is models.load(source, artifacts)
    assert models.load(replace(source, dtype="bfloat16"), artifacts).module.dtype == torch.bfloat16


def test_loading_says_nothing_and_draws_no_random_number(tmp_path, capfd) -> None:
    source = tiny.source("opt", tmp_path)
    capfd.readouterr()
    state = torch.get_rng_state()
    models.load(source, Artifacts(None))
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_relative_path_starts_at_the_working_directory(tmp_path, monkeypatch) -> None:
    tiny.llama(tmp_path / "somewhere" / "model")
    monkeypatch.chdir(tmp_path)
    model = models.load(ModelSource("mine", "somewhere/model"), Artifacts(None))
    assert len(model.blocks) == 2


def test_a_checkpoint_is_named_by_its_content_not_by_its_place(tmp_path) -> None:
    def sha(folder: Path, **options: Any) -> str:
        return models.skeleton(ModelSource("m", str(folder), **options), Artifacts(None)).checkpoint

    one = tiny.save("llama", tmp_path / "one")
    two = Path(shutil.copytree(one, tmp_path / "two"))
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert sha(one) == sha(two) == sha(one, dtype="bfloat16")
    (two / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert sha(two) != sha(one)
    assert sha(tiny.save("llama", tmp_path / "three", seed=1)) != sha(one)


def test_a_changed_tokenizer_changes_its_own_hash_only(tmp_path) -> None:
    folder = tiny.llama(tmp_path)
    before = models.skeleton(ModelSource("m", str(folder)), Artifacts(None))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    after = models.skeleton(ModelSource("m", str(folder)), Artifacts(None))
    assert before.checkpoint == after.checkpoint
    assert before.tokenizer_sha256 != after.tokenizer_sha256


def test_sharded_weights_load_and_equal_the_single_file(tmp_path) -> None:
    single = tiny.load("llama", tmp_path)
    folder = tmp_path / "shards"
    single.module.save_pretrained(folder, max_shard_size="300kB")
    tiny.tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    shards = models.load(ModelSource("shards", str(folder)), Artifacts(None))
    assert torch.equal(logits(single), logits(shards))


def test_a_layer_is_found_again_on_each_device(device, tmp_path) -> None:
    model = tiny.load("llama", tmp_path, device=device)
    assert model.device.type == device
    assert model.module(input_ids=IDS.to(model.device)).logits.device.type == device


# --- blocks that visit a device -----------------------------------------------------------------


def test_a_block_that_lives_on_the_device_does_not_move(device, tmp_path) -> None:
    model = tiny.load("llama", tmp_path, device=device)
    before = [tensor.data_ptr() for tensor in model.module.parameters()]
    with model.block_on_device(1):
        assert [tensor.data_ptr() for tensor in model.module.parameters()] == before
    assert [tensor.data_ptr() for tensor in model.module.parameters()] == before


def test_blocks_of_a_model_larger_than_the_gpu_visit_it_and_go_home(tmp_path, monkeypatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    expected = logits(tiny.load("llama", tmp_path / "cpu"))
    monkeypatch.setattr("bitsweep.models.loading.SHARE_OF_GPU", 0.0)
    model = tiny.load("llama", tmp_path / "cuda", device="cuda")
    block = model.get(model.blocks[0])
    home = [tensor.data_ptr() for tensor in block.parameters()]
    with torch.inference_mode():
        found = model.module(input_ids=IDS.to(model.device), use_cache=False).logits
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    with model.copy().block_on_device(0):
        assert {tensor.device.type for tensor in block.parameters()} == {"cuda"}
    assert [tensor.data_ptr() for tensor in block.parameters()] == home


# --- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A stand-in for the hub: one model, whose fetched files land in a snapshot folder."""
    remote = tiny.llama(tmp_path / "remote")

    def snapshot_download(hub_id: str, allow_patterns: list[str], **_: Any) -> str:
        if hub_id != "org/model":
            raise ConnectionError("no network")
        folder = tmp_path / "snapshots" / "0123abc"
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for file in remote.glob(pattern):
                shutil.copy(file, folder)
        return str(folder)

    def model_info(self: Any, hub_id: str, revision: str, **_: Any) -> SimpleNamespace:
        assert (hub_id, revision) == ("org/model", "0123abc")
        sha = hashlib.sha256((remote / "model.safetensors").read_bytes()).hexdigest()
        return SimpleNamespace(
            siblings=[
                SimpleNamespace(rfilename="model.safetensors", lfs=SimpleNamespace(sha256=sha)),
                SimpleNamespace(rfilename="config.json", lfs=None),
            ]
        )

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    return remote


def test_a_hub_checkpoint_is_named_without_downloading_its_weights(hub, tmp_path) -> None:
    source = ModelSource("m", "org/model", revision="main")
    skeleton = models.skeleton(source, Artifacts(None))
    assert not (tmp_path / "snapshots" / "0123abc" / "model.safetensors").exists()
    assert skeleton.checkpoint == models.load(source, Artifacts(None)).checkpoint
    local = models.load(ModelSource("m", str(hub)), Artifacts(None))
    assert skeleton.checkpoint == local.checkpoint


def test_the_hub_is_asked_once_for_all_points_of_a_sweep(hub, monkeypatch) -> None:
    store, source = Artifacts(None), ModelSource("m", "org/model")
    model = models.load(source, store)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked again")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    assert models.load(source, store) is model


def test_a_hub_checkpoint_of_pickles_only_is_refused_before_any_download(hub, monkeypatch) -> None:
    pickles = [SimpleNamespace(rfilename="pytorch_model.bin", lfs=SimpleNamespace(sha256="0"))]
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=pickles)
    )
    (hub / "model.safetensors").unlink()
    line = refusal(ModelSource("m", "org/model"))
    assert "revision main has no safetensors (pytorch_model.bin)" in line
    assert "model.revision=refs/pr/NUMBER" in line


# --- what a user can get wrong ------------------------------------------------------------------


def refusal(source: ModelSource) -> str:
    """The one line that loading ``source`` is refused with."""
    with pytest.raises(UserError) as caught:
        models.load(source, Artifacts(None))
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "int8"}, "model.dtype=int8: no such dtype; float32, bfloat16, float16"),
        ({"device": "tpu"}, "model.device=tpu: no such device; cpu or cuda"),
        ({"path": "./nowhere"}, "model.path=./nowhere: no such folder"),
        ({"path": "org/no-such-model"}, "model.path=org/no-such-model: no such folder here, and"),
        ({"path": "pkg:nothing"}, "model.path=pkg:nothing: no folder "),
    ],
)
def test_a_value_that_cannot_be_followed_is_named_with_what_would_work(
    options, expected, tmp_path
) -> None:
    source = ModelSource("m", str(tiny.llama(tmp_path)))
    assert refusal(replace(source, **options)).startswith(expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_said(tmp_path) -> None:
    source = ModelSource("m", str(tiny.llama(tmp_path)), device="cuda")
    assert refusal(source).startswith("model.device=cuda: torch sees no CUDA device here")


def edited(folder: Path, **changes: Any) -> ModelSource:
    """A tiny llama whose config.json says something else; None removes a key."""
    config = json.loads((tiny.llama(folder) / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSource("m", str(folder))


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path) -> None:
    folder = tiny.llama(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    line = refusal(ModelSource("m", str(folder)))
    assert line.startswith(f"model.path={folder}: only pickled weights (pytorch_model.bin)")
    assert "save_pretrained" in line


def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path) -> None:
    folder = tiny.llama(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'../elsewhere.safetensors', which is outside the folder" in refusal(
        ModelSource("m", str(folder))
    )


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ("model.safetensors", "no model.safetensors in"),
        ("config.json", "no config.json in it"),
        ("tokenizer.json", "no tokenizer that loads lies in it"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(lost, expected, tmp_path) -> None:
    folder = tiny.llama(tmp_path)
    (folder / lost).unlink()
    assert expected in refusal(ModelSource("m", str(folder)))


def test_a_broken_weights_file_is_refused(tmp_path) -> None:
    folder = tiny.llama(tmp_path)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    assert "model.safetensors is no safetensors file" in refusal(ModelSource("m", str(folder)))


def test_weights_that_lack_a_tensor_are_refused_not_made_up(tmp_path) -> None:
    line = refusal(edited(tmp_path, num_hidden_layers=3))
    assert "tensors of the model are not in its safetensors files, first model.layers.2." in line


def test_a_checkpoint_that_is_quantized_already_is_refused(tmp_path) -> None:
    source = edited(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantized already" in refusal(source)


def test_code_of_a_checkpoint_runs_only_when_trusted(tmp_path) -> None:
    auto_map = {"AutoConfig": "config.Mine", "AutoModelForCausalLM": "model.Mine"}
    source = edited(tmp_path, model_type="mine", auto_map=auto_map)
    assert refusal(source).startswith("model.trust_remote_code=false: ")


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("t5", "encoder-decoder"),
        ("no_such_type", "model_type 'no_such_type'"),
        ("vit", "no causal language model"),
        ("mamba", "decoders whose blocks hold attention and feed-forward layers"),
    ],
)
def test_what_is_no_decoder_of_attention_blocks_is_refused(model_type, expected, tmp_path) -> None:
    assert expected in refusal(edited(tmp_path, model_type=model_type, architectures=None))


def test_a_model_that_looks_ahead_is_refused(tmp_path) -> None:
    config = AutoConfig.for_model("bert", vocab_size=264, hidden_size=32, num_hidden_layers=2)
    config.update({"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 9})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(config)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    module.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert "looks at later tokens" in refusal(ModelSource("m", str(tmp_path)))


def test_a_mixture_of_experts_is_refused_naming_an_expert(tmp_path) -> None:
    source = edited(tmp_path, model_type="mixtral", architectures=None)
    assert "experts are not supported yet" in refusal(source)


# --- what ships ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", sorted((REPO / "conf" / "model").glob("*.yaml")), ids=lambda f: f.stem
)
def test_each_model_that_ships_says_what_it_is_and_fills_every_field(file: Path) -> None:
    text = file.read_text()
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    assert list(values) == [field.name for field in fields(ModelSource)]
    assert values["name"] == file.stem
