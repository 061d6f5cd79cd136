"""Data, streams of tokens, windows, and the Reference that is measured once."""

import copy
import dataclasses

import pytest
import torch

from bitsweep import data as data_module
from bitsweep.artifacts import Artifacts, digest
from bitsweep.data import (
    Data,
    Keys,
    Reference,
    TextSource,
    check_calibration,
    make,
    make_text,
    stream,
    windows,
)
from bitsweep.errors import UserError

TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 8


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return TextSource("text", str(path))


def test_windows_do_not_overlap_and_drop_the_tail():
    assert windows(torch.arange(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_stream_is_the_whole_text_without_special_tokens(model, text, artifacts):
    tokens = stream(text, model, artifacts)["tokens"]
    assert model.tokenizer.decode(tokens) == TEXT


def test_a_stream_has_at_most_one_begin_token(model, text, artifacts):
    plain = stream(text, model, artifacts)["tokens"]
    begun = stream(text, model, artifacts, "stream")["tokens"]
    assert begun.tolist() == [model.tokenizer.bos_token_id, *plain.tolist()]


def test_byte_counts_end_with_the_bytes_of_the_text(model, text, artifacts):
    counts = stream(text, model, artifacts, "stream")["bytes"]
    assert counts[0] == 0
    assert counts[-1] == len(TEXT.encode("utf-8"))
    assert bool((counts.diff() >= 0).all())


def test_a_tokenizer_without_begin_token_refuses_bos_stream(model, text, artifacts):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.bos_token = None
    with pytest.raises(UserError, match=r"data\.bos=none"):
        stream(text, dataclasses.replace(model, tokenizer=tokenizer), artifacts, "stream")


def test_a_window_longer_than_the_context_is_refused(model):
    with pytest.raises(UserError, match=r"data.window=4096: .* context of 128"):
        Data("d", window=4096).window_of(model)


def test_no_window_is_the_context_where_that_is_shorter_than_2048(model):
    assert Data("d").window_of(model) == 128


def test_the_reference_is_measured_once_and_then_read(model, tmp_path):
    calls = []

    def measure(full):
        calls.append(full)
        return {"x": torch.ones(2)}

    for _ in range(2):
        reference = Reference(model, Data("d"), Artifacts(tmp_path))
        assert reference.get({"probe": "p"}, measure)["x"].tolist() == [1, 1]
    assert calls == [model]


def test_another_protocol_or_dtype_is_another_reference(model, tmp_path):
    artifacts = Artifacts(tmp_path)
    Reference(model, Data("d"), artifacts).get({"window": 4}, lambda _: 1)
    assert Reference(model, Data("d"), artifacts).get({"window": 8}, lambda _: 2) == 2
    rounded = dataclasses.replace(model, source=dataclasses.replace(model.source, dtype="bfloat16"))
    assert Reference(rounded, Data("d"), artifacts).get({"window": 4}, lambda _: 3) == 3


def test_what_is_left_of_one_model_is_not_found_for_another(model, artifacts):
    reference = Reference(model, Data("d"), artifacts)
    reference.leave(model, "x", 1)
    assert reference.found(model, "x") == 1
    assert reference.found(model.copy(), "x") is None


def test_calibrating_on_the_evaluation_text_is_refused(text, tmp_path, artifacts):
    data = Data("d", texts={"text": text})
    copied = tmp_path / "copy.txt"
    copied.write_text(TEXT, encoding="utf-8")
    part = tmp_path / "part.txt"
    part.write_text(TEXT[:100], encoding="utf-8")
    for source in (text, TextSource("copy", str(copied)), TextSource("part", str(part))):
        with pytest.raises(UserError, match="this is the evaluation text"):
            check_calibration(source, data, artifacts)


def test_calibrating_on_another_text_is_not_refused(text, tmp_path, artifacts):
    other = tmp_path / "other.txt"
    other.write_text("Something else altogether.", encoding="utf-8")
    check_calibration(TextSource("o", str(other)), Data("d", texts={"text": text}), artifacts)


def test_another_split_of_one_data_set_may_calibrate(artifacts):
    test = TextSource("w", "Salesforce/wikitext", split="test")
    train = TextSource("w", "Salesforce/wikitext", split="train")
    check_calibration(train, Data("d", texts={"w": test}), artifacts)
    with pytest.raises(UserError, match="evaluation text"):
        check_calibration(test, Data("d", texts={"w": test}), artifacts)


def test_a_yaml_becomes_texts_tasks_and_questions():
    data = make(
        "mine",
        {
            "root": "somewhere",
            "window": 64,
            "bos": "none",
            "texts": {"a": {"path": "a.txt", "fold_newlines": True}, "left_out": None},
            "tasks": {"t": {"path": "t.jsonl", "stop": None}},
            "questions": ["piqa"],
            "calibration": {"path": None},
        },
    )
    assert data.texts == {"a": TextSource("a", "a.txt", fold_newlines=True)}
    assert data.tasks["t"].stop is None
    assert data.questions == ("piqa",)
    assert data.calibration is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"windw": 3}, "windw"),
        ({"texts": {"a": {"path": "a.txt", "fold": True}}}, "fold"),
        (
            {"texts": {"a": {"path": None}}},
            r"^data\.texts\.a\.path=null: .*give data\.texts\.a\.path=",
        ),
        ({"texts": {"a": {"path": 5}}}, r"^data\.texts\.a\.path=5: takes text"),
        ({"calibration": "a.txt"}, r"^data\.calibration=a\.txt: .*data\.calibration\.path=a\.txt"),
        ({"window": "long"}, "window"),
    ],
)
def test_a_mistake_in_a_yaml_names_its_key(config, message):
    with pytest.raises(UserError, match=message):
        make("mine", config)


@pytest.mark.parametrize(
    ("name", "key", "calibrating"),
    [
        ("text", "data.path", "data.calibration_path"),
        ("mine", "data.texts.a.path", "data.calibration.path"),
    ],
)
def test_what_is_wrong_within_a_file_names_the_key_that_gave_it(
    tmp_path, artifacts, name, key, calibrating
):
    path = tmp_path / "empty.txt"
    path.write_text(" ", encoding="utf-8")
    data = make(name, {"texts": {"a": {"path": str(path)}}, "calibration": {"path": str(path)}})
    for source, named in ((data.texts["a"], key), (data.calibration, calibrating)):
        with pytest.raises(UserError, match=rf"^{named}={path}: the text .* is empty"):
            source.text(artifacts)


def test_a_texts_keys_are_no_part_of_what_it_is(artifacts):
    config = {"path": "org/name", "split": "test"}
    typed, bare = make_text("w", config, Keys("data.texts.w")), TextSource("w", **config)
    assert typed == bare
    assert typed.identity(artifacts) == bare.identity(artifacts)
    assert digest(typed) == digest(bare)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bos": "always"}, "data.bos=always"),
        ({"window": 1}, "data.window=1"),
        ({"tasks_dir": "/nowhere"}, "data.tasks_dir=/nowhere"),
        ({"texts": {"a": TextSource("a", "/nowhere/a.txt")}}, "no such file"),
    ],
)
def test_check_finds_what_is_unusable_without_reading(options, message):
    with pytest.raises(UserError, match=message):
        Data("d", **options).check()


def test_the_papers_window_is_2048():
    assert data_module.LONGEST_WINDOW == 2048
