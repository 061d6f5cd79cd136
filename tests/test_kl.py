"""KL divergence from full precision: zero for itself, and the textbook's value elsewhere."""

import pytest
import tiny
import torch

from bitsweep.probes import kl
from bitsweep.probes.kl import KL
from bitsweep.probes.perplexity import Perplexity

TEXT = "Seven grey geese went home before the rain began. " * 12


def uniform(model):
    """A copy that gives every token the same logit."""
    copy = model.copy()
    head = torch.nn.Linear(128, tiny.VOCABULARY, bias=False)
    torch.nn.init.zeros_(head.weight)
    copy.replace("lm_head", head)
    return copy


def metrics(measurement):
    return {metric.name: metric for metric in measurement.metrics}


def test_a_model_does_not_diverge_from_itself(model, reference):
    found = metrics(KL()(model.copy(), reference))
    for name in ("kl_mean", "kl_median", "kl_p99"):
        assert found[f"{name}/text"].value == 0.0
    assert found["top1/text"].value == 1.0


def test_from_a_uniform_model_it_is_the_logarithm_of_the_vocabulary_less_the_entropy(
    model, reference
):
    tokens = torch.tensor(model.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    logits = model.module(tokens[: len(tokens) // 64 * 64].view(-1, 64)).logits[:, :-1].double()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    expected = torch.tensor(tiny.VOCABULARY).log() - entropy.mean()
    found = metrics(KL()(uniform(model), reference))["kl_mean/text"]
    assert found.value == pytest.approx(expected.item(), rel=1e-5)
    assert found.lo < found.value < found.hi


def test_only_the_first_tokens_are_compared(model, reference):
    found = metrics(KL(tokens=128)(model, reference))["kl_mean/text"]
    assert f"tokens:{2 * 63}|" in found.signature


def test_what_perplexity_left_gives_the_same_numbers_as_a_pass_of_its_own(model, reference):
    other = uniform(model)
    alone = KL()(other, reference)
    Perplexity()(other, reference)
    assert reference.found(other, "log_probabilities/text") is not None
    assert KL()(other, reference) == alone


def test_a_large_vocabulary_runs_the_reference_again_with_the_same_numbers(
    model, reference, monkeypatch
):
    other = uniform(model)
    stored = KL()(other, reference)
    monkeypatch.setattr(kl, "STORED_BYTES", 0)
    assert KL()(other, reference) == stored


def test_measuring_leaves_gradients_on(model, reference, monkeypatch):
    monkeypatch.setattr(kl, "STORED_BYTES", 0)  # two passes at a time
    KL()(uniform(model), reference)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def doubled(model):
    """A copy that is surer of every token, unlike from one window to the next."""
    copy = model.copy()
    head = torch.nn.Linear(128, tiny.VOCABULARY, bias=False)
    head.weight = torch.nn.Parameter(2 * model.get("lm_head").weight, requires_grad=False)
    copy.replace("lm_head", head)
    return copy


def test_median_and_99th_percentile_are_over_tokens(model, reference):
    tokens = torch.tensor(model.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    logits = model.module(tokens[: len(tokens) // 64 * 64].view(-1, 64)).logits[:, :-1].double()
    entropy = torch.distributions.Categorical(logits=logits).entropy().flatten()
    each = torch.tensor(tiny.VOCABULARY).log() - entropy
    found = metrics(KL()(uniform(model), reference))
    assert found["kl_median/text"].value == pytest.approx(each.quantile(0.5).item(), rel=1e-5)
    assert found["kl_p99/text"].value == pytest.approx(each.quantile(0.99).item(), rel=1e-5)


def test_windows_beyond_what_perplexity_left_have_a_pass_of_their_own(
    model, reference, monkeypatch
):
    from bitsweep.probes import _forward, perplexity

    monkeypatch.setattr(_forward, "CPU_BATCH_TOKENS", 128)  # two windows a batch
    monkeypatch.setattr(perplexity, "KEPT_BYTES", 2 * 63 * tiny.VOCABULARY * 4)
    other = doubled(model)
    alone = KL()(other, reference)
    Perplexity()(other, reference)
    assert len(reference.found(other, "log_probabilities/text")) == 2
    assert KL()(other, reference).details == alone.details
    assert KL()(other, reference).metrics == alone.metrics
