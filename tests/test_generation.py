"""BLEU and ROUGE of generations: against gold, and against full precision's own texts."""

import copy
import dataclasses
import json

import pytest
import tiny
import torch

from bitsweep.data import Data, Item, Reference, TaskSet
from bitsweep.errors import UserError
from bitsweep.probes._overlap import Bleu, rouge
from bitsweep.probes.generation import Generation, _against_full, _metrics, gold_scores

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


TEXTS = ["mat the on sat cat the", "a red ball", "it rained all day long"]
FULL = ["the cat sat on the mat", "a red ball", "it rained all day"]


def test_the_change_of_bleu_is_negative_where_the_model_is_worse(tmp_path):
    items = [Item("", (text,)) for text in FULL]
    task = TaskSet("task", str(tmp_path / "none.jsonl"), max_new_tokens=12, stop=None)
    found = _metrics(task, items, TEXTS, FULL, gold_scores(FULL, items, task))
    for metric, full in zip(found[:4], (100, 1, 1, 1), strict=True):
        assert metric.value <= full
        assert metric.delta.value == pytest.approx(metric.value - full)
    assert found[0].delta.value < 0


def test_agreement_with_full_precisions_texts_minds_the_order_of_words(tmp_path):
    task = TaskSet("task", str(tmp_path / "none.jsonl"), max_new_tokens=12, stop=None)
    changed, same = ["mat the on sat cat the"], ["a red ball"]
    found = _against_full(task, changed + same, FULL[:2], "", Bleu("13a"))
    longest = rouge(changed, [(FULL[0],)], task.rouge)[0, 2]
    assert longest < 1
    assert found[1].value == pytest.approx((longest + 1) / 2)


def test_a_text_ends_before_the_stop_of_its_task(model, tmp_path, artifacts):
    whole = Generation()(model, reference(model, tmp_path, artifacts)).details[0]["text"]
    stop = whole[2]
    found = Generation()(model, reference(model, tmp_path, artifacts, stop=stop)).details[0]
    assert found["text"] == found["full_precision"] == whole.partition(stop)[0].strip()


def test_full_precisions_texts_are_those_of_the_same_length_and_stop(model, tmp_path, artifacts):
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    asked = {"short": (4, None), "long": (12, None), "stopped": (12, "e")}
    tasks = {
        name: TaskSet(name, str(path), max_new_tokens=most, stop=stop)
        for name, (most, stop) in asked.items()
    }
    found = Generation()(model.copy(), Reference(model, Data("d", tasks=tasks), artifacts))
    assert [row["text"] for row in found.details] == [r["full_precision"] for r in found.details]


def test_full_precisions_texts_are_those_of_the_same_prompts(model, tmp_path, artifacts):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = "[{{ messages[0]['content'] }}]"
    chat = dataclasses.replace(model, tokenizer=tokenizer)
    compared = reference(chat, tmp_path, artifacts)
    texts = [Generation(chat=way)(chat, compared).details for way in ("auto", "never")]
    assert texts[0][0]["text"] != texts[1][0]["text"]
    for row in (*texts[0], *texts[1]):
        assert row["text"] == row["full_precision"]


def test_an_end_token_that_the_tokenizer_adds_to_a_prompt_is_taken_off(model):
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(model.tokenizer)
    ends = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)])
    tokenizer.backend_tokenizer.post_processor = ends
    ending = dataclasses.replace(model, tokenizer=tokenizer)
    assert tokenizer("hello")["input_ids"][-1] == 257
    assert Generation()._tokens(ending, "hello") == [256, *model.tokenizer("hello")["input_ids"]]
