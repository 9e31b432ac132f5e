"""Which table of costs a generation goes by, and what its rounds tell for later ones."""

from dspark_hf.generation.lengths.cost_files import check_cost, circumstances, kept_cost
from dspark_hf.generation.lengths.cost_log import CostLog
from dspark_hf.generation.lengths.step_cost import StepCost
from dspark_hf.generation.request import Request
from dspark_hf.generation.target.peers import Peers


class Pricing:
    """The table of one generation, which stays as it is to the end.

    It is the caller's; else what was measured here for these models; else a rule of thumb. Greedy calls correct it by
    what rounds took in earlier calls of the process, and are timed. Calls with a seed go by no clock, neither their
    own nor that which a table was measured by: a seed repeats them whatever was measured in between. Processes that
    share a target have clocks of their own, and all go by the first one's table: the caller's or the rule of thumb.

    Args:
        request ([`Request`]): What is to be generated.
        peers ([`Peers`]): Other processes.

    Attributes:
        table ([`StepCost`]): The table.
        base ([`StepCost`]): The same before rounds of earlier calls corrected it.
        source (`str` or `None`): `"given"`, `"measured"` or `"rule of thumb"`; None where no cost is asked for.

    Raises:
        `ValueError`: If the caller's table was measured elsewhere.
    """

    def __init__(self, request: Request, peers: Peers):
        speculation, options = request.speculation, request.speculation.scheduler
        self.table = self.base = StepCost.rule_of_thumb(request.device, request.model.dtype)
        self.log: CostLog | None = None
        # Lookup alone has no drafter to be measured with, and some policies ask for no cost.
        is_priced = request.has_draft_model and options.policy in ("auto", "lagged", "early_stop")
        self.source = "rule of thumb" if is_priced else None
        if options.step_cost is not None:
            self.source = "given" if is_priced else None
            if is_priced and options.step_cost.made_for:
                check_cost(options.step_cost, circumstances(request.model, request.drafter))
            self.table = self.base = options.step_cost
        elif is_priced and speculation.seed is None and not peers.are_there:
            made_for = circumstances(request.model, request.drafter)
            if (kept := kept_cost(made_for)) is not None:
                self.source, self.base = "measured", kept
            self.table = self.base
            # Static rounds draft and verify in one go, and take other times than the rounds of a table.
            # Other lengths are other draws: what a sampled call did would never come again.
            if options.policy == "auto" and not request.generation_config.do_sample and not request.is_static:
                self.log = CostLog.of(made_for, self.base)
                self.table = self.log.corrected(self.base)
        self.table = peers.first(self.table)

    def wants_plain(self, num_left: list[int]) -> bool:
        """Whether the next round should be a plain step, so that it is known what one takes.

        Args:
            num_left (`list[int]`): Tokens that each row may still get.
        """
        return self.log is not None and self.log.wants_plain(len(num_left), max(num_left))

    def note(
        self, num_rows: int, num_tokens: int, context_len: int, started: float, drafted_at: float, judged_at: float
    ) -> None:
        """Note a round for later calls.

        Args:
            num_rows, num_tokens, context_len (`int`): Rows, tokens of the pass, and tokens before it.
            started, drafted_at, judged_at (`float`): When the round began, its drafts were there, and its verdict.
                The first two are the same where nothing was drafted.
        """
        if self.log is not None:
            draft = drafted_at - started if drafted_at > started else None
            self.log.note(self.base, num_rows, num_tokens, context_len, judged_at - drafted_at, draft)
