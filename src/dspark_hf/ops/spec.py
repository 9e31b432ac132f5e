"""What tests, the self-check, the bench and the docs know of a kernel: one `SPEC` in each `ops/<op>/cases.py`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Least(NamedTuple):
    """What a case takes at least.

    Attributes:
        num_bytes (`int`): Each input that the result depends on read once, each result written once.
        num_flops (`int`): Multiplications and additions, where they count beside the bytes; else 0.
    """

    num_bytes: int
    num_flops: int = 0


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether all rows of a `tensor` `(..., n)` begin and end at multiples of 16, so that many entries go at once."""
    numbers = (tensor.data_ptr(), tensor.shape[-1], *tensor.stride()[:-1])
    return tensor.stride(-1) == 1 and all(number % 16 == 0 for number in numbers)


@dataclass(frozen=True)
class KernelSpec:
    """A kernel's cases, and what is done with one.

    Attributes:
        name (`str`): The op's folder.
        cases (`Mapping[str, Any]`): The table of cases, whatever a case is to this op.
        short (`tuple[str, ...]`): Those of the default tests; the others are slow in the interpreter.
        self_check (`str`): The small one that is tried at the first use on a device.
        benched (`tuple[str, ...]`): Those that are timed: shapes as they are served.
        compare (`Callable`): `compare(case, device)` runs the kernel against the reference and returns in words how
            they differ, or None. It draws from no generator but its own.
        ways (`Callable`): `ways(case, device)` returns `{"torch": f, "triton": f}` on the same inputs, to be timed.
        least (`Callable`): `least(case)` returns the [`Least`] that a case takes.
        counted (`tuple[str, ...]`): Those whose bytes are counted in the interpreter; those that are timed, if empty.
    """

    name: str
    cases: Mapping[str, Any]
    short: tuple[str, ...]
    self_check: str
    benched: tuple[str, ...]
    compare: Callable[[Any, torch.device], str | None]
    ways: Callable[[Any, torch.device], dict[str, Callable[[], Any]]]
    least: Callable[[Any], Least]
    counted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Configuration:
    """One form of a kernel that dispatch can choose, as the compiler is asked for it ahead of time.

    Attributes:
        name (`str`): How tables call it.
        function (`Any`): The `triton.jit` function.
        signature (`Mapping[str, str]`): Type of each argument (`*bf16`, `i32`, `constexpr`).
        constants (`Mapping[str, Any]`): Values of the `constexpr` arguments.
        num_warps (`int`): Warps of a program.
        aligned (`tuple[str, ...]`): Arguments that are divisible by 16 in such a launch.
        num_stages (`int`): Stages of software pipelining.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    aligned: tuple[str, ...] = ()
    num_stages: int = 3

    @classmethod
    def of(
        cls,
        name: str,
        function: Any,
        types: Mapping[str, str],
        constants: Mapping[str, Any],
        num_warps: int,
        aligned: tuple[str, ...] = (),
        num_stages: int = 3,
    ) -> "Configuration":
        """One form of a kernel, whose signature is picked out of `types` by the names of its arguments.

        Args:
            name (`str`): What the form is called.
            function (`Any`): The kernel.
            types (`Mapping[str, str]`): triton's type of each argument, also of other kernels'.
            constants (`Mapping[str, Any]`): Its arguments that are known when it is compiled.
            num_warps (`int`): Warps of a program.
            aligned (`tuple[str, ...]`, *optional*): Arguments that are divisible by 16 in such a launch.
            num_stages (`int`, *optional*, defaults to 3): Stages of a pipelined loop.
        """
        signature = {name: "constexpr" if name in constants else types[name] for name in function.arg_names}
        return cls(name, function, signature, constants, num_warps, aligned, num_stages)
