"""Where a module computes, and its weights where accelerate keeps them elsewhere until then."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def compute_device(module: nn.Module) -> torch.device:
    """The device on which a `module` with a `weight` computes; offloaded weights lie on the meta device till then."""
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return module.weight.device


def compute_dtype(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype in which a `module` with a `weight` takes its input; the `default`, if its weight is packed."""
    dtype = module.weight.dtype
    return dtype if dtype.is_floating_point and dtype.itemsize > 1 else default


@contextmanager
def loaded(module: nn.Module) -> Iterator[nn.Module]:
    """Have a `module`'s own weights in memory, if they are offloaded."""
    if module.weight.device.type != "meta" or not hasattr(module, "_hf_hook"):
        yield module
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield module
