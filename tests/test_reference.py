"""The embedded reference: its text, the separation of its splits, its weights, its quality."""

import hashlib
import json
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitsweep.reference.evaluate import (
    choice_accuracy,
    evaluation_ids,
    perplexity,
    round_to_nearest,
    task_scores,
)
from bitsweep.reference.text import (
    CHOICES,
    SPLITS,
    TASKS,
    Domain,
    Split,
    Task,
    documents,
    questions,
    split_of_sentence,
    stories,
    task_items,
    text,
)
from bitsweep.reference.tokenizer import VOCABULARY, train_tokenizer

FOLDER = Path(__file__).parents[1] / "src" / "bitsweep" / "reference" / "model"
LABEL = re.compile(r"^(English|German|Summary|Question|Answer|Text): ")

# SHA-256 of the first 100 documents, UTF-8.
GOLDEN: dict[tuple[Split, Domain], str] = {
    ("train", "in"): "c6d8d5e47495acaf0b2326904d61eb7c016737abbc2aa45ae85b70bbfb3f33a4",
    ("calibration", "in"): "b8ad18c6de0717302d602a10484412f76d0925e1c1f073269dc46760f56555c8",
    ("evaluation", "in"): "3ce7177e9cc01281e4bc766e9355c26478f56b017a634a168bcfc2700ed98071",
    ("train", "out"): "fdf2f29127e1543f2aa65d48b925152763511e2ae5283c293489d9fa0e4fda10",
    ("calibration", "out"): "09a540485ca6674025675f50d32d256f2a80e03d2bb349d0689840ed054db2af",
    ("evaluation", "out"): "bcb2d042f7cf283e200449b577aa0b2531715b3c70ac38c5585872edad5fae3e",
}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sentences(content: str) -> set[str]:
    """Every line, and every sentence of every line, with and without its label."""
    found: set[str] = set()
    for line in content.splitlines():
        for piece in (line, LABEL.sub("", line)):
            found.add(piece.strip())
            found.update(re.split(r"(?<=[.!?])\s+", piece.strip()))
    return found - {""}


@pytest.fixture(scope="module")
def evaluation_sentences() -> set[str]:
    """The sentences of the evaluation split in all the forms in which it is given out."""
    found = _sentences(text("evaluation", 600) + text("evaluation", 60, "out"))
    for task in TASKS:
        for item in task_items(task, "evaluation", 60):
            found |= _sentences(f"{item['prompt']} {item['target']}")
    for question in questions("evaluation", 60):
        found |= _sentences(f"{question['prompt']} {question['choices'][question['answer']]}")
    return found | _sentences("\n".join(stories("evaluation", 60)))


@pytest.mark.parametrize(("split", "domain"), GOLDEN)
def test_text_is_the_same_bytes_everywhere(split: Split, domain: Domain) -> None:
    assert _sha256(text(split, 100, domain).encode()) == GOLDEN[split, domain]


def test_a_document_does_not_depend_on_how_many_are_asked_for() -> None:
    assert text("train", 30).startswith(text("train", 20))
    assert next(documents("train", 25)) == list(islice(documents("train"), 26))[25]


def test_every_sentence_belongs_to_its_split_only() -> None:
    """By construction: the hash of a sentence names its split, so no number of documents mixes."""
    for split in SPLITS:
        content = text(split, 400) + text(split, 40, "out")
        for line in content.splitlines():
            if line and not line.startswith("Record: "):
                for sentence in re.split(r"(?<=[.!?])\s+", LABEL.sub("", line)):
                    assert split_of_sentence(sentence) == split, sentence


@pytest.mark.parametrize("other", ["train", "calibration"])
def test_no_evaluation_sentence_in_another_split(
    other: Split, evaluation_sentences: set[str]
) -> None:
    """The same seen from outside, on plain lines and sentences of a larger text."""
    content = text(other, 5_000 if other == "train" else 1_500)
    assert len(evaluation_sentences) > 2_000
    assert not evaluation_sentences & _sentences(content)
    assert not evaluation_sentences & _sentences(text(other, 200, "out"))


def test_records_are_told_apart_by_their_sentences() -> None:
    """A record's sentences follow from it, so a record has one split too."""
    told: dict[str, str] = {}
    for split in SPLITS:
        for item in task_items("description", split, 200):
            assert told.setdefault(item["prompt"], item["target"]) == item["target"]
            for sentence in re.split(r"(?<=\.) ", item["target"]):
                assert split_of_sentence(sentence) == split


@pytest.mark.parametrize("task", TASKS)
def test_items_are_distinct_and_stop_at_the_line(task: Task) -> None:
    items = task_items(task, "evaluation", 100)
    assert len({item["prompt"] for item in items}) == 100
    for item in items:
        assert item["prompt"].endswith(":")
        assert item["target"] == item["target"].strip()
        assert "\n" not in item["target"]


def test_questions_have_one_right_answer_spread_evenly() -> None:
    items = questions("evaluation", 200)
    assert len({item["prompt"] for item in items}) == 200
    places = [item["answer"] for item in items]
    for place in range(CHOICES):
        assert 0.15 < places.count(place) / len(places) < 0.35
    for item in items:
        assert len(set(item["choices"])) == CHOICES
        assert item["prompt"] == f"{item['context']}\nQuestion: {item['question']}\nAnswer:"


def test_german_articles_and_endings_agree() -> None:
    """A few phrases that must never occur, and one sentence of each word order."""
    german = " ".join(item["target"] for item in task_items("translation", "train", 2_000))
    wrong = r"\b(den Frau|die Mann|das Hut|einen Lampe|eine Buch|ein rote|das roter)\b"
    assert not re.search(wrong, german)
    for form in (r"wollte .* kaufen\.", r"war \w+, weil .* verlor\.", r"Gestern \w+te? "):
        assert re.search(form, german)


def test_tokenizer_files_are_what_training_makes() -> None:
    saved = AutoTokenizer.from_pretrained(FOLDER)
    made = train_tokenizer(512)
    content = text("evaluation", 50)
    ids = saved(content)["input_ids"]
    assert len(saved) == VOCABULARY == 1024
    assert ids == made(content)["input_ids"]
    assert ids[0] == saved.bos_token_id
    assert saved.decode(ids, skip_special_tokens=True) == content


def test_model_files_are_those_that_were_committed() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    present = {path.name for path in FOLDER.iterdir()} - {"SHA256SUMS"}
    assert set(listed) == present
    for name, digest in listed.items():
        assert _sha256((FOLDER / name).read_bytes()) == digest, name


def test_model_is_small_untied_and_a_multiple_of_128_wide() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert (FOLDER / "model.safetensors").stat().st_size <= 14_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    assert sum(tensor.numel() for tensor in tensors.values()) <= 6_000_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(size % 128 == 0 for tensor in tensors.values() for size in tensor.shape)
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])


def test_training_log_ends_with_the_targets_met() -> None:
    lines = (FOLDER.parent / "train_log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])["evaluation"]
    assert last["choice_accuracy"] >= 0.8
    assert all(s["bleu"] >= 60 and s["rougeL"] >= 0.7 for s in last["tasks"].values())
    ratio = last["perplexity_ratio_rtn"]
    assert abs(ratio["w8g64"] - 1) <= 0.001
    assert 1.003 <= ratio["w4g64"] <= 1.05
    assert ratio["w3g64"] >= 1.05
    assert ratio["w2g64"] >= 2


def test_quality_floor() -> None:
    """What the log says holds on this machine too, on fewer items."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    for task in TASKS:
        scores = task_scores(model, tokenizer, task, 24)
        assert scores["bleu"] >= 60
        assert scores["rougeL"] >= 0.7
    assert choice_accuracy(model, tokenizer, 24) >= 0.8
    ids = evaluation_ids(tokenizer, 120)
    full = perplexity(model, ids)
    ratio = {bits: perplexity(round_to_nearest(model, bits), ids) / full for bits in (8, 4, 3, 2)}
    assert abs(ratio[8] - 1) <= 0.001
    assert 1.003 <= ratio[4] <= 1.05
    assert ratio[3] >= 1.05
    assert ratio[2] >= 2
