"""Processes that share a target.

They may hold parts of its weights and run rows of their own (FSDP, ZeRO-3): a forward pass of one needs all of them.
Or they hold parts of every product and run the same rows (tensor parallelism): then they must also decide alike.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel


class Peers:
    """The other processes of a generation; most have none.

    Args:
        model (`PreTrainedModel`): The target.
        is_synced (`bool`): Whether there are processes with rows of their own (`synced_gpus`).
        device (`torch.device`): Device to exchange a number on.
    """

    def __init__(self, model: PreTrainedModel, is_synced: bool, device: torch.device):
        self.is_synced = is_synced
        self._device = device
        self._group = _tensor_parallel_group(model)

    @property
    def decide_alike(self) -> bool:
        """Whether other processes run the same rows."""
        return self._group is not None

    @property
    def are_there(self) -> bool:
        """Whether there are other processes."""
        return self.is_synced or self.decide_alike

    def first(self, value: Any) -> Any:
        """What the first process has given; `value` itself where there are no others.

        Args:
            value: Anything that pickles. All processes must ask at the same time.
        """
        if not self.are_there:
            return value
        values = [value]
        source = 0 if self._group is None else torch.distributed.get_global_rank(self._group, 0)
        torch.distributed.broadcast_object_list(values, source, self._group, self._device)
        return values[0]

    def go_on(self, is_over: bool) -> bool:
        """Whether anyone still generates. All processes must ask at the same time.

        Args:
            is_over (`bool`): Whether this one does not.
        """
        if not self.is_synced:
            return not is_over
        num_left = torch.tensor(0.0 if is_over else 1.0, device=self._device)
        torch.distributed.all_reduce(num_left)
        return num_left.item() > 0

    def agree(self, values: Tensor) -> Tensor:
        """What the first of the processes that run the same rows has computed; without such, what was given.

        Draws differ where generators were seeded differently, and a logit may where processors do.

        Args:
            values (`torch.Tensor` of any shape): What this process has computed.
        """
        if self._group is not None:
            values = values.contiguous()
            torch.distributed.broadcast(values, torch.distributed.get_global_rank(self._group, 0), self._group)
        return values

    def agree_on_drafts(self, ids: Tensor, lens: list[int]) -> tuple[Tensor, list[int]]:
        """The first process's drafts and how many each row is offered.

        Args:
            ids (`torch.LongTensor` of shape `(rows, n)`): This process's.
            lens (`list[int]`): How many of each row are offered here.

        Returns:
            `tuple[torch.LongTensor, list[int]]`: The same of the first one.
        """
        if self._group is None:
            return ids, lens
        lens = self.agree(torch.tensor(lens, device=ids.device)).tolist()
        # A length may rest on a survival that was rounded otherwise here.
        drafts = ids.new_zeros(ids.shape[0], max(lens))
        num_known = min(ids.shape[1], max(lens))
        drafts[:, :num_known] = ids[:, :num_known]
        return self.agree(drafts), lens


def _tensor_parallel_group(model: Any) -> ProcessGroup | None:
    mesh = getattr(model, "_device_mesh", None)
    if mesh is None or (getattr(model, "tp_size", None) or 1) < 2:
        return None
    return (mesh["tp"] if "tp" in (mesh.mesh_dim_names or ()) else mesh).get_group()
