"""Training figures as sums and counts, so that they add up over batches and processes.

Shapes: A blocks, n slots.
"""

import torch
from torch import Tensor


class DraftMetrics:
    """Sums over blocks: acceptance per slot, expected tau, confidence error, loss terms.

    Args:
        num_slots (`int`): Slots of a block.
    """

    def __init__(self, num_slots: int):
        self.num_slots = num_slots
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(
        self,
        block_mask: Tensor,
        weights: Tensor,
        cross_entropy: Tensor,
        l1: Tensor,
        agrees: Tensor,
        confidence: Tensor | None,
    ) -> None:
        """Add a batch.

        Args:
            block_mask (`torch.BoolTensor` of shape `(blocks, slots)`): Slots that count.
            weights (`torch.FloatTensor` of shape `(slots,)`): Loss weight of each slot.
            cross_entropy, l1, agrees (`torch.Tensor` of shape `(rows,)`): Of the slots that count, in order.
            confidence (`torch.Tensor` of shape `(blocks, slots)`, *optional*): Predicted acceptance probabilities.
        """
        accept = torch.zeros(block_mask.shape, device=block_mask.device)
        accept[block_mask] = 1 - l1.float() / 2
        agreement = torch.zeros_like(accept)
        agreement[block_mask] = agrees.float()
        # Blocks cut short by the end of their text would understate tau.
        full = block_mask.all(-1)
        rows = (block_mask * weights)[block_mask]
        batch = {
            "count": block_mask.float().sum(0),
            "accept": accept.sum(0),
            "agree": agreement.sum(0),
            "full_blocks": full.float().sum(),
            "tau": (1 + accept[full].cumprod(-1).sum(-1)).sum(),
            "greedy_tau": (1 + agreement[full].cumprod(-1).sum(-1)).sum(),
            "weight": rows.sum(),
            "cross_entropy": (rows * cross_entropy).sum(),
            "l1": (rows * l1).sum(),
        }
        if confidence is not None:
            batch["confidence_error"] = ((confidence.float() - accept).abs() * block_mask).sum()
        for name, value in batch.items():
            self.sums[name] = self.sums.get(name, 0) + value.double()

    def means(self, reduce=lambda tensor: tensor) -> dict[str, float]:
        """The figures so far; `reduce` sums a tensor over processes. Empty if nothing was added, or no slot counts."""
        if not self.sums:
            return {}
        sums = {name: reduce(value) for name, value in self.sums.items()}
        num_rows, num_full = sums["count"].sum(), sums["full_blocks"].clamp_min(1)
        if not num_rows:
            return {}
        figures = {
            "cross_entropy": sums["cross_entropy"] / sums["weight"],
            "l1": sums["l1"] / sums["weight"],
            "expected_tau": sums["tau"] / num_full,
            "greedy_tau": sums["greedy_tau"] / num_full,
        }
        if "confidence_error" in sums:
            figures["confidence_error"] = sums["confidence_error"] / num_rows
        for slot, rate in enumerate(sums["accept"] / sums["count"].clamp_min(1), start=1):
            figures[f"expected_accept_slot_{slot}"] = rate
        return {name: float(value) for name, value in figures.items()}
