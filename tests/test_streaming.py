"""A checkpoint written tensor by tensor is the one that is written from the whole model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from desk import QUICK
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bitsweep import cli, config, export, formats, models, provenance
from bitsweep.artifacts import Artifacts
from bitsweep.compose import compose
from bitsweep.errors import UserError
from bitsweep.export import contents, folder, streaming
from bitsweep.export.checkpoint import Shards, stored_dtype
from bitsweep.linear import QuantEmbedding, QuantLinear
from bitsweep.methods.rtn import RTN
from bitsweep.models import files
from bitsweep.prepared import Prepared, prepare
from bitsweep.probes import size
from bitsweep.run import make
from bitsweep.spec import QuantSpec

LIMIT = 200_000
"""Bytes of a shard: the tiny models have several."""

OVERRIDES = ("model.path=here", *QUICK)

W4 = ("method=rtn", "bits=4", "group_size=32")


@pytest.fixture(autouse=True)
def _few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """5000 numbers: 39 rows of 128, 19 of 256, and no matrix ends with a full part."""
    monkeypatch.setattr(streaming, "AT_ONCE", 5000)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prepared]:
    """``prepared("bits=3")``: that point of the tiny checkpoint in ``./here``."""
    monkeypatch.chdir(tmp_path)
    for name in ("measured.txt", "calibrating.txt"):
        Path(name).write_text("A cat sat on a mat. " * 20)

    def point(*overrides: str) -> Prepared:
        if not Path("here").exists():
            stored_as(torch.bfloat16, tiny.llama(Path("here")))
        job = config.job(compose([*OVERRIDES, *overrides]))
        return prepare(job.point, Artifacts(None))

    return point


def stored_as(dtype: torch.dtype, at: Path) -> None:
    tensors = load_file(at / "model.safetensors")
    changed = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(changed, at / "model.safetensors", {"format": "pt"})


def container(to: str) -> Any:
    return None if to == "hf-dense" else export.get(to)


def streamed(point: Prepared, to: str, at: str = "streamed") -> dict[str, str]:
    """SHA-256 of each file that is written tensor by tensor."""
    assert streaming.refuses(point, Artifacts(None)) is None
    Path(at).mkdir()
    shards = Shards(Path(at), LIMIT)
    streaming.stream(point, Artifacts(None), lambda line: None, container(to), shards)
    return shards.close()


def from_the_whole(point: Prepared, to: str) -> dict[str, str]:
    """SHA-256 of each file that is written from the loaded and quantized model."""
    made = make(point, Artifacts(None), provenance.Stopwatch(None)).model
    found = files.locate(point.source, True, Artifacts(None))
    own = container(to)

    def hold(name: str, module: QuantLinear | QuantEmbedding) -> dict[str, Tensor]:
        if own is None:
            return {f"{name}.weight": module.weight}
        return own.tensors(name, module.quant, point.plan.layers[name].input)

    Path("whole").mkdir()
    shards = Shards(Path("whole"), LIMIT)
    for name, tensor in contents.tensors(made, stored_dtype(found, point.source.path), hold):
        shards.add(name, tensor)
    return shards.close()


@pytest.mark.parametrize(
    ("to", "overrides"),
    [
        ("compressed-tensors", W4),
        ("compressed-tensors", (*W4, "bits=3", "symmetric=true")),
        ("compressed-tensors", ("method=rtn", "bits=8", "group_size=-1", "input.bits=8")),
        ("compressed-tensors", (*W4, "policy=all")),
        ("compressed-tensors", (*W4, "method.clip=mse")),
        ("gptq", (*W4, "symmetric=true")),
        ("hf-dense", (*W4, "policy=all")),
        ("hf-dense", (*W4, "format=nf")),
    ],
)
def test_files_are_equal_to_the_last_byte(
    to: str, overrides: tuple[str, ...], prepared: Callable[..., Prepared]
) -> None:
    point = prepared(*overrides)
    found = streamed(point, to)
    assert len(found) > 1
    assert found == from_the_whole(point, to)
    for name, sha256 in found.items():
        assert hashlib.sha256(Path("streamed", name).read_bytes()).hexdigest() == sha256
    index = "model.safetensors.index.json"
    assert Path("streamed", index).read_bytes() == Path("whole", index).read_bytes()


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_numbers_are_computed_and_kept_in_the_dtypes_of_the_ordinary_export(
    stored: torch.dtype, compute: str, prepared: Callable[..., Prepared]
) -> None:
    stored_as(stored, tiny.llama(Path("here")))
    point = prepared(*W4, f"model.dtype={compute}")
    assert streamed(point, "compressed-tensors") == from_the_whole(point, "compressed-tensors")


def test_a_tensor_wider_than_the_others_is_kept_as_it_is(
    prepared: Callable[..., Prepared],
) -> None:
    tensors = load_file(tiny.llama(Path("here")) / "model.safetensors")
    mixed = {k: v if k == "model.norm.weight" else v.bfloat16() for k, v in tensors.items()}
    save_file(mixed, "here/model.safetensors", {"format": "pt"})
    point = prepared(*W4)
    assert streamed(point, "compressed-tensors") == from_the_whole(point, "compressed-tensors")
    kept = {
        k: v for name in Path("streamed").glob("*.safetensors") for k, v in load_file(name).items()
    }
    assert torch.equal(kept["model.norm.weight"], tensors["model.norm.weight"])


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "gemma3", "phi", "olmo2", "opt"])
def test_other_architectures_biases_and_ties_are_streamed_alike(
    name: str, prepared: Callable[..., Prepared]
) -> None:
    tiny.save(name, Path("here"))
    point = prepared(*W4)
    assert streamed(point, "compressed-tensors") == from_the_whole(point, "compressed-tensors")


@pytest.mark.parametrize("policy", ["uniform", "all"])
def test_tied_ends_are_written_once(policy: str, prepared: Callable[..., Prepared]) -> None:
    tiny.save("llama_tied", Path("here"))
    point = prepared(*W4, f"policy={policy}")
    found = streamed(point, "hf-dense")
    assert found == from_the_whole(point, "hf-dense")
    names = [name for file in found for name in load_file(Path("streamed", file))]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_a_head_that_is_untied_takes_the_embeddings_numbers(
    prepared: Callable[..., Prepared],
) -> None:
    tiny.save("llama_tied", Path("here"))
    point = prepared(*W4, "policy=all", "model.untie=true")
    found = streamed(point, "compressed-tensors")
    assert found == from_the_whole(point, "compressed-tensors")
    tensors = {k: v for file in found for k, v in load_file(Path("streamed", file)).items()}
    assert torch.equal(
        tensors["lm_head.weight_packed"], tensors["model.embed_tokens.weight_packed"]
    )


def test_shards_of_a_checkpoint_are_read_where_its_index_says(
    prepared: Callable[..., Prepared],
) -> None:
    point = prepared(*W4)
    whole = streamed(point, "compressed-tensors", "from_one")
    tensors = load_file("here/model.safetensors")
    names, weight_map = sorted(tensors), {}
    for i in range(3):
        file = f"model-{i}.safetensors"
        save_file({n: tensors[n] for n in names[i::3]}, Path("here", file), {"format": "pt"})
        weight_map |= dict.fromkeys(names[i::3], file)
    Path("here/model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    Path("here/model.safetensors.index.json").write_text(json.dumps(index))
    assert streamed(prepared(*W4), "compressed-tensors", "from_three") == whole


class Largest(TorchDispatchMode):
    """How many numbers the largest float tensor has that comes out of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, list | tuple) else [output]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.is_meta:
                self.numbers = max(self.numbers, tensor.numel())
        return output


def test_floats_are_never_more_than_a_few_rows(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices have up to 33,792 numbers, 39 rows of 128 are 4992."""
    point = prepared(*W4, "policy=all")
    monkeypatch.setattr(models, "load", None)
    with Largest() as largest:
        streamed(point, "compressed-tensors")
    assert largest.numbers == 4992


def test_the_model_without_values_has_the_size_of_the_one_with_them(
    prepared: Callable[..., Prepared],
) -> None:
    point = prepared(*W4, "policy=all")
    empty = streaming.unfilled(point, Artifacts(None))
    whole = make(point, Artifacts(None), provenance.Stopwatch(None)).model
    assert size.measure(empty, 2) == size.measure(whole, 2)


SPECS = [
    spec
    for name in formats.names()
    for spec in (
        formats.resolve(QuantSpec(bits, 32, format=name, symmetric=symmetric))
        for symmetric in (False, True)
        for bits in (4, 8, 1, 1.58)
    )
    if formats.get(name).skip(spec) is None and RTN().skip_rows(spec) is None
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rows_are_rounded_alike_in_any_company(spec: QuantSpec) -> None:
    weight = torch.randn(37, 96, generator=torch.Generator().manual_seed(0))
    method = RTN()
    whole = method.rows(weight, spec)
    parts = streaming.gather((method.rows(part, spec) for part in weight.split(5)), weight.shape)
    assert torch.equal(parts.codes, whole.codes)
    assert all(torch.equal(parts.params[name], value) for name, value in whole.params.items())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("method=gptq",), "method=gptq: it runs the model on calibration text"),
        (("method=hqq",), "method=hqq looks at whole matrices; method=rtn takes rows"),
        (("method=rtn", "method.rounding=stochastic"), "method.rounding=stochastic draws"),
        (("method=rtn", "group_size=0"), "depends on all rows of its matrix"),
        (("method=rtn", "format=nvfp4"), "depends on all rows of its matrix"),
        (("method=rtn", "transforms=[rotate]"), "transforms=[rotate] works on the whole model"),
        (("method=rtn", "recover=[low_rank]"), "recover=[low_rank] works on the whole model"),
        (("method=rtn", "kv.bits=8"), "kv.bits=8: the cache is none of a checkpoint"),
    ],
)
def test_a_point_that_needs_the_whole_model_is_told_apart(
    overrides: tuple[str, ...], expected: str, prepared: Callable[..., Prepared]
) -> None:
    assert expected in str(streaming.refuses(prepared(*overrides), Artifacts(None)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt2", "is a conv1d"), ("gpt_neox", "lm_head.weight is not in its files")],
)
def test_files_that_are_laid_out_otherwise_are_told_apart(
    name: str, expected: str, prepared: Callable[..., Prepared]
) -> None:
    tiny.save(name, Path("here"))
    assert expected in str(streaming.refuses(prepared(*W4), Artifacts(None)))


def test_a_weight_that_is_not_finite_is_refused(prepared: Callable[..., Prepared]) -> None:
    path = tiny.llama(Path("here")) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][200, 3] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj has weights that are NaN"):
        streamed(prepared(*W4), "compressed-tensors")
    shutil.rmtree("streamed")


@pytest.mark.parametrize("to", ["compressed-tensors", "gptq", "hf-dense"])
def test_the_command_streams_what_it_can_and_never_loads_the_model(
    to: str, prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    point = prepared(*W4, "symmetric=true")
    made = make(point, Artifacts(None), provenance.Stopwatch(None)).model
    origin = folder.Origin("", point.point_id, "")
    folder.write(made, to, Path("whole"), origin)
    monkeypatch.setattr(models, "load", None)
    assert (
        cli.dispatch(["export", *OVERRIDES, *W4, "symmetric=true", "--to", to, "--out", "x"]) == 0
    )
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert Path("x", name).read_bytes() == Path("whole", name).read_bytes()
    sizes = [json.loads(Path(at, "bitsweep.json").read_text())["size"] for at in ("x", "whole")]
    assert sizes[0] == sizes[1]
