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

# What a recipe calls them. In this order a checkpoint in the flat layout is asked whose it is.
ALGORITHMS: dict[str, type[DraftModel]] = {"dspark": DSparkModel, "dflash": DFlashModel, "eagle3": Eagle3Model}

__all__ = [
    "ALGORITHMS",
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
