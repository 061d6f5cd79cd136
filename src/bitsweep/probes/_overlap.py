"""BLEU and ROUGE of texts, and the sums from which their paired bootstrap is drawn.

BLEU is sacrebleu's (Post 2018), ROUGE is rouge-score's F1; both keep a signature. BLEU of a corpus
is no mean over sentences, so a resample adds up sentences' n-gram counts and applies the formula to
the sums, without tokenizing again (Koehn 2004, paired bootstrap).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from bitsweep.data.sources import Item, TaskSet
from bitsweep.intervals import Array

ORDER = 4
ROUGE = ("rouge1", "rouge2", "rougeL")


class Bleu:
    """Corpus BLEU with one way to tokenize; items may have different numbers of references."""

    def __init__(self, tokenize: str) -> None:
        from sacrebleu.metrics import BLEU

        self._corpus = BLEU(tokenize=tokenize)
        self._sentence = BLEU(tokenize=tokenize, effective_order=True)

    def corpus(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """sacrebleu's own corpus score, 0 to 100."""
        most = max(len(each) for each in references)
        streams = [[each[k] if k < len(each) else None for each in references] for k in range(most)]
        return float(self._corpus.corpus_score(list(texts), streams).score)

    def counts(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        """Sufficient statistics ``(n, 10)``: matches and totals of 1- to 4-grams, both lengths."""
        rows = []
        for text, answers in zip(texts, references, strict=True):
            score = self._sentence.sentence_score(text, list(answers))
            rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
        return np.array(rows, dtype=np.float64)

    def signature(self) -> str:
        """sacrebleu's signature; call after :meth:`corpus`."""
        return str(self._corpus.get_signature())


def bleu(sums: Array) -> Array:
    """Corpus BLEU of summed counts ``(b, 10)``, 0 to 100, smoothed as sacrebleu does ("exp").

    An order without a match counts as 1/2, 1/4, ... of a match in turn; a corpus too short to have
    an n-gram of some order scores 0.
    """
    matches, totals = sums[:, :ORDER], sums[:, ORDER : 2 * ORDER]
    length, reference_length = sums[:, 2 * ORDER], sums[:, 2 * ORDER + 1]
    missed = (matches == 0) & (totals > 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=1), matches)
    valid = (matches.sum(1) > 0) & (totals > 0).all(1)
    precision = np.where(valid[:, None], smoothed / np.maximum(totals, 1), 1.0)
    brevity = np.minimum(0.0, 1 - reference_length / np.maximum(length, 1))
    return np.where(valid, 100 * np.exp(np.log(precision).mean(1) + brevity), 0.0)


def rouge(texts: Sequence[str], items: Sequence[Sequence[str]], split: str) -> Array:
    """ROUGE-1, -2 and -L F1 of each text ``(n, 3)``, 0 to 1; the best of several references."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=False, tokenizer=_tokenizer(split))
    rows = []
    for text, answers in zip(texts, items, strict=True):
        scores = scorer.score_multi(list(answers), text)
        rows.append([scores[name].fmeasure for name in ROUGE])
    return np.array(rows, dtype=np.float64)


def rouge_signature(task: TaskSet) -> str:
    package = version("rouge-score")
    return f"rouge-score:{package}|F1|stemmer:no|split:{task.rouge}|refs:best"


def references_of(items: Sequence[Item]) -> list[tuple[str, ...]]:
    return [item.references for item in items]


class _Words:
    """Lower-case words of any alphabet; punctuation is dropped."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


class _Characters:
    """Every character that is not white space, for writing without spaces between words."""

    def tokenize(self, text: str) -> list[str]:
        return [character for character in text if not character.isspace()]


def _tokenizer(split: str) -> _Words | _Characters | None:
    """None is rouge-score's own: lower case, and nothing but a-z and 0-9 is kept."""
    return {"words": None, "unicode": _Words(), "characters": _Characters()}[split]
