"""A net under drafting: where drafts do not pay, generation goes on without, and tries again after a while.

It looks at earlier rounds only, so it can change time and nothing else.
"""

# Plain steps that a single row's drafting may lose before it pauses, at first. The more rows, the more a round tells,
# so that less is needed. And how many times that it may win for later, for so many rounds at least.
_CREDIT, _MOST, _LEAST_ROUNDS = 2.0, 4.0, 2
# How many times its credit drafting must have won for its next pause to be short, and the part of a whole pause.
_WON, _SHORT = 2.0, 8
# Whole pauses that the longest takes, where drafting has won less than this a round in all but so many of them.
_LONGEST, _HARDLY, _FEW = 4, 0.05, 3
# Credit of a later try, and the share of rows below which a pause ends.
_TRY, _FEWER = 0.5, 0.7


class Account:
    """What drafting has won and lost, in plain steps.

    It starts with credit for two plain steps of a single row, and less for more rows. A drafted round costs what it
    takes longer than a plain step; a draft that stands earns the step that it saves, up to four times the credit in
    all, or what two rounds take. When it cannot bear another round, drafting pauses, and is then tried with credit for
    half a step. A pause after drafting has won is short, since a good drafter has unlucky stretches as well; each
    further one without is twice as long, up to a whole one, or to four where hardly a draft has ever stood.

    Args:
        num_rows (`int`, *optional*, defaults to 1): Rows of the batch.

    Attributes:
        pause_len (`int`): Rounds of a whole pause.
        has_paused (`bool`): Whether it ever did.
        is_trying (`bool`): Whether a try after a pause has not won yet what a whole credit is.
    """

    def __init__(self, num_rows: int = 1):
        self._credit = _CREDIT / num_rows**0.5
        self._balance = self._credit
        self._num_left, self._num_skipped, self._rows_at_pause = 0, 0, num_rows
        self.pause_len, self._last_pause = 64, 0
        self.has_paused = self.is_trying = False
        self._is_fresh, self._has_won = True, False
        self._won, self._num_rounds = 0.0, 0

    @property
    def is_winning(self) -> bool:
        """Whether drafting has won more than it began with."""
        return self._balance > self._credit

    def affords(self, extra: float) -> bool:
        """Whether it bears another round if nothing of it stands; the first round of a try is borne anyway.

        Args:
            extra (`float`): Plain steps that the round takes beyond one.
        """
        return self._is_fresh or self._balance >= extra

    def pause(self, num_rows: int) -> None:
        """Let go of drafting for a while, from the round on that is about to begin.

        Args:
            num_rows (`int`): Rows at work.
        """
        length = self.pause_len // _SHORT if self._has_won else 2 * self._last_pause or self.pause_len
        is_hopeless = self._won < _HARDLY * (self._num_rounds - _FEW)
        self._last_pause = min(max(length, 1), self.pause_len * (_LONGEST if is_hopeless else 1))
        self._num_left, self._rows_at_pause = self._last_pause - 1, num_rows
        self._balance = min(_TRY, self._credit)
        self.has_paused = self.is_trying = self._is_fresh = True
        self._has_won = False

    def begin_call(self, pause_len: int) -> None:
        """Go on with another prompt, which may suit the drafter: of a pause no more than a whole one is left.

        Args:
            pause_len (`int`): Rounds of a whole pause from now on.
        """
        self.pause_len = pause_len
        self._num_left = min(self._num_left, pause_len)

    def rests(self, num_rows: int) -> bool:
        """Whether a round is one of a pause, which it then counts for; no draft is to be made in it.

        A pause ends where rows have left since, with fewer of which drafts cost less.

        Args:
            num_rows (`int`): Rows at work.
        """
        if num_rows < _FEWER * self._rows_at_pause:
            self._num_left = 0
        has_any = self._num_left > 0
        self._num_left -= has_any
        return has_any

    def skips(self) -> bool:
        """Count a round that is better left out for what is left of this batch; one of a whole pause's rounds is not.

        Otherwise a source that batches are too short for would never be known.
        """
        self._num_skipped = (self._num_skipped + 1) % self.pause_len
        return self._num_skipped > 0

    def settle(self, gain: float, extra: float) -> None:
        """Count a drafted round.

        Args:
            gain (`float`): Plain steps that its drafts saved.
            extra (`float`): Plain steps that the round took beyond one.
        """
        self._is_fresh = False
        self._won, self._num_rounds = self._won + gain, self._num_rounds + 1
        self._balance = min(self._balance + gain - extra, max(_MOST * self._credit, _LEAST_ROUNDS * extra))
        self._has_won |= self._balance >= _WON * self._credit
        self.is_trying &= self._balance < self._credit
