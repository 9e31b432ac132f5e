"""What a server has done so far, in numbers that do not grow with it."""

from collections import OrderedDict
from dataclasses import dataclass, field

from dspark_hf.generation.lengths.round_counts import RoundCounts
from dspark_hf.generation.stats import SpeculationStats

# Answers whose counts are kept for whoever asks.
_MOST_ANSWERS = 4096


@dataclass
class ServingStats(RoundCounts):
    """Counts of all requests so far: the sums of [`RoundCounts`], a row being a request behind its prompt.

    Attributes:
        new_tokens (`int`): Tokens made.
        drafted_tokens (`int`): Drafts that were made.
        paused_rounds (`int`): Passes in which the drafter did not draft because that does not pay.
        failed_requests (`int`): Requests that ended with an error.
        answers ([`AnswerCounts`]): Of single answers.
    """

    new_tokens: int = 0
    drafted_tokens: int = 0
    paused_rounds: int = 0
    failed_requests: int = 0
    answers: "AnswerCounts" = field(default_factory=lambda: AnswerCounts(), repr=False)

    def add(self, stats: SpeculationStats) -> None:
        """Add one `generate()`.

        Args:
            stats ([`SpeculationStats`]): What happened in it.
        """
        self.rounds += stats.rounds
        self.new_tokens += stats.new_tokens
        self.verifications += len(stats.verified_lens)
        self.emitted_tokens += sum(stats.emitted_lens)
        self.drafted_tokens += sum(stats.drafted_lens)
        self.verified_tokens += stats.verified_tokens
        self.accepted_tokens += sum(stats.accepted_lens)
        self.paused_rounds += stats.paused_rounds

    def summary(self) -> str:
        """One line."""
        return (
            f"tau {self.tau:.2f} ({self.new_tokens} tokens, {self.rounds} rounds, {self.verified_tokens} drafts "
            f"verified, {self.accepted_tokens} accepted)"
        )


class AnswerCounts:
    """Drafts of single answers that became output, and that were rejected; of the latest few thousand answers."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def note(self, request_id: str, num_accepted: int, num_rejected: int) -> None:
        """Add to the counts of an answer.

        Args:
            request_id (`str`): Whose it is.
            num_accepted, num_rejected (`int`): Drafts.
        """
        accepted, rejected = self._counts.pop(request_id, (0, 0))
        self._counts[request_id] = (accepted + num_accepted, rejected + num_rejected)
        if len(self._counts) > _MOST_ANSWERS:
            self._counts.popitem(last=False)

    def take(self, request_id: str) -> tuple[int, int]:
        """Read the counts of an answer, and forget them.

        Args:
            request_id (`str`): Whose it is.

        Returns:
            `tuple(int, int)`: Drafts that were accepted and rejected.
        """
        return self._counts.pop(request_id, (0, 0))
