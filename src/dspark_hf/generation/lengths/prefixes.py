"""How many drafts of each row are verified, given how likely they are to stand and what a pass takes.

A slot's survival is known before its own token is: it rests on the tokens before. So nothing here may read the
survival of a slot behind the one that is decided, unless that slot was decided to be verified before; then whether a
slot is verified depends on the tokens before it alone, and the output follows the target (paper, section 3.3).
Shapes: R rows, n slots. Survival falls from slot to slot.
"""

from collections.abc import Sequence

import numpy as np


def best_count(num_rows: float, gains: np.ndarray, seconds: np.ndarray) -> tuple[int, float]:
    """The number of drafts that makes most tokens in a second, of all numbers: costs have stairs and several tops.

    Args:
        num_rows (`float`): Tokens that a pass makes in any case.
        gains (`numpy.ndarray` of shape `(m + 1,)`): Drafts that are expected to stand of the best 0 to m.
        seconds (`numpy.ndarray` of shape `(m + 1,)`): Of a round that verifies so many.

    Returns:
        `tuple(int, float)`: The number, and tokens per second.
    """
    rates = (num_rows + gains) / seconds
    best = int(rates.argmax())
    return best, float(rates[best])


def share_out(survival: np.ndarray, most: Sequence[int], budget: int) -> list[int]:
    """Give a budget to the slots that are likeliest to stand: a prefix of each row.

    Args:
        survival (`numpy.ndarray` of shape `(rows, slots)`): Survival of this round's drafts.
        most (`Sequence[int]`): Drafts that each row has.
        budget (`int`): Drafts of all rows together, settled without a look at this round's survival.

    Returns:
        `list[int]`: Drafts to verify of each row. Ties go to the first row, and then to the first slot.
    """
    values = _masked(survival, most)
    budget = min(budget, sum(most))
    chosen = np.argsort(-values, axis=None, kind="stable")[:budget]
    return np.bincount(chosen // max(values.shape[1], 1), minlength=len(most)).tolist()


def early_stop(survival: np.ndarray, most: Sequence[int], seconds: np.ndarray) -> list[int]:
    """Take slots, the likeliest first, while tokens per second grow; stop where they fall for the first time.

    Args:
        survival (`numpy.ndarray` of shape `(rows, slots)`): Survival of this round's drafts.
        most (`Sequence[int]`): Drafts that each row has.
        seconds (`numpy.ndarray` of shape `(sum(most) + 1,)` and more): Of a round that verifies 0, 1, ... drafts.

    Returns:
        `list[int]`: Drafts to verify of each row.

    Source: DSpark, algorithm 1 (https://arxiv.org/abs/2607.05147).
    """
    num_rows, values = len(most), _masked(survival, most)
    order = np.argsort(-values, axis=None, kind="stable")[: sum(most)]
    rates = (num_rows + np.concatenate([[0.0], values.flatten()[order].cumsum()])) / seconds[: len(order) + 1]
    drops = np.flatnonzero(rates[1:] < rates[:-1])
    budget = int(drops[0]) if len(drops) else len(order)
    return share_out(survival, most, budget)


def walk(survival: np.ndarray, most: Sequence[int], ahead: np.ndarray, seconds: np.ndarray, price: float) -> list[int]:
    """Verify slots, the likeliest first, while they are worth their time, or lead to some that are.

    What stands behind a slot is not known before its token is, so survival there is forecast from earlier rounds. Of
    what is known and forecast, the number of further slots is found that wins most over its time; the next slots of
    rows that are among so many are verified, and then it is asked again. So a stair is climbed if what is expected on
    it pays.

    Args:
        survival (`numpy.ndarray` of shape `(rows, slots)`): Survival of this round's drafts.
        most (`Sequence[int]`): Drafts that each row has.
        ahead (`numpy.ndarray` of shape `(rows, slots)`): Chance of each slot if all before it stand, lately.
        seconds (`numpy.ndarray` of shape `(sum(most) + 1,)` and more): Of a pass that verifies 0, 1, ... drafts.
        price (`float`): Tokens that a second is worth.

    Returns:
        `list[int]`: Drafts to verify of each row.
    """
    if len(most) == 1:
        return [_walk_row(survival[0].tolist(), most[0], ahead[0].tolist(), seconds.tolist(), price)]
    lens, most = np.zeros(len(most), dtype=int), np.asarray(most)
    # Chance of slot k + 1 and those behind it, given that slot k stands: products of `ahead` over spans.
    logs = np.concatenate([np.zeros((len(most), 1)), np.log(np.maximum(ahead, 1e-9)).cumsum(1)], 1)
    slots, rows = np.arange(survival.shape[1]), np.arange(len(most))
    while (lens < most).any():
        heads = survival[rows, np.minimum(lens, most - 1)]
        tails = heads[:, None] * np.exp(logs[:, 1:] - logs[rows, np.minimum(lens, most - 1) + 1][:, None])
        is_open = (slots >= lens[:, None]) & (slots < most[:, None])
        order = np.argsort(-np.where(is_open, tails, -1.0), axis=None, kind="stable")[: int(is_open.sum())]
        values, taken = tails.flatten()[order], int(lens.sum())
        won = values.cumsum() - price * (seconds[taken + 1 : taken + 1 + len(values)] - seconds[taken])
        best = int(won.argmax())
        if won[best] <= 0:
            break
        # The likeliest of all is a row's next slot, so at least one is among them. Ties go by place: one slot more may
        # be one stair up.
        chosen = np.zeros(tails.size, dtype=bool)
        chosen[order[: best + 1]] = True
        lens += chosen.reshape(tails.shape)[rows, np.minimum(lens, most - 1)] & (lens < most)
    return lens.tolist()


def _walk_row(survival: list[float], most: int, ahead: list[float], seconds: list[float], price: float) -> int:
    """The walk of one row, whose likeliest slots are its next ones; arrays of so few numbers would take far longer."""
    for taken in range(most):
        chance = won = survival[taken]
        for slot in range(taken + 1, most + 1):
            if won > price * (seconds[slot] - seconds[taken]):
                break
            if slot < most:
                chance *= ahead[slot]
                won += chance
        else:
            return taken
    return most


def _masked(survival: np.ndarray, most: Sequence[int]) -> np.ndarray:
    """Survival, and -1 where a row has no draft."""
    has_draft = np.arange(survival.shape[1]) < np.asarray(most)[:, None]
    return np.where(has_draft, survival, -1.0)
