"""Batches for drafter training: padding, and the anchors at which blocks are drafted."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Of a row; the first two are required.
COLUMNS = ("input_ids", "loss_mask", "features", "last_hidden_states", "log_norm", "stream_epoch")


def anchor_places(loss_mask: Tensor) -> Tensor:
    """Where anchors can be: behind a context, where the token and the next one are supervised.

    Args:
        loss_mask (`torch.BoolTensor` of shape `(sequence,)`): Which tokens are supervised.

    Returns:
        `torch.LongTensor` of shape `(places,)`: Ascending positions.
    """
    places = torch.nonzero(loss_mask[:-1] & loss_mask[1:]).squeeze(-1)
    return places[places > 0]


def has_anchors(loss_mask: Sequence[bool] | Tensor) -> bool:
    """Whether there is something to learn from a row with this `loss_mask` `(sequence,)`."""
    return len(anchor_places(torch.as_tensor(loss_mask).bool())) > 0


@dataclass
class DraftCollator:
    """Pads sequences on the right and samples anchors (paper, section 3.4).

    Anchors depend on `seed`, `epoch` and the sequence's own tokens alone: not on the batch, the process or how often
    the collator was called. A resumed run, and one split over more processes, therefore sees the same blocks.

    Args:
        num_anchors (`int`): At most so many anchors per sequence.
        seed (`int`, *optional*, defaults to 0): Seed of the anchors.
        epoch (`int`, *optional*, defaults to 0): Changes the anchors from epoch to epoch.
    """

    num_anchors: int
    seed: int = 0
    epoch: InitVar[int] = 0

    def __post_init__(self, epoch: int):
        # In shared memory: a data loader's persistent workers have a copy of the collator, made in their first epoch.
        self._epoch = torch.tensor(epoch).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose other anchors, those of this `epoch`, in every process that has this collator."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate rows of `input_ids` and `loss_mask`, with or without `features`, `last_hidden_states`, `log_norm`.

        Returns:
            `dict` with `input_ids`, `attention_mask` (int64), `loss_mask` (bool), all `(batch, sequence)`; `anchors`
            (int64) and `anchor_mask` (bool), `(batch, anchors)`, of one masked anchor where no row has any; and the
            states, `(batch, sequence, width)`, if given.

        Raises:
            `ValueError`: If a row lacks a field or its fields differ in length.
        """
        input_ids, loss_masks = [], []
        for row in rows:
            if "input_ids" not in row or "loss_mask" not in row:
                raise ValueError(
                    f"A training row needs input_ids and loss_mask, got {sorted(row)}; encode conversations with "
                    "dspark_hf.data.chat first, or give the trainer a tokenizer as processing_class."
                )
            ids = torch.as_tensor(row["input_ids"], dtype=torch.int64)
            mask = torch.as_tensor(row["loss_mask"]).bool()
            if len(ids) != len(mask):
                raise ValueError(
                    f"A row has {len(ids)} input_ids but {len(mask)} loss_mask entries; give one per token."
                )
            input_ids.append(ids)
            loss_masks.append(mask)
        # Rows of a stream know which pass they belong to.
        epochs = [row.get("stream_epoch") for row in rows]
        anchors = [self.sample_anchors(*row) for row in zip(input_ids, loss_masks, epochs, strict=True)]
        masks = [torch.ones_like(row).bool() for row in anchors]
        if not any(map(len, anchors)):
            # One block that does not count: the step is made like any other, beside processes that have blocks.
            anchors, masks = ([row.new_zeros(1) for row in part] for part in (anchors, masks))
        batch = {
            "input_ids": pad_sequence(input_ids, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in input_ids], batch_first=True),
            "loss_mask": pad_sequence(loss_masks, batch_first=True),
            "anchors": pad_sequence(anchors, batch_first=True),
            "anchor_mask": pad_sequence(masks, batch_first=True),
        }
        for name in ("features", "last_hidden_states", "log_norm"):
            if name in rows[0]:
                batch[name] = pad_sequence([row[name] for row in rows], batch_first=True)
        return batch

    def sample_anchors(self, input_ids: Tensor, loss_mask: Tensor, epoch: int | None = None) -> Tensor:
        """Up to `num_anchors` ascending positions where the token and the next one are both supervised.

        Args:
            input_ids (`torch.LongTensor` of shape `(sequence,)`): The row's tokens; they decide the draw, with seed
                and epoch.
            loss_mask (`torch.BoolTensor` of shape `(sequence,)`): Which of them are supervised.
            epoch (`int`, *optional*): As of which epoch; that of [`DraftCollator.set_epoch`], if not given.

        Returns:
            `torch.LongTensor` of shape `(anchors,)`; a row without any such position gets none.
        """
        candidates = anchor_places(loss_mask)
        if len(candidates) <= self.num_anchors:
            return candidates
        epoch = int(self._epoch) if epoch is None else epoch
        digest = zlib.crc32(input_ids.numpy().tobytes())
        chosen = np.random.default_rng([self.seed, epoch, digest]).choice(
            len(candidates), self.num_anchors, replace=False
        )
        return candidates[torch.from_numpy(np.sort(chosen))]
