"""The same target in other dtypes, made when asked for."""

import copy
from typing import Any

import torch


class PrecisionCopies:
    """Holds copies of a target in other dtypes; the target itself is never cast.

    Args:
        target (`PreTrainedModel`): The model; asking for its own dtype returns it.
    """

    def __init__(self, target: Any) -> None:
        self._models = {target.dtype: target}
        self._target = target

    def get(self, dtype: torch.dtype) -> Any:
        """Return the target in `dtype`, copying it on the first request."""
        if dtype not in self._models:
            self._models[dtype] = copy.deepcopy(self._target).to(dtype)
        return self._models[dtype]
