"""BLEU and ROUGE of generations: against gold, and against full precision's own texts."""

import json

import pytest
import tiny
import torch

from bitsweep.data import Data, Reference, TaskSet
from bitsweep.errors import UserError
from bitsweep.probes.generation import Generation

PROMPTS = ["Once upon a time", "The geese", "Why not?", "x y", "Nobody came"]
ROWS = [{"prompt": prompt, "reference": f"{prompt} and so on"} for prompt in PROMPTS]


def reference(model, tmp_path, artifacts, **options):
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    task = TaskSet("task", str(path), **{"max_new_tokens": 12, "stop": None, **options})
    return Reference(model, Data("d", tasks={"task": task}), artifacts)


def noisy(model):
    """A copy whose head is disturbed, so that its texts differ."""
    copy = model.copy()
    head = torch.nn.Linear(128, tiny.VOCABULARY, bias=False)
    torch.manual_seed(0)
    weight = model.get("lm_head").weight
    head.weight = torch.nn.Parameter(weight + 0.1 * torch.randn_like(weight), requires_grad=False)
    copy.replace("lm_head", head)
    return copy


def metrics(measurement):
    return {metric.name: metric for metric in measurement.metrics}


def test_the_same_model_writes_full_precisions_texts(model, tmp_path, artifacts):
    found = metrics(Generation()(model.copy(), reference(model, tmp_path, artifacts)))
    assert found["bleu_fp/task"].value == pytest.approx(100)
    assert found["rougeL_fp/task"].value == 1.0
    for name in ("bleu", "rouge1", "rouge2", "rougeL"):
        delta = found[f"{name}/task"].delta
        assert (delta.value, delta.lo, delta.hi) == (0, 0, 0)


def test_another_model_differs_and_its_texts_are_kept(model, tmp_path, artifacts):
    measurement = Generation()(noisy(model), reference(model, tmp_path, artifacts))
    assert metrics(measurement)["rougeL_fp/task"].value < 1
    assert [row["prompt"] for row in measurement.details] == PROMPTS
    assert any(row["text"] != row["full_precision"] for row in measurement.details)


def test_the_change_of_bleu_is_that_of_both_scores(model, tmp_path, artifacts):
    probe, compared = Generation(), reference(model, tmp_path, artifacts)
    other = metrics(probe(noisy(model), compared))["bleu/task"]
    own = metrics(probe(model, compared))["bleu/task"]
    assert other.delta.value == pytest.approx(other.value - own.value, abs=1e-9)
    assert other.delta.lo <= other.delta.value <= other.delta.hi


def test_limit_takes_the_first_items(model, tmp_path, artifacts):
    measurement = Generation(limit=2)(model, reference(model, tmp_path, artifacts))
    assert len(measurement.details) == 2
    assert "items:2|" in measurement.metrics[0].signature


def test_a_chat_template_is_used_unless_never(model, tmp_path, artifacts):
    import copy
    import dataclasses

    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = "[{{ messages[0]['content'] }}]"
    chat = dataclasses.replace(model, tokenizer=tokenizer)
    wrapped = Generation(chat="auto")._tokens(chat, "hello")
    assert tokenizer.decode(wrapped) == "[hello]"
    assert tokenizer.decode(Generation(chat="never")._tokens(chat, "hello")) == "hello"


def test_a_prompt_without_room_for_the_answer_is_refused(model, tmp_path, artifacts):
    with pytest.raises(UserError, match="use at most"):
        Generation()(model, reference(model, tmp_path, artifacts, max_new_tokens=120))


def test_an_unknown_way_to_chat_is_refused(model, tmp_path, artifacts):
    with pytest.raises(UserError, match="use auto or never"):
        Generation(chat="always")
