"""Shapes: random weights of real dimensions, for what no weight decides; sized without any."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from bitsweep import cli, config, formats, report
from bitsweep.artifacts import Artifacts
from bitsweep.axes import GROUPS
from bitsweep.commands import complete
from bitsweep.compose import compose, group_files
from bitsweep.config import Job
from bitsweep.errors import Refused, UserError
from bitsweep.models import Model, ModelSource, load, shapes, skeleton
from bitsweep.models.drawn import POOL, fill
from bitsweep.prepared import Prepared, prepare
from bitsweep.record import Record
from bitsweep.report import labels
from bitsweep.run import execute
from bitsweep.spec import QuantSpec
from bitsweep.store import Store
from bitsweep.tensor import QuantTensor

PUBLISHED = {
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "smollm2_135m": 134_515_008,
    "qwen2_5_0_5b": 494_032_768,
    "llama3_2_1b": 1_235_814_400,
    "tinyllama_1_1b": 1_100_048_384,
    "llama2_7b": 6_738_415_616,
}
"""Parameters as the models' pages state them, a tied head once."""

SMALL = "shape/tiny"


@pytest.fixture(autouse=True)
def _tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape that is made in no time, beside the shipped ones: ``shape:tiny``."""
    known = shapes.names()
    values = {"vocab_size": 384, "hidden_size": 128, "intermediate_size": 256}
    values |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    values |= {"model_type": "llama", "tie_word_embeddings": False, "dtype": "bfloat16"}
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    monkeypatch.setattr(shapes, "names", lambda: {**known, "tiny": file})


def source(name: str, **options: object) -> ModelSource:
    return ModelSource(f"shape/{name}", f"shape:{name}", dtype="bfloat16", **options)  # type: ignore[arg-type]


def a_job(*overrides: str) -> Job:
    given = ["model.path=shape:tiny", "model.dtype=bfloat16", "tracker=none", *overrides]
    return config.job(compose(given))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_number_of_parameters(name: str, artifacts: Artifacts) -> None:
    found = skeleton(source(name), artifacts)
    assert found.parameters == PUBLISHED[name]
    assert all(parameter.is_meta for parameter in found.module.parameters())


def test_every_shape_is_a_choice_of_model_and_of_nothing_else() -> None:
    files = group_files("model")
    assert {f"shape/{name}" for name in PUBLISHED} == {name for name in files if "/" in name}
    for group in GROUPS:
        assert group == "model" or not any("/" in name for name in group_files(group))
    for name in PUBLISHED:
        model = config.job(compose([f"model=shape/{name}"])).point.model
        assert (model.name, model.path) == (f"shape/{name}", f"shape:{name}")


def test_list_completion_and_hints_know_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    cli.dispatch(["list", "models"])
    assert "\nshape/llama2_7b" in capsys.readouterr().out
    assert complete._own(["bitsweep", "run", "model=shape/py"]) == [
        "model=shape/pythia_160m",
        "model=shape/pythia_70m",
    ]
    with pytest.raises(UserError, match=r"model=shape/pythia_16: no such model; did you mean shap"):
        compose(["model=shape/pythia_16"])
    with pytest.raises(UserError, match=r"model.path=shape:llama: no such shape.*llama2_7b"):
        config.job(compose(["model.path=shape:llama"]))


def test_weights_are_the_same_at_every_load_and_normal_with_the_range_of_the_config() -> None:
    one, two = (load(source("tiny"), Artifacts(None)) for _ in range(2))
    pairs = zip(one.module.parameters(), two.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    weight = one.weight("model.layers.1.mlp.down_proj").float()
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)  # llama's initializer_range
    assert abs(weight.mean().item()) < 4 * 0.02 / weight.numel() ** 0.5
    norm = one.module.get_parameter("model.norm.weight")
    assert bool((norm == 1).all())
    assert {p.dtype for p in one.module.parameters()} == {torch.bfloat16}


def test_biases_are_zero_and_a_tied_head_is_one_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: Artifacts
) -> None:
    values = json.loads(shapes.names()["tiny"].read_text(encoding="utf-8"))
    file = tmp_path / "other.json"
    file.write_text(json.dumps({**values, "model_type": "qwen2", "tie_word_embeddings": True}))
    monkeypatch.setattr(shapes, "names", lambda: {"other": file})
    made = load(source("other"), artifacts)
    assert made.tied
    assert not made.module.get_parameter("model.layers.0.self_attn.q_proj.bias").any()
    assert not load(source("other", untie=True), artifacts).tied


def test_a_pool_is_repeated_from_any_place_until_the_tensor_is_full() -> None:
    tensor = torch.empty(2, 4)
    fill(tensor, torch.tensor([0.0, 1.0, 2.0]), begin=1)
    assert tensor.flatten().tolist() == [1, 2, 0, 1, 2, 0, 1, 2]


def test_the_pool_is_prime_so_that_no_two_rows_begin_alike() -> None:
    assert all(POOL % divisor for divisor in range(2, int(POOL**0.5) + 1))


def test_identity_is_configuration_and_rule_and_not_who_asks(artifacts: Artifacts) -> None:
    ours, other = (skeleton(source(name), artifacts) for name in ("pythia_70m", "pythia_160m"))
    renamed = skeleton(dataclasses.replace(source("pythia_70m"), name="mine"), artifacts)
    assert ours.checkpoint == renamed.checkpoint != other.checkpoint


def test_a_shape_decodes(artifacts: Artifacts) -> None:
    made = load(source("tiny"), artifacts)
    with torch.no_grad():
        logits = made.module(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probes=quality"], r"^probes.perplexity, probes.kl, .*random weights.*probes=latency"),
        (["probes=size", "method=gptq"], r"^method=gptq: .*random weights.*method=rtn or hqq"),
        (["probes=size", "transforms=[smooth]"], r"^transforms=\[smooth\]: looks at calibration"),
        (["probes=size", "recover=[distill]"], r"^recover=\[distill\]: looks at calibration"),
        (
            ["probes=size", "input.bits=8", "input.per=tensor", "input.range=minmax"],
            r"^input.range=minmax: .*input.range=dynamic",
        ),
    ],
)
def test_what_needs_training_or_text_is_refused_with_what_works(
    overrides: list[str], message: str, artifacts: Artifacts
) -> None:
    with pytest.raises(Refused, match=message) as refusal:
        prepare(a_job(*overrides).point, artifacts)
    assert "\n" not in str(refusal.value)


def test_presets_of_size_and_latency_have_no_probe_that_is_refused(artifacts: Artifacts) -> None:
    for preset in ("size", "latency"):
        assert prepare(a_job(f"probes={preset}", "threads=1").point, artifacts).run_ids


def records(folder: Path, artifacts: Artifacts, *overrides: str) -> list[Record]:
    job = a_job("probes=size", f"results_dir={folder}", *overrides)
    return execute(job.point, artifacts, Store(job.point.folder))


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=full_precision"],
        ["method=full_precision", "method.dtype=bfloat16"],
        ["bits=4", "group_size=128"],
        ["bits=3", "group_size=64", "policy=all", "symmetric=true"],
        ["policy=by_role", "group_size=48", "misfit=ragged"],
        ["method=hqq", "group_size=32"],
        ["bits=8", "group_size=0"],
        ["format=nf", "group_size=64"],
        ["format=nvfp4"],
        ["format=codebook", "group_size=-1"],
        ["format=vector4", "bits=2", "group_size=0"],
        ["format=ternary", "bits=1.6"],
        ["input.bits=8", "kv.bits=8"],
    ],
    ids=" ".join,
)
def test_sizes_without_weights_are_those_with(
    overrides: list[str], tmp_path: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    (without,) = records(tmp_path / "a", artifacts, *overrides)
    monkeypatch.setattr(Prepared, "weightless", False)
    (with_weights,) = records(tmp_path / "b", artifacts, *overrides)
    assert without.status == "ok"
    assert without.metrics == with_weights.metrics
    assert without.run_id == with_weights.run_id


def test_no_weight_is_drawn_where_none_is_needed(
    tmp_path: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Model:
        raise AssertionError("weights were drawn")

    monkeypatch.setattr("bitsweep.models.loading.draw", never)
    (record,) = records(tmp_path, artifacts, "group_size=128")
    assert record.status == "ok"
    (masked,) = records(tmp_path, artifacts, "recover=[prune]", "recover.prune.score=magnitude")
    assert "weights were drawn" in str(masked.reason)


def test_llama2_7b_at_w4_g128_is_what_paper_and_pencil_say(
    tmp_path: Path, artifacts: Artifacts
) -> None:
    (record,) = records(tmp_path, artifacts, "model.path=shape:llama2_7b", "group_size=128")
    blocks = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    kept = 2 * 32000 * 4096 + (2 * 32 + 1) * 4096  # embedding, head, norms
    expected = blocks * (4 + (16 + 4) / 128) / 8 + 2 * kept
    assert record.metrics["file_mib"].value == pytest.approx(expected / 2**20, rel=1e-12)
    assert record.metrics["bits_per_weight"].value == 4.15625


@pytest.mark.parametrize("name", sorted(formats.names()))
def test_codes_without_values_take_the_bytes_of_codes(name: str) -> None:
    family = formats.get(name)
    widths = itertools.product((4, 8, 6, 2, 1.6, 1, 0.5), (64, 0))
    tried = (QuantSpec(bits, group, format=name) for bits, group in widths)
    spec = next(s for s in map(family.resolve, tried) if family.skip(s) is None)
    weight = torch.linspace(-1, 1, 6 * 128).view(6, 128)
    filled, unfilled = QuantTensor.quantize(weight, spec), QuantTensor.unfilled((6, 128), spec)
    assert unfilled.nbytes() == filled.nbytes()
    assert unfilled.codes.shape == filled.codes.shape
    assert {k: (v.shape, v.dtype) for k, v in unfilled.params.items()} == {
        k: (v.shape, v.dtype) for k, v in filled.params.items()
    }


def test_every_row_says_that_its_weights_are_random(tmp_path: Path, artifacts: Artifacts) -> None:
    (record,) = records(tmp_path, artifacts, "experiment=e")
    assert record.point["model"] == SMALL
    assert record.point["label"].endswith("(random weights)")
    assert record.model["weights"] == "random"
    (row,) = labels.rows(report.load(tmp_path / "e"))
    assert labels.weights(row) == "w4g64 random"


def test_a_report_of_shapes_alone_has_sizes_and_no_front(
    tmp_path: Path, artifacts: Artifacts
) -> None:
    for overrides in (["method=full_precision"], ["bits=4"], ["bits=8"]):
        records(tmp_path, artifacts, "experiment=e", *overrides)
    written = report.write(tmp_path / "e")
    assert [path.name for path in written.tables] == ["main.md", "main.csv", "main.tex"]
    lines = written.tables[0].read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if " random " in line]
    assert len(rows) == 3
    assert all(row.endswith("|       |") for row in rows)  # front: none
    assert written.figures == ()
