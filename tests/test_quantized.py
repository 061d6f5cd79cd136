"""Exported checkpoints come back: the same codes, the same numbers, nothing rounded twice."""

from __future__ import annotations

import json
from pathlib import Path

import desk as desks
import pytest
import tiny
import torch
from export_helpers import quantize, write
from test_compressed_tensors import INT8

from bitsweep.artifacts import Artifacts
from bitsweep.cli import MISTAKE, OK
from bitsweep.errors import UserError
from bitsweep.models import Model, ModelSource, base, load, skeleton
from bitsweep.record import Record
from bitsweep.spec import InputSpec, QuantSpec
from bitsweep.store import Store

CASES = {
    "zeros": (QuantSpec(bits=4, group_size=32), None),
    "symmetric": (QuantSpec(bits=3, symmetric=True), None),
    "tensor": (QuantSpec(bits=8, group_size=0, scale_dtype="float32"), None),
    "inputs": (QuantSpec(bits=8, symmetric=True), INT8),
}


def back(folder: Path) -> Model:
    return load(ModelSource("exported", str(folder)), Artifacts(None))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("container", ["compressed-tensors", "gptq"])
def test_codes_and_parameters_come_back_bit_for_bit(model, tmp_path, case, container) -> None:
    spec, inputs = CASES[case]
    ours = quantize(model, spec, inputs)
    try:
        write(ours, container, tmp_path / "out", limit=50_000)
    except UserError as reason:
        pytest.skip(f"{container} has no place for it: {reason}")
    theirs = back(tmp_path / "out")
    assert theirs.plan is not None
    assert theirs.plan.layers.keys() == ours.plan.layers.keys()
    assert theirs.parameters == model.parameters
    for name, planned in ours.plan.layers.items():
        one, other = ours.get(name).quant, theirs.get(name).quant
        assert theirs.plan.layers[name].weight == other.spec == one.spec
        assert theirs.plan.layers[name].input == planned.input
        assert torch.equal(one.codes, other.codes)
        assert one.params.keys() == other.params.keys()
        for key, value in one.params.items():
            assert value.dtype == other.params[key].dtype
            assert torch.equal(value, other.params[key])
        assert theirs.layers[name].shape == one.shape
    if inputs is None:  # what quantizes inputs is put in with the plan, by a run
        assert torch.equal(tiny.logits(theirs), tiny.logits(ours))


def test_a_skeleton_knows_the_plan_without_weights(model, tmp_path) -> None:
    ours = quantize(model, *CASES["symmetric"])
    write(ours, "compressed-tensors", tmp_path / "out")
    bare = skeleton(ModelSource("exported", str(tmp_path / "out")), Artifacts(None))
    assert bare.plan == ours.plan
    assert all(parameter.is_meta for parameter in bare.module.parameters())
    assert bare.checkpoint != model.checkpoint


def test_a_tied_pair_that_was_not_quantized_is_still_one_tensor(tmp_path) -> None:
    tied = tiny.load("llama_tied", tmp_path)
    write(quantize(tied, *CASES["symmetric"]), "compressed-tensors", tmp_path / "out")
    theirs = back(tmp_path / "out")
    assert theirs.tied
    assert theirs.module.lm_head.weight is theirs.module.model.embed_tokens.weight


# ----------------------------------------------------------------------- measured again


@pytest.fixture
def desk(tmp_path, monkeypatch) -> desks.Desk:
    monkeypatch.chdir(tmp_path)
    return desks.lay(tmp_path)


def measure(desk: desks.Desk, results: str, *overrides: str) -> Record:
    assert desk("run", f"results_dir={results}", *overrides) == OK
    (record,) = Store(desk.folder / results / "adhoc").records()
    return record


AGAIN = ("model.path=out", "method=full_precision")


@pytest.mark.parametrize(
    "axes",
    [
        ("bits=4", "group_size=32"),
        ("bits=8", "symmetric=true", "input.bits=8", "input.symmetric=true"),
    ],
)
def test_a_row_measured_from_its_files_is_the_row(desk, axes) -> None:
    first = measure(desk, "one", "method=rtn", *axes)
    arguments = ("--to", "compressed-tensors", "--out", "out", "--results-dir", "one")
    assert desk("export", first.run_id, *arguments) == OK
    second = measure(desk, "two", *AGAIN)
    assert second.run_id != first.run_id
    assert second.plan["summary"] == first.plan["summary"]
    assert second.plan["digest"] == first.plan["digest"]
    for name, metric in first.metrics.items():
        if metric.value is not None:
            found = second.metrics[name]
            assert found.value == pytest.approx(metric.value, rel=1e-12), name
            assert found.delta == metric.delta, name  # the base is the reference of both


def test_without_its_base_a_row_is_compared_with_itself_and_says_so(desk) -> None:
    desk("export", *desk.overrides("method=rtn"), "--to", "compressed-tensors", "--out", "out")
    source = ModelSource("exported", "out")
    assert base(source, Artifacts(None)) is not None
    known = measure(desk, "one", *AGAIN)
    (desk.folder / "llama").rename(desk.folder / "elsewhere")
    assert base(source, Artifacts(None)) is None
    alone = measure(desk, "two", *AGAIN)
    assert alone.point_id != known.point_id
    assert "the checkpoint itself" in alone.plan["notes"]["reference"]
    deltas = [metric.delta for metric in alone.metrics.values() if metric.delta is not None]
    assert {delta.value for delta in deltas if delta.kind == "ratio"} == {1}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=rtn",), "method=rtn rounds full precision"),
        (("method=full_precision", "method.dtype=bfloat16"), "give model.dtype=bfloat16 too"),
        (("method=full_precision", "transforms=[rotate]"), "transforms=[rotate] changes full"),
    ],
)
def test_what_would_round_twice_is_refused(desk, capsys, overrides, said) -> None:
    desk("export", *desk.overrides("method=rtn"), "--to", "compressed-tensors", "--out", "out")
    capsys.readouterr()
    assert desk("run", "model.path=out", *overrides) == MISTAKE
    line = capsys.readouterr().err
    assert "model.path=out: quantized already" in line
    assert said in line


# ----------------------------------------------------------------------------- not ours


def edited(folder: Path, **quantization: object) -> ModelSource:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {**config.get("quantization_config", {}), **quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSource("other", str(folder))


def test_an_unknown_quant_method_is_named_with_what_is_known(tmp_path) -> None:
    source = edited(tiny.llama(tmp_path), quant_method="awq")
    with pytest.raises(UserError, match="quant_method='awq', which bitsweep does not read") as said:
        skeleton(source, Artifacts(None))
    assert "compressed-tensors, gptq" in str(said.value)


def test_codes_that_are_not_in_the_file_are_missed_by_name(tmp_path) -> None:
    layer = "model.layers.0.mlp.up_proj"
    groups = {"g": {"targets": [layer], "weights": {"num_bits": 4, "group_size": -1}}}
    folder = tiny.llama(tmp_path)
    source = edited(folder, quant_method="compressed-tensors", config_groups=groups)
    with pytest.raises(UserError, match=f"{layer} is quantized to w4-sym, and the file holds"):
        load(source, Artifacts(None))


def test_the_inputs_of_a_foreign_checkpoint_are_read(model, tmp_path) -> None:
    write(quantize(model, *CASES["inputs"]), "compressed-tensors", tmp_path / "out")
    plan = skeleton(ModelSource("o", str(tmp_path / "out")), Artifacts(None)).plan
    assert plan is not None
    assert {spec.input for spec in plan.layers.values()} == {
        InputSpec(QuantSpec(bits=8, scale_dtype="float32"))
    }
