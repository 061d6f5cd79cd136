"""Configuration to Job: what is validated before any model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitsweep import config
from bitsweep.artifacts import Artifacts
from bitsweep.compose import compose
from bitsweep.config import Job, check, check_device
from bitsweep.errors import UserError


def a_job(*overrides: str) -> Job:
    return config.job(compose(overrides))


def test_the_default_point_is_rtn_at_4_bits_in_groups_of_64() -> None:
    point = a_job().point
    assert point.columns()["label"] == "rtn w4g64 uniform"
    assert point.folder == Path("results/adhoc")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bits=four", "bits=four: takes a number"),
        ("bits=0", "bits=0: takes a number over 0 and up to 16"),
        ("bits=17", "bits=17: takes a number over 0 and up to 16"),
        ("group_size=6.5", "group_size=6.5: takes a whole number"),
        ("group_size=-2", r"group_size=-2: takes a number of weights, -1 .* or 0"),
        ("format=in", r"format=in: no such format; did you mean int"),
        ("misfit=raged", "misfit=raged: no such misfit; did you mean ragged"),
        ("scale_dtype=bfloat16", "scale_dtype=bfloat16: no such scale_dtype; did you mean float16"),
        ("engine=torch_int5", "engine=torch_int5: no such engine; did you mean torch_int"),
        ("symmetric=maybe", "symmetric=maybe: takes true or false"),
        ("seed=-1", "seed=-1: takes a whole number from 0"),
        ("threads=0", "threads=0: takes a whole number from 1, or null"),
        ("experiment=a/b", "experiment=a/b: takes a name of one folder"),
        ("method._target_=os.system", r"method._target_=os.system: only bitsweep's classes"),
        ("+method.dampin=1", "method.dampin=1: no such key"),
        ("+calibration.window_size=1", "calibration.window_size: no such key; did you mean window"),
        ("calibration.windows=0", "calibration.windows=0: takes a whole number from 1"),
        ("data.window=1", "^data.window=1: takes 2 tokens or more"),
        ("calibration.window=1", "^calibration.window=1: takes 2 tokens or more"),
        ("results_dir=", "results_dir=: takes a folder; write results_dir=. for this one"),
        ("calibration.seed=-1", "calibration.seed=-1: takes a whole number from 0"),
        (f"seed={2**63}", f"seed={2**63}: takes a whole number from 0 to {2**63 - 1}"),
        ("probes.perplexity.tokens=-5", "probes.perplexity.tokens=-5: give at least 1"),
        ("probes.generation.limit=0", "probes.generation.limit=0: give at least 1"),
        ("policy.rules=[{roll: ffn}]", "policy.rules.*roll: no such key"),
        ("policy.rules=[{role: fnn}]", "role=fnn: no such role"),
        ("policy.rules=[{bits: four}]", r"policy.rules\[0\].bits=four: takes a number"),
        ("policy.rules=[{group_size: x}]", r"policy.rules\[0\].group_size=x: takes a whole number"),
        ("policy.rules=[{symmetric: maybe}]", r"rules\[0\].symmetric=maybe: takes true or false"),
        ("policy.rules=[{keep: perhaps}]", r"policy.rules\[0\].keep=perhaps: takes true or false"),
        ("policy.rules=[{name: 3}]", r"policy.rules\[0\].name=3: takes text"),
        ("policy.rules=[{blocks: 0..3}]", r"policy.rules\[0\].blocks=0..3: write blocks as 0-3"),
        ("+policy.untie=maybe", "policy.untie=maybe: takes true or false"),
        ("+nonsense=1", "nonsense=1: no such key"),
    ],
)
def test_a_mistake_is_found_from_the_configuration_alone(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        a_job(override)
    assert "\n" not in str(caught.value)


def test_bits_are_whole_where_they_can_be() -> None:
    assert isinstance(a_job("bits=4.0").point.spec.bits, int)
    assert a_job("bits=2.5").point.spec.bits == 2.5


def test_a_checkpoint_of_ones_own_is_named_after_its_path() -> None:
    assert a_job("model.path=org/pythia-70m").point.model.name == "pythia-70m"
    assert a_job("model.path=some/folder/").point.model.name == "folder"
    assert a_job("model.path=org/x", "model.name=mine").point.model.name == "mine"
    assert a_job("model=gpt2").point.model.name == "gpt2"


def test_a_probe_set_to_null_is_left_out() -> None:
    names = set(a_job().point.probes)
    assert set(a_job("probes.tasks=null").point.probes) == names - {"tasks"}


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"model.device=cuda: torch finds no GPU here"):
        check_device("cuda")
    with pytest.raises(UserError, match=r"takes cpu, cuda or cuda:INDEX"):
        check_device("gpu")
    check_device("cpu")


def test_calibrating_on_the_measured_text_is_refused(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("The same words twice. " * 20)
    overrides = [
        "data=text",
        f"data.path={tmp_path}/one.txt",
        f"data.calibration_path={tmp_path}/two.txt",
    ]
    artifacts = Artifacts(None)
    check(a_job(*overrides, "method=rtn"), artifacts)  # looks at no text
    with pytest.raises(UserError, match=r"calibration=.*evaluation text"):
        check(a_job(*overrides, "method=gptq"), artifacts)


def test_a_method_that_calibrates_needs_a_text(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Some words. " * 20)
    job = a_job("data=text", f"data.path={tmp_path}/one.txt", "method=gptq")
    with pytest.raises(UserError, match=r"give data\.calibration_path=FILE"):
        check(job, Artifacts(None))


def test_a_missing_text_is_found_before_the_model(tmp_path: Path) -> None:
    job = a_job("data=text", f"data.path={tmp_path}/nothing.txt")
    with pytest.raises(UserError, match=r"nothing\.txt"):
        check(job, Artifacts(None))
