"""Greedy texts do not depend on the batch, for architectures that count positions differently."""

import pytest
import tiny
import torch

from bitsweep.probes import _greedy as greedy
from bitsweep.probes._greedy import generate

PROMPTS = ["a", "Once upon a time", "The geese", "Why did nobody go home before the rain?", "x y"]


def tokens(model, texts):
    return [model.tokenizer(text)["input_ids"] for text in texts]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "falcon", "gemma2"])
def test_a_text_is_the_same_alone_and_in_a_batch(name, tmp_path):
    model = tiny.load(name, tmp_path)
    prompts = tokens(model, PROMPTS)
    together = generate(model, prompts, 12, None)
    assert together == [generate(model, [prompt], 12, None)[0] for prompt in prompts]
    assert len(set(together)) > 1


def by_hand(model, ids, count):
    """The most likely token, again and again, without a cache."""
    written = list(ids)
    for _ in range(count):
        written.append(model.module(torch.tensor([written])).logits[0, -1].argmax().item())
    return written[len(ids) :]


def test_each_token_is_the_most_likely_one_without_a_cache(tmp_path):
    model = tiny.load("llama", tmp_path)
    (ids,) = tokens(model, ["Once upon"])
    expected = model.tokenizer.decode(by_hand(model, ids, 10), skip_special_tokens=True)
    assert generate(model, [ids], 10, None) == [expected]


def test_rows_that_end_early_leave_the_others_as_they_are(tmp_path, monkeypatch):
    model = tiny.load("llama", tmp_path)
    prompts = tokens(model, PROMPTS)
    free = generate(model, prompts, 16, None)
    stop = free[0][2]  # a character that the first row writes third
    stopped = generate(model, prompts, 16, stop)
    assert stopped == [text.partition(stop)[0] for text in free]
    monkeypatch.setattr(greedy, "CPU_BATCH", 2)
    assert generate(model, prompts, 16, stop) == stopped


def test_a_stop_string_over_several_tokens_is_found(tmp_path):
    model = tiny.load("llama", tmp_path)
    prompts = tokens(model, PROMPTS[:2])
    (free, _) = generate(model, prompts, 16, None)
    assert generate(model, prompts, 16, free[3:6])[0] == free.partition(free[3:6])[0]


def test_an_end_token_of_the_generation_settings_ends_a_text(tmp_path):
    model = tiny.load("llama", tmp_path)
    (ids,) = tokens(model, ["Once upon"])
    written = by_hand(model, ids, 10)
    model.module.generation_config.eos_token_id = [257, written[3]]
    until = written[: written.index(written[3]) + 1]
    expected = model.tokenizer.decode(until, skip_special_tokens=True)
    assert generate(model, [ids], 10, None) == [expected]
