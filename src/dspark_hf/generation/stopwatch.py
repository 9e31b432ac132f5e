"""Where the time of one `generate()` goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .stats import SpeculationStats


class Stopwatch:
    """Adds wall time to the `*_seconds` of a [`SpeculationStats`].

    Args:
        stats ([`SpeculationStats`]): Where to add.
        device (`torch.device`): Device to wait for around each measurement, unless it is the CPU.
        enabled (`bool`, *optional*): Whether parts are measured; the total always is. On the CPU only, if not given.
    """

    def __init__(self, stats: SpeculationStats, device: torch.device, enabled: bool | None = None):
        enabled = device.type == "cpu" if enabled is None else enabled
        self._stats, self._enabled = stats, enabled
        self._device = device if enabled and device.type == "cuda" else None
        self._started = time.perf_counter()
        if enabled:
            stats.prefill_seconds = stats.target_seconds = stats.drafter_seconds = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block of code as the part `name`: `"prefill"`, `"target"` or `"drafter"`."""
        if not self._enabled:
            yield
            return
        started = self._now()
        yield
        name = f"{name}_seconds"
        setattr(self._stats, name, getattr(self._stats, name) + self._now() - started)

    def stop(self) -> None:
        """Fix the total."""
        self._stats.total_seconds = self._now() - self._started

    def _now(self) -> float:
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
