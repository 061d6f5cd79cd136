"""policy=only: what it names, how a sweep spells it out, and that such points resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import tiny
from desk import Desk, lay
from test_policies import AXES, llama

from bitsweep import cli, policies
from bitsweep.errors import UserError
from bitsweep.policies.only import Only, short, targets
from bitsweep.sweep import Session, launch


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return lay(tmp_path)


def swept(desk: Desk, *overrides: str) -> Session:
    return launch(desk.overrides("policy=only", *overrides), Session())


@pytest.mark.parametrize(
    ("only", "planned"),
    [
        ("layers.2.up_proj", ["layers.2.up_proj"]),
        ("role:ffn.up", [f"layers.{i}.up_proj" for i in range(4)]),
        ("block:3", [n for n in llama().layers if n.startswith("layers.3.")]),
        ("head", ["head"]),
    ],
)
def test_one_part_is_planned_and_nothing_else(only: str, planned: list[str]) -> None:
    plan = policies.make(Only(only), llama(), AXES)
    assert list(plan.layers) == planned
    assert plan.notes["layers"] == planned


def test_to_name_one_end_of_a_tied_pair_is_to_name_both() -> None:
    for only in ("embed", "head", "role:head"):
        plan = policies.make(Only(only), llama(tied=True), AXES)
        assert list(plan.layers) == ["embed", "head"]


@pytest.mark.parametrize("by", ["layer", "role", "block"])
@pytest.mark.parametrize("tied", [True, False])
def test_targets_hold_every_layer_once_and_only_can_name_them(by: str, tied: bool) -> None:
    model = llama(tied=tied)
    found = targets(model, by)
    assert Counter(name for names in found.values() for name in names) == Counter(
        list(model.layers)
    )
    for target, names in found.items():
        assert tuple(policies.make(Only(target), model, AXES).layers) == names


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("each:head", "takes each:layer, each:role, each:block"),
        ("role:fnn", "no such role; did you mean ffn"),
        ("block:x", "write blocks as"),
        ("layer:3", "takes a layer's name, role:ROLE, block:INDEX"),
    ],
)
def test_a_mistake_is_found_before_a_model_is(only: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Only(only)


def test_a_part_that_the_model_lacks_is_an_error_that_names_one_it_has() -> None:
    with pytest.raises(UserError, match=r"did you mean layers\.0\.q_proj"):
        policies.make(Only("layers.0.q_prj"), llama(), AXES)
    with pytest.raises(UserError, match="several points are a sweep; use bitsweep run -m"):
        policies.make(Only("each:layer"), llama(), AXES)


def test_a_row_is_called_by_what_its_model_needs_no_more_of() -> None:
    assert short("model.layers.11.self_attn.q_proj") == "11.self_attn.q_proj"
    assert short("transformer.h.0.mlp.c_fc") == "0.mlp.c_fc"
    assert short("lm_head") == "lm_head"
    assert short("block:3") == "block:3"


def test_each_block_is_a_point_of_whichever_model_comes(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.gpt2(desk.folder / "gpt2")
    more = ("policy=only", "policy.only=each:block,model.layers.0.mlp.up_proj", "bits=3")
    assert desk("plan", *more) == cli.OK
    assert desk("plan", "model.path=gpt2", "policy=only", "policy.only=each:block") == cli.OK
    lines = [line for line in capsys.readouterr().out.splitlines() if " only " in line]
    assert [line.split()[2:7] for line in lines] == [
        *(["llama", "rtn", "w3g64", "only", t] for t in ("embed_tokens", "block:0", "block:1")),
        ["llama", "rtn", "w3g64", "only", "lm_head"],
        ["llama", "rtn", "w3g64", "only", "0.mlp.up_proj"],
        *(["gpt2", "rtn", "w4g64", "only", t] for t in ("wte", "block:0", "block:1")),
    ]


def test_only_points_resume_and_say_what_they_were(desk: Desk) -> None:
    first = swept(desk, "policy.only=each:role", "experiment=sensitivity")
    again = swept(desk, "policy.only=each:role", "experiment=sensitivity")
    assert {c.fate for c in first.candidates} == {"run"}
    assert {c.fate for c in again.candidates} == {"done"}
    records = [json.loads(path.read_text()) for path in desk.records("sensitivity")]
    assert sorted(r["plan"]["notes"]["only"] for r in records) == sorted(
        f"role:{role}"
        for role in ("embedding", "attention.qkv", "attention.out", "ffn.up", "ffn.gate",
                     "ffn.down", "head")
    )  # fmt: skip
    assert {r["point"]["policy"] for r in records} == {
        f"only {r['plan']['notes']['only']}" for r in records
    }
