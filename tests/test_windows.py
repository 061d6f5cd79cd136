"""Which windows of a text calibrate: drawn, of the longest documents, the most diverse; or none."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsweep import config
from bitsweep.artifacts import Artifacts
from bitsweep.calibration import Calibration, CalibrationSpec, RandomTokens, windows
from bitsweep.compose import compose
from bitsweep.data import TextSource
from bitsweep.errors import UserError
from bitsweep.models import Model

DOCUMENTS = ("a" * 20, "b" * 90, "c" * 10, "d" * 40, "e" * 30)


@pytest.fixture(scope="module")
def spec(folder: Path) -> CalibrationSpec:
    """Five documents, a byte a token, in windows of 16: bb starts at 22, dd at 126, ee at 168."""
    path = folder / "documents.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return CalibrationSpec(TextSource("documents", str(path)), windows=3, window=16)


def texts(model: Model, spec: CalibrationSpec) -> list[str]:
    tokens = Calibration(model, spec, Artifacts(None)).tokens
    return [model.tokenizer.decode(window) for window in tokens]


def test_random_windows_are_those_of_the_seed(model: Model, spec: CalibrationSpec) -> None:
    whole = "\n\n".join(DOCUMENTS)
    cut = [whole[i : i + 16] for i in range(0, len(whole) // 16 * 16, 16)]
    assert texts(model, spec) == [cut[i] for i in random.Random(0).sample(range(len(cut)), 3)]


def test_the_longest_document_goes_first(model: Model, spec: CalibrationSpec) -> None:
    # only b (90) fills whole windows, five of them, and d (40) one; then come parts
    assert texts(model, replace(spec, choice="longest")) == ["b" * 16] * 3
    six = texts(model, replace(spec, choice="longest", windows=6))
    assert six == [*["b" * 16] * 5, "d" * 16]


def test_a_document_ends_with_its_separator() -> None:
    text = "one\n\ntwo\n\n\nthree"
    ends = torch.arange(1, len(text) + 1)
    blank = windows.documents_of(text, ends, TextSource("t", "t.txt"))
    assert np.bincount(blank).tolist() == [5, 6, 5]
    lines = windows.documents_of(
        "one\ntwo\n", torch.arange(1, 9), TextSource("t", "t", fold_newlines=True)
    )
    assert np.bincount(lines).tolist() == [4, 4]


def test_diverse_windows_are_as_far_from_each_other_as_greedy_makes_them() -> None:
    generator = torch.Generator().manual_seed(0)
    cut = torch.randint(0, 30, (12, 8), generator=generator)
    counts = np.zeros((12, 30))
    for i, row in enumerate(cut.tolist()):
        for token in row:
            counts[i, token] += 1
    vectors = counts * (np.log(13 / (1 + (counts > 0).sum(0))) + 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = [int(np.argmax(vectors @ vectors.mean(0)))]
    while len(chosen) < 5:
        closeness = (vectors @ vectors[chosen].T).max(1)
        rest = [i for i in range(12) if i not in chosen]
        chosen.append(min(rest, key=lambda i: closeness[i]))
    assert windows.diverse(cut, 5) == chosen


def test_all_windows_are_chosen_once_where_all_are_wanted() -> None:
    cut = torch.zeros(4, 8, dtype=torch.int64)
    assert sorted(windows.diverse(cut, 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("choice", ["longest", "diverse"])
def test_a_choice_that_draws_nothing_knows_no_seed(
    model: Model, spec: CalibrationSpec, choice: str
) -> None:
    one, two = (
        Calibration(model, replace(spec, choice=choice, seed=seed), Artifacts(None))
        for seed in (0, 1)
    )
    assert torch.equal(one.tokens, two.tokens)
    assert one.identity == two.identity
    assert one.identity["choice"] == choice


def test_the_default_choice_leaves_no_trace_in_the_identity(
    model: Model, spec: CalibrationSpec
) -> None:
    identity = Calibration(model, spec, Artifacts(None)).identity
    assert set(identity) == {"source", "text_sha256", "sha256", "windows", "window", "seed"}


def test_random_tokens_are_of_the_whole_vocabulary_but_the_special_ones(model: Model) -> None:
    spec = CalibrationSpec(RandomTokens(), windows=64, window=64)
    tokens = Calibration(model, spec, Artifacts(None)).tokens
    assert tokens.shape == (64, 64)
    assert set(tokens.flatten().tolist()) == set(range(256))  # one a byte; <s>, </s>, <pad> follow
    again = Calibration(model, replace(spec, seed=1), Artifacts(None)).tokens
    assert not torch.equal(tokens, again)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["calibration.choice=longst"], "calibration.choice=longst: no such choice; did you mean"),
        (["calibration=random_tokens", "calibration.choice=diverse"], "have no documents"),
        (["calibration.source=mine.txt"], "calibration.source=mine.txt: takes random_tokens"),
    ],
)
def test_a_mistake_names_the_key(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.job(compose(overrides))


@pytest.mark.parametrize("name", ["random_tokens", "other_domain"])
def test_presets_of_other_sources_compose(name: str) -> None:
    assert config.job(compose([f"calibration={name}"])).point.calibration.source.name == name
