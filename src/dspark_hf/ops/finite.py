"""Whether numbers are numbers."""

import torch
from torch import Tensor


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Whether no value of a `tensor` of any shape and dtype is infinite or NaN; one read from its device."""
    if not tensor.is_floating_point():
        return True
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    # A sum shows either at a fraction of the cost; it alone may also overflow.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())
