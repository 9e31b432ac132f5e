"""A net under drafting: where drafts do not pay, generation goes on without, and tries again at fixed intervals.

It looks at earlier rounds only, so it can change time and nothing else.
"""

# Plain steps that a single row's drafting may lose before it pauses, at first, and what it may win for later. The more
# rows, the more a round tells, so that less is needed.
_CREDIT, _MOST = 2.0, 2.0
# Credit of a later try, and the share of rows below which a pause ends.
_TRY, _FEWER = 0.5, 0.7


class Account:
    """What drafting has won and lost, in plain steps.

    It starts with credit for 2 plain steps of a single row, and less for more rows. A drafted round costs what it
    takes longer than a plain step; a draft that stands earns the step that it saves, up to twice the credit in all.
    When it is empty, drafting pauses, and is then tried with credit for half a step. Pauses are all as long, since a
    text changes when it does.

    Args:
        num_rows (`int`, *optional*, defaults to 1): Rows of the batch.

    Attributes:
        pause_len (`int`): Rounds of a pause.
        has_paused (`bool`): Whether it ever did.
        is_trying (`bool`): Whether a try after a pause has not won yet what a whole credit is.
    """

    def __init__(self, num_rows: int = 1):
        self._credit = _CREDIT / num_rows**0.5
        self._balance = self._credit
        self._num_left, self._rows_at_pause = 0, num_rows
        self.pause_len = 64
        self.has_paused = self.is_trying = False

    @property
    def is_paused(self) -> bool:
        """Whether no draft is to be made."""
        return self._num_left > 0

    @property
    def is_winning(self) -> bool:
        """Whether drafting has won more than it began with."""
        return self._balance > self._credit

    def pause(self, num_rows: int) -> None:
        """Let go of drafting for a while.

        Args:
            num_rows (`int`): Rows at work.
        """
        self._rows_at_pause = num_rows
        self._num_left, self._balance = self.pause_len, min(_TRY, self._credit)
        self.has_paused = self.is_trying = True

    def wait(self, num_rows: int) -> None:
        """Count a round of a pause; it ends where rows have left since, with fewer of which drafts cost less.

        Args:
            num_rows (`int`): Rows at work.
        """
        self._num_left = 0 if num_rows < _FEWER * self._rows_at_pause else self._num_left - 1

    def settle(self, gain: float, extra: float, num_rows: int) -> None:
        """Count a drafted round.

        Args:
            gain (`float`): Drafts that became output, per row that was drafted for.
            extra (`float`): Plain steps that the round took beyond one.
            num_rows (`int`): Rows at work.
        """
        self._balance = min(self._balance + gain - extra, _MOST * self._credit)
        if self._balance <= 0:
            self.pause(num_rows)
        elif self._balance >= self._credit:
            self.is_trying = False
