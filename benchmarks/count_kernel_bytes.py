"""Bytes that kernels load and store, counted in Triton's interpreter, and what torch's operations move for the same.

TRITON_INTERPRET=1 python benchmarks/count_kernel_bytes.py [--kernel verify]     JSON lines, one a case

Accesses that a mask leaves out are not counted; what is read twice counts twice. Of torch's operations the tensors
that go in and come out count; of those that pick elements, what is picked; views move nothing. The least is each input
that counts read once and each result written once.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpreterBuilder

from dspark_hf.ops.dispatch import KERNELS, is_interpreted, spec_of

CPU = torch.device("cpu")
# They read of their first tensor no more than they write, or that many places of it.
PICKS = ("gather", "index", "index_select", "embedding", "select_scatter", "scatter_add_", "scatter_", "scatter")
CREATES = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


@contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes that kernels move inside, as the one number of a list."""
    total, names = [0], ("create_masked_load", "create_masked_store", "create_atomic_rmw")
    before = {name: getattr(InterpreterBuilder, name) for name in names}

    def wrapped(name: str, mask_at: int, times: int) -> Any:
        def access(self: Any, *args: Any) -> Any:
            pointers = args[1 if name == "create_atomic_rmw" else 0]
            total[0] += times * int(args[mask_at].data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return before[name](self, *args)

        return access

    InterpreterBuilder.create_masked_load = wrapped("create_masked_load", 1, 1)
    InterpreterBuilder.create_masked_store = wrapped("create_masked_store", 2, 1)
    InterpreterBuilder.create_atomic_rmw = wrapped("create_atomic_rmw", 3, 2)
    try:
        yield total
    finally:
        for name, method in before.items():
            setattr(InterpreterBuilder, name, method)


class TorchTraffic(TorchDispatchMode):
    """Adds up what torch's operations read and write, each from and to memory."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().split("::")[1].split(".")[0]
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if func.is_view or name in CREATES or name.startswith("_assert") or name == "lift_fresh":
            return out
        if name.rstrip("_") in {pick.rstrip("_") for pick in PICKS} and given:
            written = made if name.endswith("gather") or not name.startswith("scatter") else given[1:]
            self.num_bytes += sum(map(size, given[1:])) + 2 * sum(map(size, written))
        else:
            self.num_bytes += sum(map(size, given)) + sum(map(size, made))
        return out


def size(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; of one that is expanded, those that exist."""
    numbers = [length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
    return int(torch.tensor(numbers).prod()) * tensor.element_size() if tensor.numel() else 0


def count(name: str, title: str) -> dict[str, Any]:
    """Bytes of a case: `kernel`, `torch` and `least`, with the arithmetic that it takes."""
    spec = spec_of(name)
    case = spec.cases[title]
    ways, least = spec.ways(case, CPU), spec.least(case)
    with counted() as total:
        ways["triton"]()
    with TorchTraffic() as traffic:
        ways["torch"]()
    found = {"kernel": name, "case": title, "what": case.__repr__().replace("torch.", "")}
    moved = {"moved": total[0], "least": least.num_bytes, "torch": traffic.num_bytes, "flops": least.num_flops}
    return {**found, **moved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=KERNELS, help="Only this one.")
    parser.add_argument("--case", help="Only this case.")
    arguments = parser.parse_args()
    if not is_interpreted():
        sys.exit("Bytes are counted in the interpreter: set TRITON_INTERPRET=1 before this starts.")
    warnings.simplefilter("ignore", RuntimeWarning)
    for name in KERNELS if arguments.kernel is None else (arguments.kernel,):
        spec = spec_of(name)
        for title in [one for one in spec.counted or spec.benched if arguments.case in (None, one)]:
            print(json.dumps(count(name, title)), flush=True)


if __name__ == "__main__":
    main()
