"""Kernels beside the torch operations that they replace: right first, then how fast."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .spec import KernelSpec

_WARM_UPS, _RUNS = 5, 30
# Written between two runs, so that none finds its inputs in a cache: more than any GPU's L2.
_FLUSHED_BYTES = 256 * 2**20


class Measured(NamedTuple):
    """What came out of a case.

    Attributes:
        differs (`str`, *optional*): How the kernel differs from its reference; nothing is timed then.
        seconds (`dict[str, float]`): Median time of each way, `"torch"` and `"triton"`; empty where nothing is timed.
        num_bytes (`int`): What the case must move at least.
    """

    differs: str | None
    seconds: dict[str, float]
    num_bytes: int


def measure(spec: KernelSpec, case: str, device: torch.device) -> Measured:
    """Compare a kernel with its reference and, where they agree on a GPU, time both.

    Args:
        spec ([`KernelSpec`]): The kernel's.
        case (`str`): A name of its table.
        device (`torch.device`): Where to; on a CPU nothing is timed.

    Returns:
        [`Measured`].
    """
    chosen = spec.cases[case]
    differs, seconds = spec.compare(chosen, device), {}
    if differs is None and device.type == "cuda":
        seconds = {name: _median_seconds(way, device) for name, way in spec.ways(chosen, device).items()}
    return Measured(differs, seconds, spec.least(chosen).num_bytes)


def _median_seconds(way: Callable[[], Any], device: torch.device) -> float:
    for _ in range(_WARM_UPS):
        way()
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=device)
    times = []
    for _ in range(_RUNS):
        flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way()
        end.record()
        torch.cuda.synchronize(device)
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times)[_RUNS // 2]
