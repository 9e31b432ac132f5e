"""Drafters as transformers models."""

import dspark_hf

from .configuration.drafter import DraftConfig
from .configuration.dspark import DFlashConfig, DSparkConfig
from .configuration.eagle3 import Eagle3Config
from .context import DraftState
from .drafter import DraftModel
from .drafting import BlockOutput, LossWeights, Proposal
from .dspark import DFlashModel, DSparkModel
from .eagle3 import Eagle3Model

__all__ = [
    "BlockOutput",
    "DFlashConfig",
    "DFlashModel",
    "DSparkConfig",
    "DSparkModel",
    "DraftConfig",
    "DraftModel",
    "DraftState",
    "Eagle3Config",
    "Eagle3Model",
    "LossWeights",
    "Proposal",
]

# Whoever has a drafter passes it to generate(), wherever it was imported from.
dspark_hf.install_seam()
