"""The frozen target's hidden states on disk, so that training need not run the target."""

from .build import build_target_cache
from .dataset import TargetCache
from .estimate import CacheEstimate, cache_bytes_per_token, estimate_target_cache
from .rolling import RollingFeatures

__all__ = [
    "CacheEstimate",
    "RollingFeatures",
    "TargetCache",
    "build_target_cache",
    "cache_bytes_per_token",
    "estimate_target_cache",
]
