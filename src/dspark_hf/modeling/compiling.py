"""`torch.compile` while decoding: code that is kept for each model, and for each shape of a round."""

from collections.abc import Callable, Hashable
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from torch import nn

_kept: "WeakKeyDictionary[nn.Module, dict[Hashable, Callable]]" = WeakKeyDictionary()


def compiled(function: Callable, model: nn.Module, shape: Hashable = None) -> Callable:
    """`function` through `torch.compile`; the same for every later call with this model and shape.

    torch keeps compiled code with a function's code object, and gives up where one has too many variants. A code
    object for each model and shape keeps them from using up each other's, and lets go of the compiled code with the
    model. Sizes are not left open.

    Args:
        function (`Callable`): A function of a module, without closure.
        model (`nn.Module`): Whose code it is.
        shape (`Hashable`, *optional*): Shapes that it is made for.
    """
    functions = _kept.setdefault(model, {})
    if (function, shape) not in functions:
        own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        functions[function, shape] = torch.compile(own, dynamic=False)
    return functions[function, shape]


def is_compiled(module: nn.Module) -> bool:
    """Whether a module itself runs compiled: by `module.compile()`, or `module.forward = torch.compile(...)`."""
    forward = vars(module).get("forward")
    return module._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable")
