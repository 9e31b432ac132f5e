"""Drafters as transformers models."""

from .borrowing import check_fit
from .configuration import DSparkConfig
from .context import DraftState
from .drafting import BlockOutput, Proposal
from .dspark import DSparkModel

__all__ = ["BlockOutput", "DSparkConfig", "DSparkModel", "DraftState", "Proposal", "check_fit"]
