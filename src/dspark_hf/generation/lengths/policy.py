"""How many of its drafts each row has verified.

A policy may not anticipate: whether a slot is verified may depend on the tokens before it and on earlier rounds, never
on the slot's own token, or the output would no longer follow the target (paper, section 3.3). Survival is safe: the
confidence in a slot is known before its token is drawn.
Shapes: B rows, n slots.
"""

from torch import Tensor

from dspark_hf.generation.config import SpeculationConfig


class FixedLength:
    """Verifies every slot that a row has room for.

    Args:
        max_len (`int`, *optional*): Most drafts of a row; all that are drafted, if not given.
    """

    # Whether `choose` reads the survival, which costs one more host synchronisation.
    needs_survival = False

    def __init__(self, max_len: int | None = None):
        self.max_len = max_len

    def limit(self, num_slots: int) -> int:
        """How many of `num_slots` slots are worth drafting at all."""
        return num_slots if self.max_len is None else min(num_slots, self.max_len)

    def choose(self, draft_lens: list[int], survival: Tensor | None) -> list[int]:
        """Drafts to verify of each row.

        Args:
            draft_lens (`list[int]`): Drafts that each row has.
            survival (`torch.FloatTensor` of shape `(rows, slots)`, *optional*):
                Probability that a slot and all before it are accepted; given if the policy needs it.

        Returns:
            `list[int]`: At most `draft_lens`.
        """
        return draft_lens


class SurvivalThreshold(FixedLength):
    """Verifies the slots whose survival reaches a threshold.

    Args:
        threshold (`float`): Least survival of a slot that is verified.
        max_len (`int`, *optional*): Most drafts of a row; all that are drafted, if not given.
    """

    needs_survival = True

    def __init__(self, threshold: float, max_len: int | None = None):
        super().__init__(max_len)
        self.threshold = threshold

    def choose(self, draft_lens: list[int], survival: Tensor | None) -> list[int]:
        # Survival falls from slot to slot, so what passes is a prefix.
        passed = (survival >= self.threshold).sum(-1).tolist()
        return [min(pair) for pair in zip(draft_lens, passed, strict=True)]


def length_policy(speculation: SpeculationConfig) -> FixedLength:
    """The policy that a caller's options describe."""
    if speculation.confidence_threshold > 0:
        return SurvivalThreshold(speculation.confidence_threshold, speculation.max_draft_len)
    return FixedLength(speculation.max_draft_len)
