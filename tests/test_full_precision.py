"""Full precision: a cast that touches parameters and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec
from bitsweep.data import TextSource
from bitsweep.errors import UserError
from bitsweep.methods.full_precision import FullPrecision
from bitsweep.models import Model
from bitsweep.spec import Plan


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.load("llama_tied", tmp_path_factory.mktemp("full_precision"))


def cast(model: Model, dtype: str) -> Model:
    nothing = CalibrationSpec(TextSource("none", path=""))
    return FullPrecision(dtype)(model.copy(), Plan(), Calibration(model, nothing, Artifacts(None)))


def test_float32_is_the_model_itself(model: Model) -> None:
    ids = torch.arange(8).view(1, 8)
    with torch.no_grad():
        assert torch.equal(cast(model, "float32").module(ids).logits, model.module(ids).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_is_what_transformers_loads_in_that_dtype(
    model: Model, dtype: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny.save("llama_tied", tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = torch.arange(8).view(1, 8)
    with torch.no_grad():
        ours = cast(model, dtype).module(ids).logits
        assert ours.dtype == getattr(torch, dtype)
        assert torch.equal(ours, theirs(ids).logits)


def test_a_tied_parameter_stays_one(model: Model) -> None:
    half = cast(model, "bfloat16").module
    assert half.get_input_embeddings().weight is half.get_output_embeddings().weight


def test_an_unknown_dtype_names_the_choices() -> None:
    with pytest.raises(UserError, match=r"method.dtype=int8: use float32, bfloat16, float16"):
        FullPrecision("int8")
