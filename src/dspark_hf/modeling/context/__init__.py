"""Context keys and values: what stands before the anchor, seen by draft layers as a cache.

A stock decoder layer calls `cache.update(k, v, layer_idx)` and attends to what it returns. Returning
context and block together, without a causal mask, makes it a DSpark layer.
"""

from .fixed import FixedLayerState, FixedState
from .growing import DraftState, TrainingContext
from .pairs import Eagle3State

__all__ = ["DraftState", "Eagle3State", "FixedLayerState", "FixedState", "TrainingContext"]
