"""What the reference can do: perplexity, BLEU, ROUGE-L, multiple choice, and how rounding hurts.

A quick look during training and in the tests, on its own few lines; the harness's probes measure
the same things properly.
"""

import copy
import math

import sacrebleu
import torch
import torch.nn.functional as F
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitsweep.reference.text import TASKS, Domain, Task, questions, task_items, text

_BATCH = 32


@torch.inference_mode()
def perplexity(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """exp(mean loss) of `ids` (one dimension), in non-overlapping windows of the model's length."""
    length = model.config.max_position_embeddings
    windows = ids[: len(ids) // length * length].view(-1, length)
    total = 0.0
    for batch in windows.split(8):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        total += float(losses.double().sum())
    return math.exp(total / (len(windows) * (length - 1)))


def evaluation_ids(
    tokenizer: PreTrainedTokenizerBase, documents: int, domain: Domain = "in"
) -> torch.Tensor:
    """Token ids of the first `documents` of the evaluation text, with one `<bos>`."""
    content = text("evaluation", documents, domain)
    ids = tokenizer(content, return_tensors="pt", verbose=False)["input_ids"]
    assert isinstance(ids, torch.Tensor)
    return ids[0]


@torch.inference_mode()
def generations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> list[str]:
    """Greedy continuations of `prompts` up to the end of the line, without surrounding space."""
    out: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        batch = tokenizer(
            prompts[start : start + _BATCH],
            return_tensors="pt",
            padding=True,
            return_token_type_ids=False,
        )
        made = model.generate(**batch, max_new_tokens=64, do_sample=False)
        tails = made[:, batch["input_ids"].shape[1] :]
        out += [tail.strip() for tail in tokenizer.batch_decode(tails, skip_special_tokens=True)]
    return out


def task_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, count: int
) -> dict[str, float]:
    """Corpus BLEU (0-100) and mean ROUGE-L F (0-1) on the first evaluation items of `task`."""
    items = task_items(task, "evaluation", count)
    made = generations(model, tokenizer, [item["prompt"] for item in items])
    gold = [item["target"] for item in items]
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(g, m)["rougeL"].fmeasure for g, m in zip(gold, made, strict=True)]
    return {
        "bleu": round(sacrebleu.corpus_bleu(made, [gold]).score, 2),
        "rougeL": round(sum(rouge) / len(rouge), 4),
        "exact": round(sum(g == m for g, m in zip(gold, made, strict=True)) / len(gold), 4),
    }


@torch.inference_mode()
def choice_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int
) -> float:
    """Share of questions whose right choice has the highest summed log-likelihood."""
    right = 0
    for item in questions("evaluation", count):
        prompt = len(tokenizer(item["prompt"])["input_ids"])
        batch = tokenizer(
            [f"{item['prompt']} {choice}" for choice in item["choices"]],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            return_token_type_ids=False,
        )
        logits = model(**batch, use_cache=False).logits[:, prompt - 1 : -1].float()
        targets = batch["input_ids"][:, prompt:]
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        scores = -(losses * batch["attention_mask"][:, prompt:]).sum(1)
        right += int(scores.argmax()) == item["answer"]
    return right / count


def round_to_nearest(model: PreTrainedModel, bits: int, group_size: int = 64) -> PreTrainedModel:
    """A copy whose decoder linears are rounded to asymmetric integers in groups along the inputs.

    One fp16 scale and one integer zero-point a group; embedding and head keep their weights.
    """
    model = copy.deepcopy(model)
    top = 2**bits - 1
    for module in model.get_decoder().modules():
        if isinstance(module, torch.nn.Linear):
            groups = module.weight.data.float().view(-1, group_size)
            low = groups.amin(1, keepdim=True).clamp(max=0)
            high = groups.amax(1, keepdim=True).clamp(min=0)
            scale = ((high - low) / top).half().float().clamp(min=2**-24)
            zero = (-low / scale).round().clamp(0, top)
            codes = (groups / scale + zero).round().clamp(0, top)
            module.weight.data.copy_(((codes - zero) * scale).view_as(module.weight))
    return model


def report(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: int = 64, texts: int = 500
) -> dict[str, object]:
    """Every number above, for the log: `items` of each task, `texts` documents of each text."""
    model.eval()
    ids = evaluation_ids(tokenizer, texts)
    full = perplexity(model, ids)
    rounded = {f"w{b}g64": perplexity(round_to_nearest(model, b), ids) / full for b in (8, 4, 3, 2)}
    return {
        "perplexity": round(full, 5),
        "perplexity_out_of_domain": round(
            perplexity(model, evaluation_ids(tokenizer, texts, "out")), 3
        ),
        "perplexity_ratio_rtn": {name: round(ratio, 5) for name, ratio in rounded.items()},
        "tasks": {task: task_scores(model, tokenizer, task, items) for task in TASKS},
        "choice_accuracy": round(choice_accuracy(model, tokenizer, items), 4),
    }
