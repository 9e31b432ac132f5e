"""A batch takes as long as its last row: what rows that move apart make of tokens."""

import numpy as np
import pytest

from dspark_hf.generation.lengths.last_row import row_weights, steps_saved, time_apart


def test_rows_side_by_side_save_what_each_saves():
    assert steps_saved([40, 40, 40], [37, 37, 37]) == 3
    assert row_weights([40, 40, 40]).tolist() == [1, 1, 1]
    assert row_weights([7]).tolist() == [1]
    assert steps_saved([0, 0], [0, 0]) == 0


def test_the_last_row_counts():
    assert row_weights([60, 5])[0] == pytest.approx(2, abs=1e-3)
    # All that is left is what the longest row has left, and the others are far from it.
    assert steps_saved([60, 5], [0, 0]) == pytest.approx(60 - np.log(2) * (0.4 * 60) ** 0.5, abs=0.01)


@pytest.mark.parametrize("num_rows", [2, 64])
def test_the_last_row_of_many_saves_what_it_is_ahead_of(num_rows):
    others = [0] * (num_rows - 1)
    assert steps_saved([30, *others], [27, *others]) == pytest.approx(3, abs=0.1)


def test_a_row_that_is_ahead_saves_nothing():
    together = steps_saved([40, 40], [37, 37])
    ahead = steps_saved([40, 20], [40, 17])
    behind = steps_saved([40, 20], [37, 20])
    assert together == 3 and ahead < 0.1 and behind > 2.8


def test_weights_are_the_slopes():
    left = [50, 44, 47, 30]
    weights = row_weights(left)
    for row in range(4):
        slope = steps_saved(left, [n - 1e-3 * (index == row) for index, n in enumerate(left)]) / 1e-3
        assert slope == pytest.approx(weights[row] / len(left), abs=1e-3)


def test_rows_that_move_apart_take_longer():
    def apart(left):
        return time_apart(left, row_weights(left))

    assert apart([64]) == 0
    assert apart([64] * 16) == pytest.approx((np.log(16) * 0.4 / 64) ** 0.5)
    assert apart([64] * 2) < apart([64] * 16) and apart([256] * 16) < apart([64] * 16)
    # A row that is far behind waits for nobody.
    assert apart([64, 4, 4, 4]) < 0.01


def test_the_last_of_rows_that_were_drawn():
    """Rounds of one to three tokens: rows of 128 tokens end apart by about as much as is said."""
    rng, tokens = np.random.default_rng(0), np.arange(1, 4) @ np.array([[0.5], [0.3], [0.2]])
    rounds = (1 + rng.choice(3, (200, 16, 128), p=[0.5, 0.3, 0.2])).cumsum(-1).__lt__(128).sum(-1) + 1
    assert rounds.mean() == pytest.approx(128 / tokens.item(), rel=0.02)
    share = rounds.max(-1).mean() / rounds.mean() - 1
    assert share == pytest.approx(time_apart([128] * 16, row_weights([128] * 16)), rel=0.4)
