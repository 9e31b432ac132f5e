"""What a round costs in plain steps, and how many drafts are worth that: an estimate that looks at no clock.

The same call thus drafts the same again, and processes that share a target decide alike. [`Pace`] measures instead.
"""

import torch

# Drafts of all rows together up to which a pass of the target takes little longer than without any: the cores of a CPU
# are soon busy with computing, other devices wait for the weights for longer. A single core waits as long as two do.
_BUDGET_OF_CORE, _FEWEST_CORES, _BUDGET_OF_DEVICE = 8, 2, 256
# Plain steps that are added by a drafter's pass, by the verification of any drafts, and by a budget full of them.
_DRAFTER, _VERIFICATION, _FULL = 0.2, 0.05, 0.35


class RoundCost:
    """Estimates what rounds cost from the number of their drafts.

    Args:
        device (`torch.device`): Where the target runs.
        limits_drafts (`bool`, *optional*, defaults to `True`): Whether many rows get fewer drafts each.
    """

    def __init__(self, device: torch.device, limits_drafts: bool = True):
        num_cores = max(torch.get_num_threads(), _FEWEST_CORES)
        self._budget = _BUDGET_OF_CORE * num_cores if device.type == "cpu" else _BUDGET_OF_DEVICE
        self._limits_drafts = limits_drafts

    def limit(self, num_slots: int, num_rows: int, num_left: int) -> int:
        """How many of `num_slots` slots to draft.

        Args:
            num_slots (`int`): Slots that may be drafted, at least one.
            num_rows (`int`): Rows to draft for.
            num_left (`int`): Tokens that the row with most of them may still make.
        """
        return self.share(num_slots, num_rows)

    def share(self, num_drafts: int, num_rows: int) -> int:
        """How many of `num_drafts` drafts each of some rows may have verified."""
        return min(num_drafts, max(1, self._budget // max(num_rows, 1))) if self._limits_drafts else num_drafts

    def extra(self, lens: list[int], is_drafted: bool) -> float:
        """Plain steps that a round takes beyond one.

        Args:
            lens (`list[int]`): Drafts of each row.
            is_drafted (`bool`): Whether the drafter was asked for some.
        """
        share = min(1.0, sum(lens) / self._budget)
        return _DRAFTER * is_drafted + (_VERIFICATION + _FULL * share if share > 0 else 0.0)

    def pays(self, num_slots: int) -> bool:
        """Whether some of `num_slots` slots are worth drafting, as far as known."""
        return True

    def note(self, lens: list[int], seconds: float) -> None:
        """Note the time of a round with so many drafts of each row, from the proposal to the verdict."""

    def learn(self, lens: list[int], gains: list[int]) -> None:
        """Count what became of drafts: how many of each row became output."""
