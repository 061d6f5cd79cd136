"""policy=budget: scores from Records, bits as they are stored, a prediction beside the measured."""

from __future__ import annotations

import itertools
import json
import math
import shlex

import pytest
import tiny
import torch
from desk import Desk, lay

from bitsweep import cli, config, formats, models
from bitsweep.artifacts import Artifacts
from bitsweep.compose import compose
from bitsweep.errors import Refused, UserError
from bitsweep.policies.budget import Budget, stored_bits
from bitsweep.prepared import prepare
from bitsweep.spec import QuantSpec
from bitsweep.store import Store
from bitsweep.sweep import Session, launch
from bitsweep.tensor import QuantTensor

OPTIONS = (2, 4)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk with the scores of every layer of a model of one block at 2 and 4 bits."""
    desk = lay(tmp_path_factory.mktemp("budget"))
    tiny.llama(desk.folder / "llama", num_hidden_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk.folder)
        patch.setenv("BITSWEEP_CACHE", str(desk.folder / "cache"))
        session = launch(overrides(desk, "policy=only", "policy.only=each:layer", "bits=2,4",
                                   "experiment=sensitivity"), Session())  # fmt: skip
    assert len(session.outcomes) == 2 * (7 + 2)
    return desk


@pytest.fixture(autouse=True)
def _at_the_desk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)


def overrides(desk: Desk, *more: str) -> list[str]:
    return [item for item in desk.overrides(*more) if item != "probes.kl=null"]


def planned(desk: Desk, *more: str, artifacts: Artifacts | None = None):
    asked = ("policy=budget", f"policy.options=[{','.join(map(str, OPTIONS))}]", *more)
    point = config.job(compose(overrides(desk, *asked)), "bitsweep run data=text").point
    return prepare(point, artifacts or Artifacts(None)).plan


def scored(desk: Desk) -> dict[tuple[str, int], dict[str, float]]:
    """What the Records of policy=only say, read without any of our code."""
    found = {}
    for path in desk.records("sensitivity"):
        record = json.loads(path.read_text())
        (layer,) = record["plan"]["notes"]["layers"]
        found[layer, record["point"]["bits"]] = {
            "kl_mean/text": record["metrics"]["kl_mean/text"]["value"],
            "loss/text": math.log(record["metrics"]["ppl/text"]["delta"]["value"]),
            "stored": record["metrics"]["bits_per_weight"]["value"],
        }
    return found


def test_a_block_gets_what_brute_force_gives_it(desk: Desk) -> None:
    """7 layers, 128 plans, against the Records' own numbers."""
    found = scored(desk)
    skeleton = models.skeleton(config.job(compose(overrides(desk))).point.model, Artifacts(None))
    layers = [n for n, layer in skeleton.layers.items() if layer.block is not None]
    weights = {name: math.prod(skeleton.layers[name].shape) for name in layers}
    for average in (2.4, 3.0, 3.5, 4.2):
        every = (dict(zip(layers, p, strict=True)) for p in itertools.product(OPTIONS, repeat=7))
        fitting = [
            pick
            for pick in every
            if sum(found[n, b]["stored"] * weights[n] for n, b in pick.items())
            <= average * sum(weights.values())
        ]
        best = min(fitting, key=lambda p: sum(found[key]["kl_mean/text"] for key in p.items()))
        plan = planned(desk, f"policy.average_bits={average}")
        assert {name: spec.weight.bits for name, spec in plan.layers.items()} == best


@pytest.mark.parametrize("average", [2.32, 2.7, 3.0, 3.333, 4.0, 4.3125, 8])
def test_the_budget_is_never_exceeded_and_the_slack_is_said(desk: Desk, average: float) -> None:
    plan = planned(desk, f"policy.average_bits={average}")
    found = scored(desk)
    skeleton = models.skeleton(config.job(compose(overrides(desk))).point.model, Artifacts(None))
    weights = {name: math.prod(skeleton.layers[name].shape) for name in plan.layers}
    stored = sum(found[n, s.weight.bits]["stored"] * weights[n] for n, s in plan.layers.items())
    total = sum(weights.values())
    assert stored <= average * total
    assert plan.notes["spent_bits"] == pytest.approx(stored / total, abs=1e-5)
    assert plan.notes["slack_bytes"] == int((int(average * total) - round(stored)) / 8)


def test_the_prediction_is_the_sum_of_the_scores(desk: Desk) -> None:
    plan, found = planned(desk, "policy.average_bits=3.3"), scored(desk)
    for name in ("kl_mean/text", "loss/text"):
        each = (found[n, spec.weight.bits][name] for n, spec in plan.layers.items())
        assert plan.notes["predicted"][name] == pytest.approx(math.fsum(each))


def test_blocks_and_ends_share_a_budget_when_asked(desk: Desk) -> None:
    plan = planned(desk, "policy.average_bits=3.3", "policy.roles=[linear,embedding,head]")
    assert len(plan.layers) == 9
    assert planned(desk, "policy.average_bits=3.3").layers.keys() < plan.layers.keys()


def test_too_little_for_the_narrowest_option_is_refused(desk: Desk) -> None:
    with pytest.raises(Refused, match=r"average_bits=2\.1: options=\[2,4\] store at least 2\.2812"):
        planned(desk, "policy.average_bits=2.1")


def test_missing_scores_are_refused_with_the_command_that_makes_them(desk: Desk) -> None:
    with pytest.raises(Refused) as refusal:
        planned(desk, "policy.average_bits=3", "bits=3", "symmetric=true")
    words = str(refusal.value)
    assert "results/sensitivity has no score of 14 of 14 layers × bits" in words
    assert words.endswith(
        "bitsweep run -m data=text policy=only policy.only=each:layer bits=2,4 "
        "probes=sensitivity experiment=sensitivity"
    )
    with pytest.raises(Refused, match="no score of 7 of 21"):
        planned(desk, "policy.options=[2,3,4]")


def test_the_command_of_a_refusal_makes_the_missing_scores(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("policy=budget", "policy.by=block", "policy.average_bits=3", "policy.options=[4]",
             "group_size=32")  # fmt: skip
    assert cli.dispatch(["run", *overrides(desk, *asked)]) == cli.MISTAKE
    command = capsys.readouterr().err.partition("measure them once: bitsweep ")[2]
    assert cli.dispatch(shlex.split(command)) == cli.OK
    asked = (*asked, "policy.average_bits=4.7", "experiment=after")
    assert cli.dispatch(["run", *overrides(desk, *asked)]) == cli.OK


def test_the_command_of_a_refusal_scores_where_the_points_own_probes_do_not(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("policy=budget", "policy.average_bits=3", "policy.options=[2]", "group_size=16")
    rest = [word for word in overrides(desk, *asked) if not word.startswith("probes.")]
    assert cli.dispatch(["run", *rest, "probes=latency", "probes.latency.rounds=1"]) == cli.MISTAKE
    command = capsys.readouterr().err.partition("measure them once: bitsweep ")[2]
    assert [word for word in shlex.split(command) if "probes" in word] == ["probes=sensitivity"]
    assert cli.dispatch(shlex.split(command)) == cli.OK
    assert cli.dispatch(["run", *rest, "probes=size", "policy.average_bits=3.5",
                         "experiment=after"]) == cli.OK  # fmt: skip


def test_a_folder_elsewhere_is_where_the_command_puts_the_scores(desk: Desk) -> None:
    with pytest.raises(Refused, match=r" experiment=mine results_dir=other/place$"):
        planned(desk, "policy.average_bits=3", "policy.scores=other/place/mine")


def test_the_points_of_a_sweep_read_the_scores_once_unless_they_change(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    records = Store.records
    monkeypatch.setattr(Store, "records", lambda store: reads.append(1) or records(store))
    artifacts = Artifacts(None)
    for average in (2.7, 3.0, 4.0):
        planned(desk, f"policy.average_bits={average}", artifacts=artifacts)
    assert len(reads) == 1
    desk.records("sensitivity")[0].touch()
    planned(desk, "policy.average_bits=3", artifacts=artifacts)
    assert len(reads) == 2


def test_a_score_that_no_record_has_is_refused_with_those_there(desk: Desk) -> None:
    with pytest.raises(Refused, match=r"policy\.score=blue.*bits_per_byte/text.*loss/text"):
        planned(desk, "policy.score=blue")


def test_the_row_holds_the_prediction_beside_the_measured_and_no_bits(desk: Desk) -> None:
    launch(overrides(desk, "policy=budget", "policy.options=[2,4]", "policy.average_bits=3",
                     "experiment=budgets"), Session())  # fmt: skip
    (record,) = Store("results/budgets").records()
    assert record.status == "ok"
    assert record.point["bits"] is None
    assert record.point["label"] == "rtn w*g64 budget 3 of 2,4"
    assert record.plan["notes"]["spent_bits"] <= 3
    assert record.metrics["bits_per_weight"].value == pytest.approx(
        record.plan["notes"]["spent_bits"], abs=1e-5
    )


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(3, 32),
        QuantSpec(4, -1, symmetric=True),
        QuantSpec(2, 48, ragged=True),
        QuantSpec(8, 0),
        QuantSpec(4, 64, zero="real"),
        QuantSpec(4, 64, scale_dtype="power_of_two"),
        *(QuantSpec(4, 32, format=name) for name in ("nf", "codebook", "log") if name in
          formats.names()),
    ],
    ids=str,
)  # fmt: skip
def test_stored_bits_are_those_of_the_tensor(spec: QuantSpec) -> None:
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))
    tensor = QuantTensor.quantize(weight, spec)
    assert stored_bits((24, 128), spec) == 8 * sum(tensor.nbytes().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average_bits": 0.0}, "takes over 0"),
        ({"average_bits": 3.0, "options": (2, 2)}, "takes different widths"),
        ({"average_bits": 3.0, "by": "head"}, "takes layer, role, block"),
        ({"average_bits": 3.0, "roles": ("mlp",)}, "no such role"),
    ],
)
def test_a_mistake_names_the_key(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Budget(**options)
