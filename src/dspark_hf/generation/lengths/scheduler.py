"""How many drafts are verified: the options of it."""

from dataclasses import dataclass
from typing import Literal, get_args

from dspark_hf.messages import shown

from .calibration import Calibration
from .step_cost import StepCost

Policy = Literal["auto", "lagged", "early_stop", "threshold", "fixed"]


@dataclass(frozen=True)
class PrefixScheduler:
    """Decides how many slots are picked, and how many of each row's drafts are verified: `SpeculationConfig(policy=)`.

    Whatever it decides changes time only: whether a slot is verified depends on the tokens before it and on earlier
    rounds, never on the slot's own token.

    Args:
        policy (`str`, *optional*, defaults to `"auto"`):
            `"auto"` weighs what drafts are expected to win against what they cost on this machine, drafts nothing
            where that does not pay, and tries again now and then. The others are simpler rules, to compare with:
            `"early_stop"` takes drafts while tokens per second grow and stops where they fall for the first time (the
            paper's Algorithm 1); `"lagged"` gives out the best number of drafts by the survival of two rounds before
            (its asynchronous form); `"threshold"` verifies the slots whose survival reaches `threshold`; `"fixed"`
            verifies all slots.
        threshold (`float`, *optional*, defaults to 0.0): Of `"threshold"`.
        min_gain (`float`, *optional*, defaults to 0.03): How much faster than plain steps drafting must be expected to
            be before it begins, and how much better another budget before it is changed to.
        probe_interval (`int`, *optional*, defaults to 64): Rounds from one try to the next, of drafting where it does
            not pay and of whole blocks where they are cut; where drafting had won before, the first tries come sooner.
        step_cost ([`StepCost`], *optional*): What passes take. By default what was measured for these models on this
            machine (`dspark profile`), else a rule of thumb.
        calibration ([`Calibration`], *optional*): Of the drafter's confidence head; by default the drafter's own
            `calibration.json`, if it was loaded with one.

    Raises:
        `ValueError`: If a value is out of range or of the wrong type.
    """

    policy: Policy = "auto"
    threshold: float = 0.0
    min_gain: float = 0.03
    probe_interval: int = 64
    step_cost: StepCost | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ValueError(
                f"policy must be one of {', '.join(get_args(Policy))}, or a PrefixScheduler with options of its own, "
                f"got {shown(self.policy)}."
            )
        for name, least, most in (("threshold", 0.0, 1.0), ("min_gain", 0.0, 10.0)):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (is_number and least <= value < most):
                raise ValueError(
                    f"{name} must be a number from {least:g} up to but not including {most:g}, got {value!r}."
                )
        interval = self.probe_interval
        if not (isinstance(interval, int) and not isinstance(interval, bool) and interval >= 1):
            raise ValueError(f"probe_interval must be a positive int, got {interval!r}.")
        for name, kind, reader in (
            ("step_cost", StepCost, "dspark_hf.generation.lengths.cost_files.load_cost"),
            ("calibration", Calibration, "Calibration.load"),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(
                    f"{name} must be a {kind.__name__}, or None, got {shown(value)}. `{reader}` reads a file."
                )
        if self.policy == "threshold" and self.threshold == 0:
            raise ValueError(
                'policy="threshold" needs a threshold above 0: PrefixScheduler("threshold", threshold=0.3), or '
                'SpeculationConfig(confidence_threshold=0.3); "fixed" verifies every slot.'
            )
