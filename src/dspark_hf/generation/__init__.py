"""Speculative generation: the seam into `generate()`, the decoding loop, its options and statistics.

Names are imported when they are first used, because `seam` must be importable without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach import attach_drafter, detach_drafter
    from .config import SpeculationConfig
    from .drafts.candidate_generator import DraftCandidateGenerator
    from .entry import speculative_generate
    from .lengths.calibration import Calibration
    from .lengths.estimator import AcceptanceEstimator
    from .lengths.scheduler import PrefixScheduler
    from .lengths.step_cost import StepCost
    from .prompt_lookup import PromptLookup
    from .stats import SpeculationStats

__all__ = [
    "AcceptanceEstimator",
    "Calibration",
    "DraftCandidateGenerator",
    "PrefixScheduler",
    "PromptLookup",
    "SpeculationConfig",
    "SpeculationStats",
    "StepCost",
    "attach_drafter",
    "detach_drafter",
    "speculative_generate",
]

_HOMES = {
    "AcceptanceEstimator": "lengths.estimator",
    "Calibration": "lengths.calibration",
    "DraftCandidateGenerator": "drafts.candidate_generator",
    "PrefixScheduler": "lengths.scheduler",
    "PromptLookup": "prompt_lookup",
    "SpeculationConfig": "config",
    "SpeculationStats": "stats",
    "StepCost": "lengths.step_cost",
    "attach_drafter": "attach",
    "detach_drafter": "attach",
    "speculative_generate": "entry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
