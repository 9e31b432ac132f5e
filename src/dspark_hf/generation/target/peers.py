"""Processes that share a sharded target: a forward pass of one needs all of them."""

import torch


class Peers:
    """The other processes of a generation with `synced_gpus`; of any other generation, none.

    Args:
        is_synced (`bool`): Whether there are any.
        device (`torch.device`): Device to exchange a number on.
    """

    def __init__(self, is_synced: bool, device: torch.device):
        self.is_synced = is_synced
        self._device = device

    def go_on(self, is_over: bool) -> bool:
        """Whether anyone still generates. All processes must ask at the same time."""
        if not self.is_synced:
            return not is_over
        num_left = torch.tensor(0.0 if is_over else 1.0, device=self._device)
        torch.distributed.all_reduce(num_left)
        return num_left.item() > 0
