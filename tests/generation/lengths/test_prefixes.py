"""How many drafts are verified: the best for what is known, and nothing that is not known yet is looked at."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dspark_hf.generation.lengths.prefixes import best_count, early_stop, share_out, walk


def falling(rng, num_rows, num_slots):
    """Survival as a head gives it, with ties now and then."""
    chances = rng.choice([0.05, 0.3, 0.5, 0.8, 0.95, 1.0], (num_rows, num_slots))
    return chances.cumprod(1)


def costs(rng, num_drafts):
    """A table with stairs, flat parts and jumps, of any unit."""
    return (1 + rng.choice([0, 0, 0, 0.02, 0.5, 3.0], num_drafts + 1).cumsum()) * 10.0 ** rng.integers(-4, 3)


cases = st.tuples(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4))


def drawn(case):
    seed, num_rows, num_slots = case
    rng = np.random.default_rng(seed)
    most = rng.integers(0, num_slots + 1, num_rows)
    most[0] = num_slots
    return rng, falling(rng, num_rows, num_slots), most.tolist(), costs(rng, num_rows * num_slots)


def choices(most):
    return itertools.product(*(range(n + 1) for n in most))


@settings(max_examples=150)
@given(cases)
def test_a_budget_is_the_best_for_any_table(case):
    """Brute force over all prefixes of all rows."""
    _, survival, most, seconds = drawn(case)
    order = np.sort(np.concatenate([row[:n] for row, n in zip(survival, most, strict=True)]))[::-1]
    gains = np.concatenate([[0.0], order.cumsum()])
    budget, rate = best_count(len(most), gains, seconds[: len(gains)])
    lens = share_out(survival, most, budget)

    def value(lens):
        stands = sum(row[:n].sum() for row, n in zip(survival, lens, strict=True))
        return (len(most) + stands) / seconds[sum(lens)]

    assert sum(lens) == budget and all(n <= m for n, m in zip(lens, most, strict=True))
    assert value(lens) == pytest.approx(rate) == pytest.approx(max(map(value, choices(most))))


@settings(max_examples=150)
@given(cases, st.floats(0.01, 3))
@example((264, 3, 1), 1.0)
def test_a_walk_is_the_best_where_forecasts_come_true(case, price):
    rng, survival, most, seconds = drawn(case)
    ahead = rng.uniform(0.1, 1.0, survival.shape)
    # What stands behind slot 1 is exactly what is forecast.
    survival = np.concatenate([survival[:, :1], survival[:, :1] * ahead[:, 1:].cumprod(1)], 1)
    price = price / (seconds[-1] - seconds[0] + 1e-3 * seconds[0])

    def value(lens):
        stands = sum(row[:n].sum() for row, n in zip(survival, lens, strict=True))
        return stands - price * (seconds[sum(lens)] - seconds[0])

    assert value(walk(survival, most, ahead, seconds, price)) == pytest.approx(
        max(map(value, choices(most))), abs=1e-9
    )


class Revealed:
    """Survival that only tells what is known: that of a slot once all slots before it were verified."""

    def __init__(self, survival, most):
        self._survival, self.most, self.lens = survival, most, [0] * len(most)

    def heads(self):
        """Each row's next slot, if it has a draft: `(survival, row)`."""
        return [(self._survival[row, n], row) for row, n in enumerate(self.lens) if n < self.most[row]]

    def best(self):
        return max(self.heads(), key=lambda head: (head[0], -head[1]))


def slow_share_out(known, budget):
    while sum(known.lens) < min(budget, sum(known.most)):
        known.lens[known.best()[1]] += 1
    return known.lens


def slow_early_stop(known, seconds):
    tokens = len(known.most)
    while known.heads():
        value, row = known.best()
        taken = sum(known.lens)
        if (tokens + value) / seconds[taken + 1] < tokens / seconds[taken]:
            break
        tokens, known.lens[row] = tokens + value, known.lens[row] + 1
    return known.lens


def slow_walk(known, ahead, seconds, price):
    while known.heads():
        # By value, then by row and slot.
        further = []
        for value, row in known.heads():
            chances = [1.0, *ahead[row, known.lens[row] + 1 : known.most[row]]]
            further += [(-value * chance, row, slot) for slot, chance in enumerate(np.cumprod(chances))]
        further.sort(key=lambda one: (round(one[0], 12), *one[1:]))
        taken = sum(known.lens)
        won = np.cumsum([-value for value, *_ in further]) - price * (
            seconds[taken + 1 : taken + 1 + len(further)] - seconds[taken]
        )
        if won.max() <= 1e-12:
            break
        for _, row, slot in further[: int(won.argmax()) + 1]:
            known.lens[row] += slot == 0
    return known.lens


@settings(max_examples=200)
@given(cases, st.floats(0.01, 3), st.integers(0, 12))
def test_the_result_is_that_of_revealing_one_draft_after_the_other(case, price, budget):
    rng, survival, most, seconds = drawn(case)
    ahead = rng.uniform(0.1, 1.0, survival.shape)
    price = price / (seconds[-1] - seconds[0] + 1e-3 * seconds[0])
    assert share_out(survival, most, budget) == slow_share_out(Revealed(survival, most), budget)
    assert early_stop(survival, most, seconds) == slow_early_stop(Revealed(survival, most), seconds)
    expected = slow_walk(Revealed(survival, most), ahead, seconds, price)
    assert walk(survival, most, ahead, seconds, price) == expected


@settings(max_examples=200)
@given(cases, st.floats(0.01, 3), st.integers(0, 12), st.integers(0, 3))
def test_what_a_draft_is_does_not_change_whether_it_is_verified(case, price, budget, slot):
    """Survival behind a slot depends on its token. It may be anything: the decision on the slot stays."""
    rng, survival, most, seconds = drawn(case)
    ahead = rng.uniform(0.1, 1.0, survival.shape)
    price = price / (seconds[-1] - seconds[0] + 1e-3 * seconds[0])
    row, slot = int(rng.integers(len(most))), min(slot, survival.shape[1] - 1)
    other = survival.copy()
    other[row, slot + 1 :] = other[row, slot] * falling(rng, 1, survival.shape[1])[0, : survival.shape[1] - slot - 1]
    for decide in (
        lambda values: share_out(values, most, budget),
        lambda values: early_stop(values, most, seconds),
        lambda values: walk(values, most, ahead, seconds, price),
    ):
        before, after = decide(survival)[row], decide(other)[row]
        assert (before > slot) == (after > slot)


def test_early_stop_lands_in_front_of_the_first_stair():
    survival = np.array([[0.9, 0.85, 0.8, 0.75]])
    # A graph for one token, and one for up to five.
    seconds = np.array([1.0, 2.0, 2.0, 2.0, 2.0])
    assert early_stop(survival, [4], seconds) == [0]
    gains = np.concatenate([[0.0], survival[0].cumsum()])
    assert best_count(1, gains, seconds)[0] == 4
    assert walk(survival, [4], np.full((1, 4), 0.95), seconds, price=1.0) == [4]


def test_ties_go_to_the_first_row_and_slot():
    even = np.full((3, 2), 0.5)
    assert [share_out(even, [2, 2, 2], budget) for budget in (1, 2, 3)] == [[1, 0, 0], [2, 0, 0], [2, 1, 0]]
    assert share_out(even, [0, 1, 2], 9) == [0, 1, 2]


def test_drafts_that_cost_nothing_are_all_verified():
    seconds = np.ones(5)
    assert walk(np.array([[0.1, 0.01], [0.5, 0.2]]), [2, 2], np.full((2, 2), 0.1), seconds, 1.0) == [2, 2]
