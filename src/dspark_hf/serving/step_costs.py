"""What the steps of a batch cost: by a table, and by the clock of the steps so far."""

from typing import Any

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.generation.lengths.cost_files import check_cost, circumstances, kept_cost
from dspark_hf.generation.lengths.cost_log import CostLog
from dspark_hf.generation.lengths.step_cost import StepCost

# Steps from one look at the clock's figures to the next.
_INTERVAL = 32


class BatchCosts:
    """The caller's table; else what was measured here for these models, or a rule of thumb, and what steps took since.

    Steps of a batch take other times than rounds of `generate()`, which tables are of: requests are read through one
    mask, and the host has work for each. So where the scheduler decides by costs, it goes by the clock. With a seed,
    or a table of the caller's, nothing looks at one.

    Args:
        model (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`]): The drafter.
        speculation ([`SpeculationConfig`]): How to speculate.

    Attributes:
        table ([`StepCost`]): What is known now.

    Raises:
        `ValueError`: If the caller's table was measured elsewhere.
    """

    def __init__(self, model: Any, drafter: Any, speculation: SpeculationConfig):
        given, made_for = speculation.scheduler.step_cost, circumstances(model, drafter)
        self._log: CostLog | None = None
        if given is not None:
            if given.made_for:
                check_cost(given, made_for)
            self.table = given
            return
        self._base = self.table = kept_cost(made_for) or StepCost.rule_of_thumb(model.device, model.dtype)
        if speculation.scheduler.policy == "auto" and speculation.seed is None:
            self._log = CostLog.of({**made_for, "steps": "continuous"}, self._base)
            self.table = self._log.corrected(self._base)
        self._num_noted = 0

    def wants_plain(self, num_rows: int, num_left: int) -> bool:
        """Whether the next step should be one without drafts, so that it is known what one takes.

        Args:
            num_rows (`int`): Requests behind their prompts.
            num_left (`int`): Tokens that the one with most of them may still make.
        """
        return self._log is not None and self._log.wants_plain(_about(num_rows), num_left)

    def note(self, num_rows: int, num_tokens: int, context_len: int, seconds: float, draft: float | None) -> bool:
        """Note a step.

        Args:
            num_rows, num_tokens, context_len (`int`): Requests, tokens of the step, and tokens before them.
            seconds (`float`): That it took, but for drafting.
            draft (`float`, *optional*): Seconds of drafting; None where nothing was drafted.

        Returns:
            `bool`: Whether `table` is another one now.
        """
        if self._log is None:
            return False
        self._log.note(self._base, num_rows, num_tokens, context_len, seconds, draft, _about(num_rows))
        self._num_noted += 1
        if self._num_noted % _INTERVAL:
            return False
        self.table = self._log.corrected(self._base)
        return True


def _about(num_rows: int) -> int:
    """Requests come and go: about as many count as the same."""
    return 1 << (num_rows - 1).bit_length()
