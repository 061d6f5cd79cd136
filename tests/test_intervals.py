"""The paired bootstrap: exact where both models agree, tighter than an unpaired one elsewhere."""

import numpy as np
import pytest

from bitsweep import intervals


def losses(n=40, seed=0):
    """Summed losses of ``n`` windows of 100 tokens, unequally hard, about 2 nats a token."""
    random = np.random.default_rng(seed)
    return 200 + 40 * random.standard_normal(n), np.full(n, 100.0)


def test_the_value_is_the_statistic_of_all_units_and_lies_in_the_interval():
    loss, tokens = losses()
    interval = intervals.perplexity(loss, tokens)
    assert interval.value == pytest.approx(np.exp(loss.sum() / tokens.sum()))
    assert interval.lo < interval.value < interval.hi


def test_equal_losses_have_a_ratio_of_exactly_one_without_width():
    loss, tokens = losses()
    same = intervals.perplexity_ratio(loss, loss.copy(), tokens)
    assert same == intervals.Interval(1.0, 1.0, 1.0)


def test_a_constant_difference_has_an_interval_without_width():
    loss, tokens = losses()
    interval = intervals.perplexity_ratio(loss + 5.0, loss, tokens)  # 0.05 nats a token more
    assert interval.lo == pytest.approx(np.exp(0.05))
    assert interval.hi == pytest.approx(np.exp(0.05))


def test_the_paired_interval_is_much_tighter_than_the_unpaired_one():
    loss, tokens = losses()
    noise = np.random.default_rng(1).standard_normal(len(loss))
    paired = intervals.perplexity_ratio(loss + 1 + 0.5 * noise, loss, tokens)
    alone = intervals.perplexity(loss, tokens)
    assert (paired.hi - paired.lo) / paired.value < (alone.hi - alone.lo) / alone.value / 15


def test_the_same_units_and_seed_give_the_same_interval_bit_for_bit():
    loss, tokens = losses()
    assert intervals.perplexity(loss, tokens) == intervals.perplexity(loss.copy(), tokens)


def test_blocks_of_resamples_do_not_change_the_draws(monkeypatch):
    loss, tokens = losses()
    whole = intervals.perplexity(loss, tokens)
    monkeypatch.setattr(intervals, "_BLOCK", 7 * len(loss))
    assert intervals.perplexity(loss, tokens) == whole


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error():
    values = np.random.default_rng(2).standard_normal(400)
    interval = intervals.mean(values)
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert interval.hi - interval.lo == pytest.approx(expected, rel=0.1)


def test_one_unit_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        intervals.mean(np.array([1.0]))


def test_a_mean_difference_is_that_of_the_values_less_the_reference():
    values, reference = np.array([3.0, 5.0, 4.0]), np.array([1.0, 1.0, 2.5])
    found = intervals.mean_difference(values, reference)
    assert found.value == 2.5
    assert 1.5 <= found.lo < found.hi <= 4.0
