"""The drafter that DeepSeek-V4's released checkpoints carry inside, as stages named `mtp.*`."""

from .layout import flat_fields, has_stages, refuse_relatives, tells_of_stages
from .loading import as_plain, check_memory, stages_alone

__all__ = [
    "as_plain",
    "check_memory",
    "flat_fields",
    "has_stages",
    "refuse_relatives",
    "stages_alone",
    "tells_of_stages",
]
