"""A batch takes as long as its last row: what that makes of tokens in rows that move apart.

Shapes: R rows at work.
"""

from collections.abc import Sequence

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
    chances, _ = _chances(left)
    return chances * (len(left) / chances.sum())


def steps_left(left: Sequence[int]) -> float:
    """Plain steps until the last row ends: a smooth maximum. At one spread its slopes are the chances to end last.

    Args:
        left (`Sequence[int]`): Tokens that each row may still make.
    """
    chances, spread = _chances(left)
    return max(left) + spread * float(np.log(chances.mean()))


def _chances(left: Sequence[int]) -> tuple[np.ndarray, float]:
    """How likely rows are to end last, to the likeliest, and by how many tokens the rounds to come move rows apart.

    That is about the root of the tokens that are left, as far as it can be told.
    """
    most = max(left)
    spread = (_SPREAD * max(most, 1)) ** 0.5
    return np.exp((np.asarray(left, dtype=float) - most) / spread), spread
