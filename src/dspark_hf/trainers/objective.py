"""The loss of a drafter on one batch (paper, section 3.4).

Shapes: B batch, A anchors, n slots, N rows that count, E hidden size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dspark_hf.modeling import BlockOutput, DraftModel
from dspark_hf.modeling.borrowing import output_head
from dspark_hf.ops.blocks import block_targets, slot_weights
from dspark_hf.ops.distill_loss import distill_loss, streamed_log_norm

from .metrics import DraftMetrics


@dataclass
class DistillObjective:
    """Weighted means over the global batch of cross-entropy (hard, soft), L1 distance and confidence BCE.

    Attributes:
        input_ids (`torch.LongTensor` of shape `(batch, sequence)`): Tokens.
        loss_mask (`torch.BoolTensor` of shape `(batch, sequence)`): Which of them are supervised.
        anchors (`torch.LongTensor` of shape `(batch, anchors)`): Positions of the anchors.
        anchor_mask (`torch.BoolTensor` of shape `(batch, anchors)`): Which of these are no padding.
        last_hidden_states (`torch.Tensor` of shape `(batch, sequence, hidden)`): Of the target, post-norm.
        ce_weight, tv_weight, confidence_weight, slot_decay, soft_ce_weight (`float`): As of [`LossWeights`].
        chunk_size (`int`): Rows whose logits are alive at a time.
        compile (`bool`): Whether what is computed of a chunk is compiled.
        log_norm (`torch.FloatTensor` of shape `(batch, sequence)`, *optional*): `logsumexp` of the target's logits,
            read where the draft vocabulary is reduced; computed here, if not given.
        total_weight (`torch.Tensor` of shape `()`, *optional*): Sum of slot weights over the global batch; this
            batch's,
            if None.
        metrics ([`DraftMetrics`], *optional*): Where figures are added.
    """

    input_ids: Tensor
    loss_mask: Tensor
    anchors: Tensor
    anchor_mask: Tensor
    last_hidden_states: Tensor
    ce_weight: float
    tv_weight: float
    confidence_weight: float
    slot_decay: float
    chunk_size: int
    soft_ce_weight: float = 0.0
    compile: bool = False
    log_norm: Tensor | None = None
    total_weight: Tensor | None = None
    metrics: DraftMetrics | None = None

    def __call__(self, model: DraftModel, output: BlockOutput) -> Tensor:
        """The loss, float32 scalar; 0 where no slot counts."""
        num_slots, device = model.config.num_slots, output.hidden.device
        target_ids, source, block_mask = block_targets(
            self.input_ids, self.loss_mask, self.anchors, self.anchor_mask, num_slots
        )
        weights = slot_weights(num_slots, self.slot_decay, device)
        row_weights = weights.expand_as(block_mask)[block_mask]  # [N]
        total = row_weights.sum() if self.total_weight is None else self.total_weight
        row_weights = row_weights / total.clamp_min(1e-9)
        rows = torch.arange(source.shape[0], device=device)[:, None, None].expand_as(source)[block_mask]
        source = (rows, source[block_mask])
        target_hidden = self.last_hidden_states.to(device)[source]
        autocast = torch.is_autocast_enabled(device.type)
        head = model.head
        dtype = torch.get_autocast_dtype(device.type) if autocast else head.weight.dtype
        head, target_head = head.to(device, dtype), None
        if model.config.own_lm_head:
            target_head = model.target_head.to(device, dtype)
        with torch.autocast(device.type, enabled=False):
            target_hidden, entries, log_norm = target_hidden.to(dtype), target_ids[block_mask], None
            if not model.proposes_all_tokens:
                entries, log_norm = model.entries_of(entries), self._log_norm(model, source, target_hidden)
            markov = {}
            if output.markov_states is not None:
                markov = {
                    "markov_states": output.markov_states[block_mask].to(dtype),
                    "markov_weight": model.markov_head.markov_w2.weight.to(dtype),
                }
            distilled = distill_loss(
                output.hidden[block_mask].to(dtype),
                head.weight,
                target_hidden,
                entries,
                row_weights,
                head_bias=head.bias,
                target_log_norm=log_norm,
                ce_weight=self.ce_weight,
                tv_weight=self.tv_weight,
                soft_ce_weight=self.soft_ce_weight,
                logit_scale=head.scale,
                softcap=head.softcap,
                target_head=target_head,
                chunk_size=self.chunk_size,
                compile=self.compile,
                **markov,
            )
            loss = distilled.loss
            if output.confidence_logits is not None:
                logits = output.confidence_logits[block_mask].float()
                accept = 1 - distilled.l1 / 2
                bce = F.binary_cross_entropy_with_logits(logits, accept, reduction="none")
                loss = loss + self.confidence_weight * (row_weights * bce).sum()
        if self.metrics is not None:
            confidence = output.confidence_logits
            self.metrics.add(
                block_mask.flatten(0, 1),
                weights,
                distilled.cross_entropy,
                distilled.l1,
                distilled.agrees,
                None if confidence is None else torch.sigmoid(confidence.detach()).flatten(0, 1),
            )
        return loss

    def _log_norm(self, model: DraftModel, source: tuple[Tensor, Tensor], target_hidden: Tensor) -> Tensor:
        if self.log_norm is not None:
            return self.log_norm[source]
        # Blocks overlap: a position counts in several slots, and the whole vocabulary is passed once for it.
        rows, columns = source
        places, inverse = torch.unique(rows * self.input_ids.shape[1] + columns, return_inverse=True)
        # Any of a position's rows will do.
        hidden = target_hidden[places.scatter(0, inverse, torch.arange(len(inverse), device=places.device))]
        head = output_head(model.borrowed.target)
        return streamed_log_norm(hidden, head.to(hidden.device, hidden.dtype), self.chunk_size)[inverse]
