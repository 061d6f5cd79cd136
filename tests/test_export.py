"""Leaving the house: the folder is whole or not there, and holds what the model was."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path

import desk as desks
import pytest
import tiny
import torch
from export_helpers import quantize, write
from safetensors.torch import load_file

from bitsweep import export
from bitsweep.artifacts import Artifacts, hash_file
from bitsweep.cli import MISTAKE, OK, dispatch
from bitsweep.commands.export import find
from bitsweep.errors import UserError
from bitsweep.export import checkpoint, contents
from bitsweep.models import skeleton
from bitsweep.models.files import INDEX
from bitsweep.portable import Rules
from bitsweep.report.frame import frame
from bitsweep.spec import LayerSpec, Plan, QuantSpec
from bitsweep.store import Store
from bitsweep.transforms.low_rank import LowRank

W4 = QuantSpec(bits=4, group_size=32, symmetric=True)

TENSORS = {
    "a": torch.arange(15).view(3, 5).half(),
    "b": torch.tensor([3, 4]),
    "c": torch.arange(7, dtype=torch.int32),
    "d": torch.arange(5, dtype=torch.uint8),
    "e": torch.arange(9).view(3, 3).bfloat16().t(),
    "f": torch.tensor(3.0),
}


# -------------------------------------------------------------------------------- the folder


def test_tensors_of_any_dtype_come_back_from_one_file_and_from_many(tmp_path) -> None:
    for limit, count in ((10**9, 1), (40, 4)):
        folder = tmp_path / str(count)
        folder.mkdir()
        shards = checkpoint.Shards(folder, limit)
        for name, tensor in TENSORS.items():
            shards.add(name, tensor)
        hashes = shards.close()
        assert len(hashes) == count
        assert hashes == {name: hash_file(folder / name) for name in hashes}
        assert len(list(folder.iterdir())) == count + (count > 1)  # scratch files are gone
        found = {k: v for name in hashes for k, v in load_file(folder / name).items()}
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
        if count > 1:
            index = json.loads((folder / INDEX).read_text())["weight_map"]
            assert index.keys() == TENSORS.keys()
            assert all(name in load_file(folder / file) for name, file in index.items())


def test_a_folder_is_placed_whole_or_leaves_nothing(tmp_path) -> None:
    target = tmp_path / "out"
    target.mkdir()  # empty: may be taken
    with pytest.raises(FileNotFoundError), checkpoint.placed(target) as folder:
        (folder / "half").write_text((folder / "missing").read_text())
    assert list(tmp_path.rglob("*")) == [target]
    with checkpoint.placed(target) as folder:
        (folder / "all").write_text("")
        assert not any(target.iterdir())
    assert [path.name for path in target.iterdir()] == ["all"]
    with pytest.raises(UserError, match="is there already"), checkpoint.placed(target):
        pass


def test_what_is_kept_takes_the_checkpoints_dtype_where_that_is_exact() -> None:
    short, long = torch.tensor([1.0, 0.5]), torch.tensor([1.0, 1 / 3])
    assert checkpoint.kept(short, torch.bfloat16).dtype == torch.bfloat16
    assert checkpoint.kept(long, torch.bfloat16).dtype == torch.float32
    assert checkpoint.kept(short.bfloat16(), torch.float32).dtype == torch.bfloat16


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_tensors_have_the_names_that_transformers_writes(name, tmp_path) -> None:
    model = tiny.load(name, tmp_path)
    stored = load_file(tmp_path / name / "model.safetensors")
    found = dict(contents.tensors(model, torch.float32, lambda layer, module: {}))
    assert found.keys() == stored.keys()
    assert contents.unsaid(model, skeleton(model.source, Artifacts(None))) is None


def test_the_manifest_states_every_file_and_the_base(model, tmp_path) -> None:
    write(quantize(model, W4), "compressed-tensors", tmp_path / "out", limit=50_000)
    manifest = json.loads((tmp_path / "out" / "bitsweep.json").read_text())
    files = {path.name for path in (tmp_path / "out").iterdir()} - {"bitsweep.json"}
    assert manifest["files"].keys() == files
    assert {"README.md", "config.json", "tokenizer.json", INDEX} <= files
    for name, stated in manifest["files"].items():
        assert stated["sha256"] == hash_file(tmp_path / "out" / name)
        assert stated["bytes"] == (tmp_path / "out" / name).stat().st_size
    assert manifest["base"]["sha256"] == model.checkpoint


def test_the_files_bytes_are_the_predicted_ones_and_what_is_said_to_be_off(model, tmp_path) -> None:
    for bits in (3, 4):
        spec = QuantSpec(bits=bits, group_size=-1)
        size = write(quantize(model, spec), "compressed-tensors", tmp_path / str(bits)).size
        assert size.bytes == (tmp_path / str(bits) / "model.safetensors").stat().st_size
        assert size.bytes - size.predicted == pytest.approx(sum(size.parts.values()))
        assert size.parts["kept"] == 0
        # x.weight_shape: two int64; zeros fill whole words already
        assert size.parts["quantized"] == 16 * 14
        assert size.missed == (abs(size.bytes / size.predicted - 1) > 0.01)


# --------------------------------------------------------------------------------- hf-dense


def test_hf_dense_is_what_the_codes_stand_for_and_ties_stay(tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    tied = tiny.load("llama_tied", tmp_path)
    ours = quantize(tied, W4, ends=True)
    write(ours, "hf-dense", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in stored
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    with torch.no_grad():
        found = theirs(torch.arange(64).view(1, 64)).logits
    assert torch.equal(found, tiny.logits(ours))


def test_hf_dense_turns_a_conv1d_the_way_it_lies(tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    ours = quantize(tiny.load("gpt2", tmp_path), W4)
    write(ours, "hf-dense", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found = theirs(torch.arange(64).view(1, 64)).logits
    assert torch.allclose(found, tiny.logits(ours), atol=1e-4)


def test_quantized_inputs_and_new_layers_have_no_place_in_a_dense_checkpoint(
    model, tmp_path
) -> None:
    from test_compressed_tensors import INT8

    with pytest.raises(UserError, match="quantized inputs are nothing of a dense checkpoint"):
        write(quantize(model, W4, INT8), "hf-dense", tmp_path / "out")
    thin, whole = model.copy(), skeleton(model.source, Artifacts(None))
    thin.module = copy.deepcopy(whole.module)
    LowRank(keep=0.5, activation_aware=False).reshape(thin)
    reason = contents.unsaid(thin, whole)
    assert reason is not None
    assert "became Factors, not what LlamaForCausalLM has" in reason
    assert not (tmp_path / "out").exists()


def test_a_tied_pair_of_codes_is_refused_by_containers(tmp_path) -> None:
    tied = tiny.load("llama_tied", tmp_path)
    everything = Plan({name: LayerSpec(W4) for name in tied.layers})

    class Takes(export.containers()["compressed-tensors"]):  # type: ignore[misc]
        rules = Rules(layer=lambda layer, spec: None)

    reason = contents.refused(tied, Takes(), everything)
    assert reason is not None
    assert "model.untie=true" in reason


# -------------------------------------------------------------------------------- the verb


@pytest.fixture
def desk(tmp_path, monkeypatch) -> desks.Desk:
    monkeypatch.chdir(tmp_path)
    return desks.lay(tmp_path)


def measured(desk: desks.Desk, *overrides: str) -> str:
    """The run_id of a point that was measured just now."""
    assert desk("run", "results_dir=results", *overrides) == OK
    (record,) = Store(desk.folder / "results" / "adhoc").records()
    return record.run_id


POINT = ("method=rtn", "bits=4", "group_size=32", "symmetric=true")


def test_a_record_becomes_a_folder_whose_card_has_its_numbers(desk, capsys) -> None:
    run_id = measured(desk, *POINT)
    assert desk("export", run_id[:8], "--to", "compressed-tensors") == OK
    folder = desk.folder / "exports" / f"rtn-w4g32-sym-uniform-{run_id[:8]}-compressed-tensors"
    said = capsys.readouterr().out
    assert "predicted" in said
    card = folder.relative_to(desk.folder) / "README.md"
    assert f"load    {card} says how transformers opens it" in said.splitlines()
    following = next(line for line in reversed(said.splitlines()) if line.startswith("next"))
    assert following == (
        f"next    bitsweep run model.path={folder.relative_to(desk.folder)} method=full_precision "
        "data=text data.path=measured.txt data.calibration_path=calibrating.txt data.window=32 "
        "probes.kl=null probes.generation=null probes.tasks=null probes.latency=null"
    )
    store = Store(desk.folder / "results" / "adhoc")
    (record,) = store.records()
    card = (folder / "README.md").read_text()
    for metric in record.metrics.values():
        assert metric.name in card
        assert metric.signature.replace("|", "\\|") in card
    assert record.provenance["command"] in card
    assert json.loads((folder / "bitsweep.json").read_text())["point_id"] == record.point_id
    capsys.readouterr()
    assert dispatch([*shlex.split(following)[2:], "tracker=none"]) == OK
    assert "[1/1] exported w4g32-sym  ppl " in capsys.readouterr().out
    (again,) = (each for each in store.records() if each.run_id != run_id)
    (name,) = (metric for metric in record.metrics if metric.startswith("ppl/"))
    assert again.metrics[name].signature == record.metrics[name].signature
    assert again.metrics[name].value == pytest.approx(record.metrics[name].value, rel=1e-6)
    row = frame([again, record]).set_index("run_id").loc[again.run_id]
    assert row["label"] == again.point["label"] == "exported w4g32-sym"
    capsys.readouterr()
    assert desk("report", "adhoc") == OK
    said = capsys.readouterr().out
    assert "exported" in said
    assert "next" not in said


def test_of_several_records_of_a_point_the_one_asked_for_comes_first(desk) -> None:
    """Its command is composed again: its data and probes are what the next line measures with."""
    first = measured(desk, *POINT)
    assert desk("run", "results_dir=results", *POINT, "probes.perplexity.tokens=64") == OK
    runs = {record.run_id for record in Store(desk.folder / "results" / "adhoc").records()}
    assert len(runs) == 2
    for run_id in (first, *(runs - {first})):
        found = find(run_id, Path("results"))
        assert found[0].run_id == run_id
        assert {record.run_id for record in found} == runs


def test_a_point_without_a_record_is_exported_from_its_keys(desk) -> None:
    overrides = desk.overrides(*POINT)
    assert desk("export", *overrides, "--to", "compressed-tensors", "--out", "w4") == OK
    assert "None: this point was exported without" in Path("w4/README.md").read_text()


def test_another_checkpoint_under_the_same_path_is_no_longer_the_point(desk, capsys) -> None:
    run_id = measured(desk, *POINT)
    tiny.save("llama", desk.folder / "llama", seed=1)
    assert desk("export", run_id, "--to", "compressed-tensors") == MISTAKE
    assert "the checkpoint at llama has changed" in capsys.readouterr().err
    assert not Path("exports").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("abcd1234", "--to", "compressed-tensor"), "did you mean compressed-tensors?"),
        (("abcd1234", "--to", "gptq"), "no such Record below results"),
        (("abc", "--to", "gptq"), "at least 4 digits"),
        (("abcd1234",), "--to: takes one of compressed-tensors, gptq, hf-dense"),
        (("--to", "gptq"), "takes a RUN_ID, or the KEY=VALUE of a point"),
    ],
)
def test_mistakes_are_one_line(desk, capsys, arguments, said) -> None:
    assert desk("export", *arguments) == MISTAKE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_refusal_names_layer_and_reason_and_leaves_no_file(desk, capsys) -> None:
    overrides = desk.overrides("method=rtn", "bits=4", "format=nf", "group_size=32")
    assert desk("export", *overrides, "--to", "compressed-tensors", "--out", "nf") == MISTAKE
    line = capsys.readouterr().err
    assert "model.layers.0.self_attn.q_proj (nf4g32): format=nf" in line
    assert not [path for path in desk.folder.iterdir() if "nf" in path.name]


def test_a_taken_folder_is_refused_before_any_work(desk, capsys) -> None:
    overrides = desk.overrides(*POINT)
    assert desk("export", *overrides, "--to", "compressed-tensors", "--out", "llama") == MISTAKE
    assert "--out llama: is there already" in capsys.readouterr().err


def test_formats_are_found_on_disk() -> None:
    assert {"compressed-tensors", "gptq", "hf-dense"} <= {*export.names()}
    assert {"compressed-tensors", "gptq"} == {*export.containers()}
