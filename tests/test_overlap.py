"""BLEU from sums equals sacrebleu's corpus score; ROUGE for every alphabet."""

import numpy as np
import pytest

from bitsweep.probes._overlap import Bleu, bleu, rouge

TEXTS = [
    "the cat sat on the mat in the sun",
    "a dog ran after the old red ball",
    "nobody came home before it was dark",
    "it rained all day , and so we stayed",
]
GOLD = [
    ("the cat sat on a mat in the sun", "the cat is on the mat"),
    ("the dog ran after a red ball",),
    ("nobody had come home before dark", "they came home when it was dark", "no one came"),
    ("it rained the whole day , so we stayed at home",),
]


def test_bleu_of_summed_counts_is_sacrebleus_corpus_score():
    scorer = Bleu("13a")
    sums = scorer.counts(TEXTS, GOLD).sum(0, keepdims=True)
    assert bleu(sums)[0] == pytest.approx(scorer.corpus(TEXTS, GOLD), rel=1e-9)


@pytest.mark.parametrize(
    "texts",
    [
        ["the dog", "a house", "cold tea", "it is"],  # no match of the higher orders
        ["the cat sat"] * 4,  # no 4-gram at all
        ["xyzzy"] * 4,  # nothing in common
        ["", "", "", ""],
    ],
)
def test_bleu_of_summed_counts_agrees_at_the_edges(texts):
    scorer = Bleu("13a")
    sums = scorer.counts(texts, GOLD).sum(0, keepdims=True)
    assert bleu(sums)[0] == pytest.approx(scorer.corpus(texts, GOLD), rel=1e-9, abs=1e-12)


def test_bleu_of_a_text_with_itself_is_100():
    scorer = Bleu("13a")
    assert scorer.corpus(TEXTS, [(text,) for text in TEXTS]) == pytest.approx(100)


def test_the_signature_names_the_tokenizer():
    scorer = Bleu("zh")
    scorer.corpus(["猫坐在垫子上"], [("猫坐在垫子上",)])
    assert "tok:zh" in scorer.signature()


def test_rouge_over_characters_sees_chinese_and_the_default_does_not():
    texts, gold = ["猫坐在垫子上"], [("猫在垫子上",)]
    assert rouge(texts, gold, "words").tolist() == [[0, 0, 0]]
    longest = rouge(texts, gold, "characters")[0, 2]
    assert longest == pytest.approx(2 * 5 / (6 + 5))  # 5 characters in order, of 6 and of 5


def test_unicode_words_keep_their_umlauts():
    texts, gold = ["Der Bäcker kommt"], [("Der Bocker kommt",)]
    assert rouge(texts, gold, "unicode")[0, 0] == pytest.approx(2 / 3)


def test_rouge_takes_the_best_reference():
    scores = rouge(TEXTS[:1], [("something else", TEXTS[0])], "words")
    assert np.all(scores == 1)


def test_each_further_order_without_a_match_counts_half_as_much():
    texts = [
        "sat the mat in cat",
        "ball dog red the old",
        "dark home nobody it was",
        "day it all so we",
    ]
    scorer = Bleu("13a")
    sums = scorer.counts(texts, GOLD).sum(0, keepdims=True)
    assert (sums[0, 2:4] == 0).all()  # no match of three words, nor of four
    assert (sums[0, 4:8] > 0).all()
    assert bleu(sums)[0] == pytest.approx(scorer.corpus(texts, GOLD), rel=1e-9)


def test_rouge_takes_words_as_they_are_written():
    assert rouge(["running dogs"], [("run dog",)], "words").tolist() == [[0, 0, 0]]
