"""DSpark speculative decoding for transformers.

Importing this package is light: a name is imported when it is first used. Importing is also all that
`model.generate(..., assistant_model=drafter)` needs: the seam into transformers is installed here.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspark_hf.data.cache import TargetCache, build_target_cache
    from dspark_hf.generation import (
        AcceptanceEstimator,
        Calibration,
        DraftCandidateGenerator,
        PrefixScheduler,
        PromptLookup,
        SpeculationConfig,
        SpeculationStats,
        StepCost,
        attach_drafter,
        detach_drafter,
    )
    from dspark_hf.hub.composite import DSparkForCausalLM
    from dspark_hf.hub.load import AutoDrafter
    from dspark_hf.modeling import (
        DFlashConfig,
        DFlashModel,
        DSparkConfig,
        DSparkModel,
        Eagle3Config,
        Eagle3Model,
    )
    from dspark_hf.trainers import DraftTrainer, DraftTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "AcceptanceEstimator",
    "AutoDrafter",
    "Calibration",
    "DFlashConfig",
    "DFlashModel",
    "DSparkConfig",
    "DSparkForCausalLM",
    "DSparkModel",
    "DraftCandidateGenerator",
    "DraftTrainer",
    "DraftTrainingArguments",
    "Eagle3Config",
    "Eagle3Model",
    "PrefixScheduler",
    "PromptLookup",
    "SpeculationConfig",
    "SpeculationStats",
    "StepCost",
    "TargetCache",
    "attach_drafter",
    "build_target_cache",
    "detach_drafter",
]

_HOMES = {
    "AcceptanceEstimator": "dspark_hf.generation",
    "AutoDrafter": "dspark_hf.hub.load",
    "Calibration": "dspark_hf.generation",
    "DFlashConfig": "dspark_hf.modeling",
    "DFlashModel": "dspark_hf.modeling",
    "DSparkConfig": "dspark_hf.modeling",
    "DSparkForCausalLM": "dspark_hf.hub.composite",
    "DSparkModel": "dspark_hf.modeling",
    "DraftCandidateGenerator": "dspark_hf.generation",
    "DraftTrainer": "dspark_hf.trainers",
    "DraftTrainingArguments": "dspark_hf.trainers",
    "Eagle3Config": "dspark_hf.modeling",
    "Eagle3Model": "dspark_hf.modeling",
    "PrefixScheduler": "dspark_hf.generation",
    "PromptLookup": "dspark_hf.generation",
    "SpeculationConfig": "dspark_hf.generation",
    "SpeculationStats": "dspark_hf.generation",
    "StepCost": "dspark_hf.generation",
    "TargetCache": "dspark_hf.data.cache",
    "attach_drafter": "dspark_hf.generation",
    "build_target_cache": "dspark_hf.data.cache",
    "detach_drafter": "dspark_hf.generation",
}


def install_seam() -> None:
    """Teach transformers' `generate()` and continuous batching about drafters; whoever needs it first does so."""
    from dspark_hf.generation import seam
    from dspark_hf.serving import seam as batching

    seam.install()
    batching.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    install_seam()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Where transformers' generation is loaded already, the seam costs nothing now; otherwise it waits for the first name,
# or for the module that has the drafters.
if "transformers.generation.utils" in sys.modules:
    install_seam()
