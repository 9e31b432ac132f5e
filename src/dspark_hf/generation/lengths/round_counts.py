"""What rounds came to, in sums that do not grow with them."""

from dataclasses import dataclass


@dataclass
class RoundCounts:
    """Sums over rounds. A *verification* is one round of one row.

    Attributes:
        rounds (`int`): Passes of the target that made tokens.
        verifications (`int`): Verifications, those without a draft included.
        emitted_tokens (`int`): Tokens that they made.
        verified_tokens (`int`): Drafts that the target looked at.
        accepted_tokens (`int`): Drafts that became output.
    """

    rounds: int = 0
    verifications: int = 0
    emitted_tokens: int = 0
    verified_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def tau(self) -> float:
        """Mean tokens per verification, the target's own included; 0.0 before the first."""
        return self.emitted_tokens / self.verifications if self.verifications else 0.0
