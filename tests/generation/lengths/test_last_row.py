"""A batch takes as long as its last row: what rows that move apart make of tokens."""

import numpy as np
import pytest

from dspark_hf.generation.lengths.last_row import row_weights, steps_left


def test_rows_side_by_side_take_what_each_takes():
    assert steps_left([40, 40, 40]) == 40
    assert row_weights([40, 40, 40]).tolist() == [1, 1, 1]
    assert row_weights([7]).tolist() == [1]
    assert steps_left([0, 0]) == 0


def test_the_last_row_counts():
    assert steps_left([60, 5]) == pytest.approx(60 - np.log(2) * (0.4 * 60) ** 0.5, abs=0.01)
    assert row_weights([60, 5])[0] == pytest.approx(2, abs=1e-3)


def test_a_row_that_is_ahead_saves_nothing():
    together = steps_left([40, 40]) - steps_left([37, 37])
    ahead = steps_left([40, 20]) - steps_left([40, 17])
    behind = steps_left([40, 20]) - steps_left([37, 20])
    assert together == 3 and ahead < 0.1 and behind > 2.8


def test_weights_are_the_slopes():
    left = [50, 44, 47, 30]
    weights = row_weights(left)
    # The longest row sets the spread as well, so it is left out.
    for row in (1, 2, 3):
        moved = [[n + step * (index == row) for index, n in enumerate(left)] for step in (0.5, -0.5)]
        slope = steps_left(moved[0]) - steps_left(moved[1])
        assert slope == pytest.approx(weights[row] / len(left), abs=1e-3)
