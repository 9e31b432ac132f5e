"""The most memory that a piece of work took."""

import re
from pathlib import Path

import torch

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Watches from its making to [`read`]: the device's memory on a GPU, else that of this process.

    A process's memory holds everything loaded, and what its allocator keeps for later.

    Args:
        device (`torch.device`): Where the work is done.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._can_read = device.type == "cuda"
        if self._can_read:
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            # On Linux this lets the peak begin anew.
            _RESET.write_text("5", encoding="ascii")
            self._can_read = True
        except OSError:
            pass

    def read(self) -> int | None:
        """Bytes at the peak; `None` where the system does not tell."""
        if not self._can_read:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
        return None if peak is None else int(peak[1]) * 1024
