"""lm-eval on a model in memory: the right answers, nothing left behind."""

import json
import random

import numpy as np
import pytest
import tiny
import torch

from bitsweep import pace
from bitsweep.artifacts import Artifacts
from bitsweep.data import Data, Reference, questions
from bitsweep.errors import UserError
from bitsweep.linear import quantized
from bitsweep.models import ModelSource, load
from bitsweep.probes.tasks import Tasks, _metric
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor

QUESTION = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: letters.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: " "
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""
ROWS = [
    {"query": f"What comes after {letter}?", "choices": ["a goose", "the rain", "home"], "gold": 1}
    for letter in "abcdefgh"
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load("llama_tied", tmp_path_factory.mktemp("model"))


@pytest.fixture
def reference(model, tmp_path, artifacts):
    (tmp_path / "letters.yaml").write_text(QUESTION, encoding="utf-8")
    (tmp_path / "letters.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return Reference(model, Data("d", questions=("letters",), tasks_dir=str(tmp_path)), artifacts)


def by_hand(model):
    """Whether the right answer is the likeliest, item by item."""
    right = []
    for row in ROWS:
        begin = model.tokenizer(row["query"])["input_ids"]
        sums = []
        for choice in row["choices"]:
            ids = begin + model.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            log = model.module(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(begin) - 1, len(ids) - 1)
            sums.append(sum(log[i, ids[i + 1]].item() for i in places))
        right.append(float(np.argmax(sums) == row["gold"]))
    return right


def test_accuracy_is_that_of_summed_log_probabilities_by_hand(model, reference):
    measurement = Tasks(batch_size=3)(model, reference)
    (metric,) = measurement.metrics
    assert metric.name == "acc/letters"
    assert measurement.details[0]["items"] == by_hand(model)
    assert metric.value == np.mean(by_hand(model))
    assert (metric.delta.value, metric.delta.lo, metric.delta.hi) == (0, 0, 0)


def test_a_second_model_gets_its_own_answers(model, reference):
    other = model.copy()
    for name, layer in other.layers.items():
        if layer.block is not None:
            quant = QuantTensor.quantize(other.weight(name), QuantSpec(2, 64))
            other.replace(name, quantized(quant, other.get(name)))
    Tasks()(model, reference)
    assert Tasks()(other, reference).details[0]["items"] == by_hand(other)


def test_a_quantized_head_is_not_tied_to_its_embedding_again(model, reference):
    other = model.copy()
    quant = QuantTensor.quantize(other.weight("lm_head"), QuantSpec(2, 64))
    head = quantized(quant, other.get("lm_head"))
    other.replace("lm_head", head)
    assert Tasks()(other, reference).details[0]["items"] == by_hand(other)
    assert other.get("lm_head") is head
    assert "tie_weights" not in vars(other.module)


def test_random_states_and_the_tokenizer_stay_as_they_were(model, reference, capfd):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    padding = model.tokenizer.padding_side, model.tokenizer.pad_token
    Tasks()(model, reference)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert (model.tokenizer.padding_side, model.tokenizer.pad_token) == padding
    assert "".join(capfd.readouterr()) == ""


def test_answers_are_counted_as_they_come(model, reference):
    Tasks(batch_size=3)(model, reference)  # full precision's
    said = []
    with pace.heard(said.append):
        Tasks(batch_size=3)(model, reference)
    total = len(ROWS) * len(ROWS[0]["choices"])
    assert [step.done for step in said] == list(range(1, total + 1))
    assert {(step.total, step.units) for step in said} == {(total, "answers")}


def test_limit_takes_the_first_items(model, reference):
    assert len(Tasks(limit=3)(model, reference).details[0]["items"]) == 3


def test_a_task_whose_file_is_missing_is_one_line(model, tmp_path, artifacts):
    (tmp_path / "letters.yaml").write_text(QUESTION, encoding="utf-8")
    data = Data("d", questions=("letters",), tasks_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"no letters.jsonl in it for the task letters"):
        questions.check(data)
    with pytest.raises(UserError, match=r"data.tasks_dir=null: the task local_piqa"):
        questions.check(Data("d", questions=("local_piqa",)))


def test_a_name_that_no_one_knows_is_one_line(artifacts, tmp_path, monkeypatch):
    import lm_eval.tasks

    class Nothing:
        def __init__(self, **_):
            self.task_index = {}  # scanning lm-eval's thousands of YAMLs takes seconds

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Nothing)
    with pytest.raises(UserError, match=r"data\.questions=nonsense: neither a YAML"):
        questions.load(Data("d", questions=("nonsense",)), artifacts)


def test_an_edited_row_is_another_task(reference, tmp_path, artifacts):
    first = questions.identity("letters", reference.data, artifacts)
    rows = [{**ROWS[0], "gold": 2}, *ROWS[1:]]
    (tmp_path / "letters.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert questions.identity("letters", reference.data, artifacts) != first


SHIPPED = sorted(path.stem for path in questions.conf_dir().glob("tasks/*.yaml"))


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A model with room for real questions."""
    folder = tiny.save("llama", tmp_path_factory.mktemp("model"), max_position_embeddings=1024)
    return load(ModelSource("patient", str(folder)), Artifacts(None))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_task_answers(name, patient, artifacts, request):
    folder = None
    if name != "reference_questions":
        folder = str(request.getfixturevalue("shared_data") / "tasks")
    data = Data("d", questions=(name,), tasks_dir=folder)
    metric = Tasks(limit=2)(patient, Reference(patient, data, artifacts)).metrics[0]
    assert metric.name == f"acc/{name}"


def test_the_change_of_an_accuracy_is_negative_where_the_model_is_worse():
    full = {"items": [1.0, 1.0, 1.0, 1.0], "value": 1.0, "higher": True}
    own = {"items": [1.0, 0.0, 0.0, 1.0], "value": 0.5, "higher": True}
    assert _metric("acc/t", own, full, "task:t").delta.value == -0.5
