"""Perplexity against numbers computed by hand, by lm-eval, and by others on real checkpoints."""

import math
import os
import re

import numpy as np
import pytest
import tiny
import torch

from bitsweep.artifacts import Artifacts
from bitsweep.data import Data, Reference, TextSource
from bitsweep.errors import UserError
from bitsweep.models import ModelSource, load
from bitsweep.probes._forward import scores
from bitsweep.probes.perplexity import Perplexity

TEXT = "The fox was not quick, and no dog was lazy; they only said so. " * 12


def metrics(measurement):
    return {metric.name: metric for metric in measurement.metrics}


def scaled(model, factor):
    """A copy whose head's weights are multiplied: uniform for 0, worse than the model for 2."""
    copy = model.copy()
    head = torch.nn.Linear(128, tiny.VOCABULARY, bias=False)
    head.weight = torch.nn.Parameter(model.get("lm_head").weight * factor, requires_grad=False)
    copy.replace("lm_head", head)
    return copy


def test_uniform_logits_have_perplexity_equal_to_the_vocabulary(model, reference):
    found = metrics(Perplexity()(scaled(model, 0.0), reference))["ppl/text"]
    assert found.value == pytest.approx(tiny.VOCABULARY, rel=1e-6)
    assert found.lo == pytest.approx(found.hi)


def test_bits_per_byte_of_a_byte_tokenizer_is_the_logarithm_of_perplexity(model, reference):
    found = metrics(Perplexity()(model, reference))
    assert found["bits_per_byte/text"].value == pytest.approx(
        math.log2(found["ppl/text"].value), rel=1e-9
    )


def test_the_same_model_differs_from_the_reference_by_nothing(model, reference):
    for metric in Perplexity()(model.copy(), reference).metrics:
        assert (metric.delta.value, metric.delta.lo, metric.delta.hi) == (1.0, 1.0, 1.0)


def test_the_interval_of_the_ratio_holds_the_ratio(model, reference):
    own = metrics(Perplexity()(model, reference))["ppl/text"].value
    found = metrics(Perplexity()(scaled(model, 2.0), reference))["ppl/text"]
    assert found.delta.value == pytest.approx(found.value / own)
    assert found.delta.lo < found.delta.value < found.delta.hi


def test_perplexity_is_that_of_the_losses_of_each_window_by_hand(model, reference):
    tokens = torch.tensor(model.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    losses = []
    for window in tokens[: len(tokens) // 64 * 64].view(-1, 64):
        logits = model.module(window[None]).logits[0, :-1].double()
        losses += torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").tolist()
    found = metrics(Perplexity()(model, reference))["ppl/text"]
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-6)
    assert f"tokens:{len(losses)}|" in found.signature


def test_tokens_takes_the_first_windows_only(model, reference):
    found = metrics(Perplexity(tokens=200)(model, reference))["ppl/text"]
    assert f"tokens:{3 * 63}|" in found.signature


def test_the_signature_says_how_it_was_computed(model, reference):
    found = metrics(Perplexity()(model, reference))["ppl/text"].signature
    sha256 = reference.data.texts["text"].sha256(reference.artifacts)
    assert found == (
        f"perplexity|text:text|sha:{sha256[:12]}|window:64|stride:64|bos:none"
        f"|tokens:{len(TEXT) // 64 * 63}|per:token|v1"
    )


def test_losses_of_each_window_are_kept(model, reference):
    (row,) = Perplexity()(model, reference).details
    assert len(row["losses"]) == len(row["reference_losses"]) == len(TEXT) // 64


def test_a_loss_that_is_not_finite_fails(model, reference):
    with pytest.raises(FloatingPointError, match="not finite"):
        Perplexity()(scaled(model, float("nan")), reference)


def test_a_text_of_less_than_two_windows_is_refused(model, tmp_path, artifacts):
    path = tmp_path / "short.txt"
    path.write_text("Too short.", encoding="utf-8")
    data = Data("d", {"text": TextSource("text", str(path))}, window=64)
    with pytest.raises(UserError, match="less than two windows"):
        Perplexity()(model, Reference(model, data, artifacts))


def test_a_large_vocabulary_is_scored_in_pieces_with_the_same_result(model, monkeypatch):
    from bitsweep.probes import _forward as forward

    windows = torch.arange(128).view(2, 64) % 256
    whole = scores(model, windows).losses
    monkeypatch.setattr(forward, "BATCH_BYTES", 10 * 4 * tiny.VOCABULARY)  # ten positions
    assert torch.allclose(scores(model, windows).losses, whole, rtol=1e-6)


def test_losses_equal_those_of_lm_eval_for_the_same_window_and_begin_token(model):
    from lm_eval.api.instance import Instance

    from bitsweep.data.questions import quiet
    from bitsweep.probes.tasks import _handed_over

    text = TEXT[:100]
    tokens = [256, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    ours = scores(model, torch.tensor([tokens])).losses
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    with quiet(), _handed_over(model, 1) as lm:
        (theirs,) = lm.loglikelihood_rolling([request])
    assert ours[0].item() == pytest.approx(-theirs, rel=1e-5)


@pytest.mark.parametrize(("name", "count"), [("stories260K", 6), ("stories3M", 3)])
def test_a_real_checkpoint_scores_as_transformers_own_loss(shared_data, name, count, artifacts):
    found = real(shared_data, name, count * 512, artifacts)
    model = load(ModelSource(name, str(shared_data / "models" / name)), artifacts)
    text = (shared_data / "text" / "tinystories" / "tinystories_val_head.txt").read_text()[:20_000]
    tokens = model.tokenizer(re.sub("\n+", "\n", text), add_special_tokens=False)["input_ids"]
    windows = torch.tensor(tokens[: count * 512]).view(count, 512)
    losses = [model.module(window[None], labels=window[None]).loss.item() for window in windows]
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-6)
    assert f"tokens:{count * 511}|" in found.signature


@pytest.mark.skipif(
    not os.environ.get("BITSWEEP_SLOW"), reason="2 minutes of one core; set BITSWEEP_SLOW=1"
)
@pytest.mark.parametrize(
    ("name", "printed", "predictions"),
    [("stories260K", "4.6889", 387_849), ("stories3M", "5.4316", 202_356)],
)
def test_the_anchor_of_a_real_checkpoint(shared_data, name, printed, predictions, artifacts):
    found = real(shared_data, name, None, artifacts)
    assert f"{found.value:.4f}" == printed
    assert f"tokens:{predictions}|" in found.signature


def real(shared_data, name, tokens, artifacts: Artifacts):
    model = load(ModelSource(name, str(shared_data / "models" / name)), artifacts)
    path = shared_data / "text" / "tinystories" / "tinystories_val_head.txt"
    text = TextSource("stories", str(path), fold_newlines=True)
    data = Data("tinystories", {"stories": text}, window=512)
    return metrics(Perplexity(tokens)(model, Reference(model, data, artifacts)))["ppl/stories"]


def test_the_ratio_of_bits_per_byte_is_to_full_precisions(model, reference):
    own = metrics(Perplexity()(model, reference))["bits_per_byte/text"].value
    found = metrics(Perplexity()(scaled(model, 2.0), reference))["bits_per_byte/text"]
    assert found.value > own
    assert found.delta.value == pytest.approx(found.value / own)


def test_log_probabilities_are_kept_of_the_first_windows_alone(model, monkeypatch):
    from bitsweep.probes import _forward as forward

    monkeypatch.setattr(forward, "CPU_BATCH_TOKENS", 128)  # two windows, then one
    windows = torch.arange(192).view(3, 64)
    one = 63 * tiny.VOCABULARY * 4
    assert scores(model, windows, one).log_probabilities.numel() == 0  # not of the last one
    assert len(scores(model, windows, 2 * one).log_probabilities) == 2


def test_losses_of_a_16_bit_model_are_taken_in_float32(model):
    half = model.copy()
    head = torch.nn.Linear(128, tiny.VOCABULARY, bias=False, dtype=torch.bfloat16)
    head.weight = torch.nn.Parameter(model.get("lm_head").weight.bfloat16(), requires_grad=False)
    half.replace("lm_head", head)
    head.register_forward_pre_hook(lambda module, args: (args[0].bfloat16(),))
    windows = torch.arange(128).view(2, 64)
    logits = half.module(windows).logits[:, :-1]
    assert logits.dtype == torch.bfloat16
    exact = torch.log_softmax(logits.double(), dim=-1)
    expected = -exact.gather(2, windows[:, 1:, None]).sum((1, 2))
    found = scores(half, windows, 2**30)
    assert found.losses.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert torch.allclose(found.log_probabilities.double(), exact, rtol=1e-5, atol=1e-5)
