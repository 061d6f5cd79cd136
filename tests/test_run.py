"""One point from configuration to Records, on a tiny checkpoint and texts of a few lines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny
import torch
from desk import QUICK, lay

from bitsweep import config, provenance
from bitsweep.artifacts import Artifacts
from bitsweep.compose import compose
from bitsweep.errors import Refused
from bitsweep.methods.rtn import RTN
from bitsweep.point import Point
from bitsweep.policies.rules import Policy
from bitsweep.prepared import prepare
from bitsweep.probes.perplexity import Perplexity
from bitsweep.run import execute
from bitsweep.store import Store


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``make("bits=3")``: the Point of these overrides, beside a tiny Llama."""
    monkeypatch.chdir(tmp_path)
    lay(tmp_path)

    def point(*overrides: str) -> Point:
        return config.job(compose(["model.path=llama", *QUICK, *overrides])).point

    return point


def records(point: Point, artifacts: Artifacts, **options):
    return execute(point, artifacts, Store(point.folder), **options)


def stable(record) -> dict:
    """A Record without what may differ between two launches."""
    return {k: v for k, v in record.to_json().items() if k not in ("provenance", "timings")}


def test_a_point_is_named_before_its_weights_are_read(make, artifacts, monkeypatch):
    from bitsweep import models

    monkeypatch.setattr(models, "load", None)
    assert len(prepare(make(), artifacts).point_id) == 64


def test_each_scientific_axis_changes_the_point_and_nothing_else_does(make, artifacts):
    def name(*overrides):
        return prepare(make(*overrides), artifacts).point_id

    base = name()
    for other in (
        "bits=3",
        "group_size=32",
        "symmetric=true",
        "method=hqq",
        "policy=ffn_only",
        "scale_dtype=float32",
        "model.dtype=bfloat16",
        "method.clip=mse",
    ):
        assert name(other) != base, other
    for same in ("experiment=other", "tracker=wandb", "misfit=ragged", "threads=1"):
        assert name(same) == base, same


@pytest.mark.parametrize(
    ("overrides", "untied"),
    [([], False), (["transforms=[rotate]"], True), (["policy=by_role"], True)],
)
def test_the_record_says_whether_a_tied_head_got_a_matrix_of_its_own(
    overrides, untied, make, artifacts, tmp_path
):
    tiny.llama_tied(tmp_path / "tied")
    (record,) = records(make("model.path=tied", *overrides), artifacts)
    assert record.plan["untied"] is untied


def test_an_option_that_came_later_leaves_older_points_their_names(make, artifacts):
    from bitsweep.prepared import step_identity

    assert step_identity(make().method)["options"] == {"clip": "none"}
    assert step_identity(make("method=rtn_stochastic").method)["options"] == {
        "clip": "none",
        "rounding": "stochastic",
    }


def test_calibration_names_only_a_method_that_looks_at_it(make, artifacts):
    def name(*overrides):
        return prepare(make(*overrides), artifacts).point_id

    assert name("calibration.windows=5") == name()
    assert name("method=gptq", "calibration.windows=5") != name("method=gptq")


def test_a_mended_method_leaves_no_stale_point(make, artifacts, monkeypatch):
    before = prepare(make(), artifacts).run_ids
    monkeypatch.setattr(RTN, "version", RTN.version + 1)
    assert prepare(make(), artifacts).run_ids["quality"] != before["quality"]


def test_an_impossible_point_is_refused_before_anything_is_loaded(make, artifacts):
    with pytest.raises(Refused, match="hqq"):
        prepare(make("method=hqq", "symmetric=true"), artifacts)
    with pytest.raises(Refused, match="group_size=48 does not divide"):
        prepare(make("group_size=48"), artifacts)


def test_sixteen_bits_lead_to_full_precision(make, artifacts):
    with pytest.raises(Refused, match=r"^method=rtn: bits=16: .*; method=full_precision leaves"):
        prepare(make("bits=16"), artifacts)


def test_a_width_of_a_policys_own_names_the_policy_and_a_layer(make, artifacts, tmp_path):
    rules = [{"role": "linear"}, {"role": "ffn.down", "bits": 9}]
    point = dataclasses.replace(make(), policy=Policy.from_config("nine", {"rules": rules}))
    said = r"^method=rtn: policy=nine, model\.layers\.0\.mlp\.down_proj: bits=9: "
    with pytest.raises(Refused, match=said):
        prepare(point, artifacts)


def test_a_refused_point_is_a_row_with_its_reason(make, artifacts):
    (row,) = records(make("group_size=48"), artifacts)
    assert (row.status, row.metrics) == ("refused", {})
    assert "try 128, 64, 32" in row.reason
    assert Store(make().folder).get(row.run_id).status == "refused"


def test_two_runs_agree_bit_for_bit(make, tmp_path):
    point = make("method=gptq", "bits=3")
    first, again = (
        records(point, Artifacts(tmp_path / name), force=True)[0] for name in ("one", "two")
    )
    assert stable(first) == stable(again)


def test_a_point_alone_equals_the_same_point_after_others(make, tmp_path):
    shared = Artifacts(tmp_path / "shared")
    records(make("method=full_precision"), shared)
    records(make("method=gptq", "bits=3"), shared)
    after = records(make("method=hqq"), shared)[0]
    alone = records(make("method=hqq", "experiment=alone"), Artifacts(tmp_path / "alone"))[0]
    assert stable(dataclasses.replace(alone, experiment="adhoc")) == stable(after)


def test_a_finished_record_is_not_measured_again(make, artifacts, monkeypatch):
    first = records(make(), artifacts)
    monkeypatch.setattr(RTN, "__call__", None)
    assert [r.to_json() for r in records(make(), artifacts)] == [r.to_json() for r in first]


def test_a_failure_is_a_row_and_the_next_launch_mends_it(make, artifacts):
    def broken(*_):
        raise RuntimeError("no memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RTN, "__call__", broken)
        (row,) = records(make(), artifacts)
    assert (row.status, row.reason) == ("failed", "RuntimeError: no memory")
    assert records(make(), artifacts)[0].status == "ok"
    assert [r.status for r in Store(make().folder).records()] == ["ok"]


def test_quality_survives_a_timing_that_fails(make, artifacts, monkeypatch):
    from bitsweep.probes.latency import Latency

    point = make("probes.latency={_target_: bitsweep.probes.latency.Latency}", "group_size=32")
    monkeypatch.setattr(Latency, "__call__", lambda *_: 1 / 0)
    assert {r.kind: r.status for r in records(point, artifacts)} == {
        "quality": "ok",
        "timing": "failed",
    }


def test_full_precision_differs_from_the_reference_by_exactly_nothing(make, artifacts):
    (row,) = records(make("method=full_precision"), artifacts)
    delta = next(m.delta for name, m in row.metrics.items() if name.startswith("ppl/"))
    assert (delta.value, delta.lo, delta.hi) == (1.0, 1.0, 1.0)


def test_the_record_tells_what_each_layer_became(make, artifacts):
    point = make("policy=ffn_only")
    (row,) = records(point, artifacts)
    plan = next(d["plan"] for d in Store(point.folder).details(row.run_id) if "plan" in d)
    assert plan["model.layers.0.mlp.down_proj"] == "w4g64"
    assert plan["model.layers.0.self_attn.q_proj"] == "torch.float32"


def test_the_row_says_what_training_cost(make, artifacts):
    point = make("method=qat", "method.steps=2", "recover=[finetune]", "recover.finetune.steps=1")
    (row,) = records(point, artifacts)
    assert row.calibration["trained_tokens"] == (2 + 1) * 4 * 32  # steps x batch x window
    assert row.timings["quantize"]["cpu_s"] > 0
    assert row.timings["finetune"]["cpu_s"] > 0
    assert row.point["method_options"] == "steps=2"
    assert row.point["recover"] == "finetune (steps=1)"


LATENCY = "probes.latency={_target_: bitsweep.probes.latency.Latency, tokens: TOKENS}"


def test_a_record_is_named_by_how_it_was_measured(make, artifacts, monkeypatch):
    def ids(tokens, *overrides):
        point = make(LATENCY.replace("TOKENS", str(tokens)), *overrides)
        return prepare(point, artifacts).run_ids

    base = ids(2)
    for other in (ids(3), ids(2, "engine=torch_int4")):
        assert other["timing"] != base["timing"]
        assert other["quality"] == base["quality"]
    monkeypatch.setattr(Perplexity, "version", Perplexity.version + 1)
    assert ids(2)["quality"] != base["quality"]
    assert ids(2)["timing"] == base["timing"]


def test_a_time_is_named_by_its_machine_and_a_quality_is_not(make, artifacts, monkeypatch):
    def ids():
        return prepare(make(LATENCY.replace("TOKENS", "2")), artifacts).run_ids

    base = ids()
    for holder, name in ((torch, "get_num_threads"), (provenance, "device_name")):
        with monkeypatch.context() as other:
            other.setattr(holder, name, lambda *_: 77)
            assert ids()["timing"] != base["timing"], name
            assert ids()["quality"] == base["quality"], name


def test_a_quality_is_named_by_its_text_window_and_tokens(make, artifacts):
    def run_id(*overrides):
        return prepare(make(*overrides), artifacts).run_ids["quality"]

    for other in ("data.window=16", "probes.perplexity.tokens=64"):
        assert run_id(other) != run_id(), other


def test_a_seed_names_only_a_point_that_it_decides(make, artifacts):
    def name(*overrides):
        return prepare(make(*overrides), artifacts).point_id

    assert name("seed=1") == name()
    drawn = "method=rtn_stochastic"
    assert name(drawn, "seed=1") != name(drawn)


def test_an_untied_head_makes_another_point_of_a_tied_checkpoint_only(make, artifacts, tmp_path):
    def name(*overrides):
        return prepare(make(*overrides), artifacts).point_id

    tiny.llama_tied(tmp_path / "tied")
    assert name("model.path=tied", "model.untie=true") != name("model.path=tied")
    assert name("model.untie=true") == name()
