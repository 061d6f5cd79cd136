"""Which windows of a calibration text: drawn, those with the longest documents, the most diverse.

The text is cut once, into windows that do not overlap (:func:`bitsweep.data.windows`); a choice
picks some of them. ``random`` is the field's default. ``longest`` and ``diverse`` draw nothing:
the same text gives the same windows whatever the seed.
"""

from __future__ import annotations

import random
import re

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bitsweep.data.sources import TextSource

CHOICES = ("random", "longest", "diverse")

Ints = npt.NDArray[np.int64]


def drawn(count: int, of: int, seed: int) -> list[int]:
    """``count`` of ``of`` windows without replacement, by a generator of its own."""
    return random.Random(seed).sample(range(of), count)


def longest(documents: Ints, window: int, count: int) -> list[int]:
    """The windows with the longest stretch of one document, in the order of the text.

    ``documents`` ``(tokens,)`` says of each token which document it is in, see
    :func:`documents_of`. Between windows that one document fills, the longer document goes first;
    then the earlier window.
    """
    lengths = np.bincount(documents)
    cut = documents[: len(documents) // window * window].reshape(-1, window)
    keys = []
    for index, row in enumerate(cut):
        present, tokens = np.unique(row, return_counts=True)
        most = int(tokens.argmax())
        keys.append((-int(tokens[most]), -int(lengths[present[most]]), index))
    return sorted(index for *_, index in sorted(keys)[:count])


def diverse(cut: Tensor, count: int) -> list[int]:
    """Greedy k-center (Gonzalez 1985) of ``cut`` ``(n, window)``, in the order of the choice.

    A window is the tf-idf vector of its tokens, of length one; the distance is one minus the
    cosine. The first is nearest to the mean of all, each next the one farthest from those chosen;
    ties go to the earlier window.
    """
    from scipy.sparse import csr_array, diags_array

    n, window = cut.shape
    tokens = cut.numpy().ravel()
    rows = np.repeat(np.arange(n), window)
    counts = csr_array((np.ones(len(tokens)), (rows, tokens)))
    counts.sum_duplicates()
    present = np.bincount(counts.indices, minlength=counts.shape[1])
    rarity = np.log((1 + n) / (1 + present)) + 1
    vectors = counts @ diags_array(rarity)
    norms = np.sqrt(vectors.multiply(vectors).sum(axis=1))
    vectors = csr_array(diags_array(1 / norms) @ vectors)
    center = np.asarray(vectors.mean(axis=0)).ravel()
    chosen = [int(np.argmax(vectors @ center))]
    nearest = vectors @ vectors[[chosen[0]]].toarray().ravel()
    while len(chosen) < count:
        nearest[chosen] = np.inf  # never again
        farthest = int(np.argmin(nearest))
        chosen.append(farthest)
        nearest = np.maximum(nearest, vectors @ vectors[[farthest]].toarray().ravel())
    return chosen


def documents_of(text: str, ends: Tensor, source: TextSource) -> Ints:
    """Which document each token is in, int64 ``(tokens,)``; ``ends`` as of :func:`data.stream`.

    Documents are what the source joined (rows of a table, of a hub data set), else what blank
    lines part; where newlines were folded, every line is one. A separator belongs to the document
    before it.
    """
    separator = source.join if "\n" in source.join else "\n\n"
    separator = "\n" if source.fold_newlines else separator
    pattern = re.compile(b"(?:" + re.escape(separator.encode()) + b")\n*")
    borders = np.array([found.end() for found in pattern.finditer(text.encode())], dtype=np.int64)
    return np.searchsorted(borders, ends.numpy() - 1, side="right").astype(np.int64)
