"""A batch takes as long as its last row: what that makes of tokens in rows that move apart.

Shapes: R rows at work.
"""

from collections.abc import Sequence
from math import log

import numpy as np

# Variance of the tokens of a round, by the tokens of a round.
_SPREAD = 0.4
_ONE = np.ones(1)


def row_weights(left: Sequence[int]) -> np.ndarray:
    """What a token of each row is worth, `(rows,)`, 1 on average: the chance that the row ends last, times the rows.

    Args:
        left (`Sequence[int]`): Tokens that each row may still make.
    """
    if len(left) == 1:
        return _ONE
    chances = _chances(left, _spread(left))
    return chances * (len(left) / chances.sum())


def time_apart(left: Sequence[int], weights: np.ndarray) -> float:
    """Share by which the last row takes longer than rows do on average, since those that are drafted for move apart.

    The greatest of n numbers is about the root of log n standard deviations above their mean.

    Args:
        left (`Sequence[int]`): Tokens that each row may still make.
        weights (`numpy.ndarray` of shape `(rows,)`): What [`row_weights`] makes of them.
    """
    if len(left) == 1:
        return 0.0
    num_last = max(float(weights.sum() ** 2 / (weights**2).sum()), 1.0)
    return log(num_last) ** 0.5 * _spread(left) / max(*left, 1)


def steps_saved(before: Sequence[int], after: Sequence[int]) -> float:
    """Plain steps by which the last row ends sooner: how far a smooth maximum falls.

    Its slopes are the chances to end last. The spread is that of `before`, on both sides.

    Args:
        before (`Sequence[int]`): Tokens that each row would still make.
        after (`Sequence[int]`): Tokens that it may, now that some have been made.
    """
    spread = _spread(before)
    return _smooth_max(before, spread) - _smooth_max(after, spread)


def _smooth_max(left: Sequence[int], spread: float) -> float:
    return max(left) + spread * float(np.log(_chances(left, spread).mean()))


def _chances(left: Sequence[int], spread: float) -> np.ndarray:
    """How likely rows are to end last, to the likeliest."""
    return np.exp((np.asarray(left, dtype=float) - max(left)) / spread)


def _spread(left: Sequence[int]) -> float:
    """By how many tokens the rounds to come move rows apart: about the root of what is left."""
    return (_SPREAD * max(*left, 1)) ** 0.5
