"""Which implementation of an op runs, torch's or the kernel: one rule, in one place.

`DSPARK_HF_KERNELS=auto` (the default) takes the Triton kernel for CUDA tensors where Triton imports, or another
package's where an op knows one, and torch elsewhere; `torch` takes no kernel; `triton` takes ours everywhere, on a CPU
under `TRITON_INTERPRET=1`. A kernel is tried on one small case at its first use on a device, and does not run there if
it differs from its reference.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from types import ModuleType
from typing import NamedTuple

import torch

from .spec import KernelSpec

# Folders of ops/ that have a kernel.
KERNELS: tuple[str, ...] = ("distill_loss", "markov_block", "row_attention", "verify")

_VARIABLE = "DSPARK_HF_KERNELS"
_SETTINGS = ("auto", "torch", "triton")
# The oldest that the kernels are compiled for: bfloat16 starts there.
_OLDEST = (8, 0)


class Choice(NamedTuple):
    """What runs for an op on a device, `"torch"` or `"triton"`, and why."""

    runs: str
    why: str


def kernel_for(name: str, device: torch.device) -> ModuleType | None:
    """The module of an op's kernel where it is to run, None where torch is.

    Args:
        name (`str`): The op's folder.
        device (`torch.device`): Where its tensors lie.

    Returns:
        The module `ops/<op>/triton.py`, which says itself which cases it covers.

    Raises:
        `ValueError`: If `DSPARK_HF_KERNELS` is none of its values, or asks for a kernel that cannot run there.
    """
    if torch.compiler.is_compiling():
        # What is compiled is fused already.
        return None
    choice = _by_rule(device)
    if choice.runs == "torch":
        return None
    return _kernel(name) if failure(name, device) is None else None


def choose(name: str, device: torch.device) -> Choice:
    """What runs for an op, and why, in words; what is asked for and cannot run is told, not raised.

    Args:
        name (`str`): The op, as its folder is called.
        device (`torch.device`): Where its tensors are.
    """
    try:
        choice = _by_rule(device)
    except ValueError as error:
        return Choice("torch", str(error))
    if choice.runs == "torch":
        return choice
    why_not = failure(name, device)
    return choice if why_not is None else Choice("torch", why_not)


@functools.cache
def failure(name: str, device: torch.device) -> str | None:
    """Why a kernel does not run on a device, with a warning the first time; None where its self-check passes."""
    try:
        spec = spec_of(name)
        with torch.no_grad():
            differs = spec.compare(spec.cases[spec.self_check], device)
    except Exception as error:  # whatever a compiler, a driver or a card has to say
        differs = f"{type(error).__name__}: {error}"
    if differs is None:
        return None
    why = f"its self-check failed: {' '.join(differs.split())}"
    warnings.warn(f"The {name} kernel is off on {device}, torch runs instead; {why}", RuntimeWarning, stacklevel=2)
    return why


def allows_packages() -> bool:
    """Whether kernels of other packages may run in place of ours: not where `DSPARK_HF_KERNELS` names which run."""
    return os.environ.get(_VARIABLE, "auto") == "auto"


def spec_of(name: str) -> KernelSpec:
    """The cases of the kernel of the op of this `name`."""
    return importlib.import_module(f"dspark_hf.ops.{name}.cases").SPEC


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which is for tests; Triton reads the variable when imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _kernel(name: str) -> ModuleType:
    return importlib.import_module(f"dspark_hf.ops.{name}.triton")


def _by_rule(device: torch.device) -> Choice:
    setting = os.environ.get(_VARIABLE, "auto")
    if setting not in _SETTINGS:
        raise ValueError(f"{_VARIABLE} must be one of {', '.join(_SETTINGS)}, got {setting!r}.")
    if setting == "torch":
        return Choice("torch", f"{_VARIABLE}=torch")
    why_not = _obstacle(device)
    if setting == "auto":
        if why_not is None and is_interpreted():
            why_not = f"TRITON_INTERPRET=1 is for tests; {_VARIABLE}=triton runs kernels in the interpreter"
        return Choice("triton", f"on {device}") if why_not is None else Choice("torch", why_not)
    if why_not is not None:
        raise ValueError(
            f"{_VARIABLE}=triton asks for kernels on {device}, where they cannot run: {why_not}. Leave it out, or set "
            "it to auto."
        )
    return Choice("triton", f"{_VARIABLE}=triton" + (", in the interpreter" if is_interpreted() else ""))


def _obstacle(device: torch.device) -> str | None:
    if not has_triton():
        return "Triton is not installed (pip install triton, on Linux)"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _OLDEST or is_interpreted():
            return None
        needed, has = (".".join(map(str, pair)) for pair in (_OLDEST, capability))
        return f"kernels need compute capability {needed}, {device} has {has}"
    return None if is_interpreted() else f"tensors are on {device.type}, not on a CUDA device"


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None
