"""How to speculate."""

from dataclasses import dataclass
from typing import Literal

from .lengths.scheduler import PrefixScheduler
from .prompt_lookup import PromptLookup


@dataclass
class SpeculationConfig:
    """Options of one `generate(..., assistant_model=drafter, speculation=SpeculationConfig(...))`.

    They change how long generation takes, never what it produces.

    Args:
        max_draft_len (`int`, *optional*):
            Most drafts that a round verifies of a row. Defaults to all slots of the drafter.
        policy (`str` or [`PrefixScheduler`], *optional*, defaults to `"auto"`):
            How many slots are picked and verified, and whether drafting pauses where it does not pay: the name of a
            [`PrefixScheduler`]'s policy, or one with options of its own. `"auto"` warns if next to nothing is
            accepted; `"fixed"` always drafts and verifies every slot.
        confidence_threshold (`float`, *optional*, defaults to 0.0):
            Above 0, the least survival (probability that a slot and all before it are accepted) of a slot that is
            verified: short for `PrefixScheduler("threshold", threshold=...)`.
        prompt_lookup ([`PromptLookup`] or `bool`, *optional*):
            Whether rows whose latest tokens occurred before are drafted what followed there, and only the others by
            the drafter. By default it is so in calls of at most 4 rows without static rounds, where it wins; `True`,
            which stands for `PromptLookup()`, asks for it everywhere and `False` nowhere. Without a drafter, lookup
            alone drafts where it is asked for, and this object's `prompt_lookup.last_stats` tell what happened.
        check_target (`bool`, *optional*, defaults to `True`):
            Whether a drafter that was made for another target is refused.
        compile (`bool`, *optional*, defaults to `False`):
            Whether rounds are static, as with `cache_implementation="static"`, and their decoder layers go through
            `torch.compile`, the target's and a DSpark or DFlash drafter's. The first round of each shape waits for
            it; later calls with the same models do not. Compiled code rounds differently, so where two logits lie
            within rounding of each other the tokens may swap.
        num_candidates (`int`, *optional*, defaults to 512):
            How many of the output head's best tokens a slot's draft is chosen among; the sequential head, temperature
            and processors then act on these alone. None for all of them, which costs a product with the whole
            vocabulary for each slot.
        verification (`str`, *optional*, defaults to `"block"`):
            How sampled drafts are judged: `"token"`, one after the other, or `"block"`, by what their prefix as a
            whole has left of its probability, which accepts as many or more. Greedy decoding knows no difference, and
            with processors of the caller's own drafts are judged one after the other.
        seed (`int`, *optional*):
            Seed of all drafting and verification draws. By default they come from torch's global generators. With a
            seed nothing that was measured decides on lengths, unless the policy brings its own `step_cost`, so calls
            repeat whatever was profiled in between.
        measure_time (`bool`, *optional*):
            Whether the stats tell the seconds spent in target and drafter. Defaults to True for targets on the CPU;
            elsewhere measuring waits for the device around every forward pass, so it is done only if asked for.
        record_drafts (`bool`, *optional*, defaults to `False`):
            Whether the stats keep the drafted tokens too (`SpeculationStats.draft_ids`), also those that did not
            stand.
        static (`bool` or `"auto"`, *optional*):
            Whether rounds have fixed shapes and stay on the device. By default only where
            `cache_implementation="static"` or `compile` asks for it. `"auto"` takes them where the target is on a CUDA
            device, rounds can be captured in CUDA graphs and their buffers take at most a quarter of the free memory,
            and other rounds elsewhere; `last_stats.why_ragged` then says why. `True` asks for them as
            `cache_implementation="static"` does, `False` turns them off whatever a generation config asks for.

    Raises:
        `ValueError`: If a value is out of range or of the wrong type.
    """

    max_draft_len: int | None = None
    policy: str | PrefixScheduler = "auto"
    confidence_threshold: float = 0.0
    prompt_lookup: PromptLookup | bool | None = None
    check_target: bool = True
    compile: bool = False
    num_candidates: int | None = 512
    verification: Literal["block", "token"] = "block"
    seed: int | None = None
    measure_time: bool | None = None
    record_drafts: bool = False
    static: Literal["auto"] | bool | None = None

    def __post_init__(self) -> None:
        if self.max_draft_len is not None and not (_is_int(self.max_draft_len) and self.max_draft_len >= 1):
            raise ValueError(
                f"max_draft_len must be a positive int, or None for all slots, got {self.max_draft_len!r}. To "
                "generate without drafts, leave the drafter out."
            )
        if self.num_candidates is not None and not (_is_int(self.num_candidates) and self.num_candidates >= 1):
            raise ValueError(
                f"num_candidates must be a positive int, or None for the whole vocabulary, got "
                f"{self.num_candidates!r}."
            )
        is_number = isinstance(self.confidence_threshold, (int, float)) and not isinstance(
            self.confidence_threshold, bool
        )
        if not (is_number and 0.0 <= self.confidence_threshold < 1.0):
            raise ValueError(
                f"confidence_threshold must be a number from 0 up to but not including 1, got "
                f"{self.confidence_threshold!r}; 0 verifies every slot."
            )
        if self.verification not in ("block", "token"):
            raise ValueError(f'verification must be "block" or "token", got {self.verification!r}.')
        if self.seed is not None and not (_is_int(self.seed) and 0 <= self.seed < 2**63):
            raise ValueError(f"seed must be an int from 0 to 2**63 - 1, or None, got {self.seed!r}.")
        if self.prompt_lookup is True:
            self.prompt_lookup = PromptLookup()
        if not (self.prompt_lookup in (None, False) or isinstance(self.prompt_lookup, PromptLookup)):
            raise ValueError(f"prompt_lookup must be a PromptLookup, True, False or None, got {self.prompt_lookup!r}.")
        for name, allowed in (
            ("check_target", (True, False)),
            ("static", ("auto", True, False, None)),
            ("compile", (True, False)),
            ("measure_time", (True, False, None)),
            ("record_drafts", (True, False)),
        ):
            got = getattr(self, name)
            if not any(got is value or (isinstance(got, str) and got == value) for value in allowed):
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}.")
        if self.compile and self.static is False:
            raise ValueError("compile=True compiles static rounds, and static=False turns them off: leave one out.")
        if self.confidence_threshold > 0 and self.policy not in ("auto", "threshold"):
            raise ValueError(
                f"confidence_threshold={self.confidence_threshold} verifies by a threshold, and "
                f"policy={self.policy!r} does not: leave one of the two out."
            )
        # Whatever it is, an unknown name is refused here.
        self.scheduler  # noqa: B018

    @property
    def scheduler(self) -> PrefixScheduler:
        """How many drafts are verified, with all options."""
        if isinstance(self.policy, PrefixScheduler):
            return self.policy
        if self.confidence_threshold > 0:
            return PrefixScheduler("threshold", threshold=self.confidence_threshold)
        return PrefixScheduler(self.policy)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
