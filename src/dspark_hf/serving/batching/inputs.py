"""What goes into the target in a step."""

from typing import Any

import torch
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.requests import FutureRequestState

from .scheduling import DraftScheduling


class DraftInputs(ContinuousBatchingIOs):
    """Asks for the logits of a request's last token and of all its drafts, and settles what stands."""

    scheduler: DraftScheduling

    def prepare_batch_tensors(self, requests_in_batch: list[FutureRequestState], *args: Any, **kwargs: Any) -> None:
        self.starts = [future.state.position_offset for future in requests_in_batch]
        super().prepare_batch_tensors(requests_in_batch, *args, **kwargs)
        self.begins, self.num_drafts, rows, end = [], [], [], 0
        for future in requests_in_batch:
            self.begins.append(end)
            end += future.query_length
            self.num_drafts.append(self.scheduler.verified.get(future.state.request_id, 0))
            if future.has_new_token:
                rows += range(end - 1 - self.num_drafts[-1], end)
        self.row_indices = torch.tensor(rows or [0], dtype=torch.int32, device=self.device)

    def get_model_kwargs(self, use_padding: bool = False) -> dict[str, Any]:
        kwargs = super().get_model_kwargs(use_padding)
        kwargs["logits_indices"] = self.row_indices
        return kwargs

    def prepare_batch_update(self) -> tuple[list[FutureRequestState], list[int], None]:
        """What a request takes but the last token has been settled; the last one goes the way of a single token."""
        return self.requests_in_batch, self.last_tokens, None
