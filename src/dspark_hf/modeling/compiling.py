"""`torch.compile` while decoding: code that is kept for each model, and takes whatever size a round has."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

_kept: "WeakKeyDictionary[nn.Module, dict[Callable, Callable]]" = WeakKeyDictionary()


def compiled(function: Callable, model: nn.Module) -> Callable:
    """`function` through `torch.compile`; the same for every later call with this model.

    torch keeps compiled code with a function's code object, and gives up where one has too many variants. A code
    object for each model keeps models from using up each other's, and lets go of the compiled code with the model.

    Args:
        function (`Callable`): A function of a module, without closure.
        model (`nn.Module`): Whose code it is.
    """
    functions = _kept.setdefault(model, {})
    if function not in functions:
        own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        functions[function] = torch.compile(own)
    return functions[function]


def is_compiled(module: nn.Module) -> bool:
    """Whether a module itself runs compiled: by `module.compile()`, or `module.forward = torch.compile(...)`."""
    forward = vars(module).get("forward")
    return module._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable")


def open_sizes() -> AbstractContextManager:
    """Calls of [`compiled`] functions in this block tell sizes apart that happen to be equal when code is made.

    Otherwise a batch of as many rows as a model has heads would be compiled for that number of rows alone.
    """
    return torch.fx.experimental._config.patch(use_duck_shape=False)


def mark_open(tensor: Tensor, *dims: int) -> None:
    """Let code that is compiled with a tensor take it with any size of some dimensions.

    Sizes of 1 stay what they are: torch makes code of its own for them in any case.

    Args:
        tensor (`torch.Tensor` of any shape): The tensor.
        dims (`int`): The dimensions; all, if none is named.
    """
    if getattr(tensor, "dspark_is_open", False):
        # Most tensors are seen by every layer, and marking takes longer than looking.
        return
    tensor.dspark_is_open = True
    for dim in dims or range(tensor.ndim):
        if tensor.shape[dim] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
