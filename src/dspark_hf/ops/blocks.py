"""The blocks of a training batch: what each slot should predict, which slots count, and what a block sees.

Shapes: B batch, S sequence, C context, A anchors, G block inputs, n slots.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LayerView(NamedTuple):
    """What the block inputs of a draft layer see.

    Attributes:
        window (`int`, *optional*): Tokens that an input sees, itself included, counted back from it; all, if None.
        is_causal (`bool`): Whether an input sees those before it in the block only, or the whole block.
        is_anchored (`bool`): Whether the window is counted back from the anchor, which is not included, so that all
            inputs of a block see the same context.
    """

    window: int | None = None
    is_causal: bool = False
    is_anchored: bool = False


FULL_VIEW = LayerView()


def block_targets(
    input_ids: Tensor, loss_mask: Tensor, anchors: Tensor, anchor_mask: Tensor, num_slots: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens each slot should predict, and the contiguous supervised prefix of every block (paper, section 3.4).

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, sequence)`): Token ids.
        loss_mask (`torch.BoolTensor` of shape `(batch, sequence)`): True where a token is supervised.
        anchors (`torch.LongTensor` of shape `(batch, anchors)`): Anchor positions.
        anchor_mask (`torch.BoolTensor` of shape `(batch, anchors)`): False for anchors that are padding.
        num_slots (`int`): Slots n of a block.

    Returns:
        `tuple` of three tensors of shape `(batch, anchors, slots)`: the token ids at positions anchor + 1 to
        anchor + n (int64), the positions whose target states predict them (int64), and which slots count (bool).
    """
    steps = torch.arange(1, num_slots + 1, device=anchors.device)
    positions = anchors.unsqueeze(-1) + steps  # [B, A, n]
    inside = positions < input_ids.shape[1]
    positions = positions.clamp_max(input_ids.shape[1] - 1)
    flat = positions.flatten(1)
    target_ids = input_ids.gather(1, flat).view_as(positions)
    supervised = loss_mask.bool().gather(1, flat).view_as(positions) & inside & anchor_mask.bool().unsqueeze(-1)
    block_mask = supervised.long().cumprod(-1).bool()
    return target_ids, (positions - 1).clamp_min(0), block_mask


def slot_weights(num_slots: int, decay: float, device: torch.device | None = None) -> Tensor:
    """How much slots weigh in the loss, `exp(-(k - 1) / decay)`: early ones decide more (paper, section 3.4).

    Args:
        num_slots (`int`): Slots, k = 1, 2, ...
        decay (`float`): Slots after which a weight is 1 / e of what it was.
        device (`torch.device`, *optional*): Where it is wanted.

    Returns:
        `torch.FloatTensor` of shape `(num_slots,)`.
    """
    return torch.exp(-torch.arange(num_slots, device=device, dtype=torch.float32) / decay)


def training_mask(
    anchors: Tensor, anchor_mask: Tensor, num_context: int, block_size: int, view: LayerView = FULL_VIEW
) -> Tensor:
    """What the blocks of a training batch see: the context before their anchor, and themselves.

    Args:
        anchors (`torch.LongTensor` of shape `(batch, anchors)`): Anchor positions.
        anchor_mask (`torch.BoolTensor` of shape `(batch, anchors)`): False for padding; such blocks see themselves.
        num_context (`int`): Context columns.
        block_size (`int`): Tokens of a block.
        view ([`LayerView`], *optional*): What a layer sees; everything, if not given.

    Returns:
        `torch.BoolTensor` of shape `(batch, 1, anchors * block, num_context + anchors * block)`.
    """
    columns = torch.arange(num_context, device=anchors.device)
    context = (columns < anchors.unsqueeze(-1)) & anchor_mask.bool().unsqueeze(-1)  # [B, A, C]
    context = context.repeat_interleave(block_size, dim=1)  # [B, A*G, C]
    offsets = torch.arange(block_size, device=anchors.device).repeat(anchors.shape[1])
    if view.window is not None:
        nearest = 0 if view.is_anchored else offsets + 1
        first = anchors.repeat_interleave(block_size, dim=1) + nearest - view.window  # [B, A*G]
        context &= columns >= first.unsqueeze(-1)
    blocks = torch.arange(anchors.shape[1], device=anchors.device).repeat_interleave(block_size)
    own = blocks.unsqueeze(1) == blocks
    if view.is_causal:
        own &= offsets <= offsets.unsqueeze(1)
    return torch.cat([context, own.expand(anchors.shape[0], -1, -1)], -1).unsqueeze(1)
