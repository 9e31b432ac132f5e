"""Cross-entropy and total variation between a drafter and its target, straight from hidden states.

Shapes: N rows (slots that count), E hidden size, V vocabulary, r Markov rank.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from dspark_hf.ops.dispatch import kernel_for
from dspark_hf.ops.output_head import OutputHead

from .reference import distill_loss_reference
from .streamed import StreamedDistillLoss, compiled_logit_gradient, logit_gradient, streamed_log_norm


class DistillLoss(NamedTuple):
    """What [`distill_loss`] returns: the differentiable loss, and detached per-row figures."""

    loss: Tensor
    cross_entropy: Tensor
    l1: Tensor
    agrees: Tensor


def distill_loss(
    hidden: Tensor,
    head_weight: Tensor,
    target_hidden: Tensor,
    target_ids: Tensor,
    weights: Tensor,
    *,
    head_bias: Tensor | None = None,
    markov_states: Tensor | None = None,
    markov_weight: Tensor | None = None,
    target_log_norm: Tensor | None = None,
    ce_weight: float = 0.1,
    tv_weight: float = 0.9,
    soft_ce_weight: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    target_head: OutputHead | None = None,
    chunk_size: int = 256,
    compile: bool = False,
) -> DistillLoss:
    """Weighted sum over rows of `ce_weight * CE + tv_weight * sum|p_draft - p_target|` (paper, section 3.4).

    With `soft_ce_weight` there is a third term, the cross-entropy to the target's distribution instead of one token,
    `-sum p_target log p_draft`: the loss of EAGLE-3's training (https://arxiv.org/abs/2503.01840).

    Gradients flow to `hidden`, `markov_states`, `markov_weight`, and to `head_weight` if it asks for one.
    All tensors that are multiplied share one dtype; sums, softmax and the loss are float32.

    Args:
        hidden (`torch.Tensor` of shape `(rows, hidden)`): Block hidden states.
        head_weight (`torch.Tensor` of shape `(vocab, hidden)`): The output head.
        target_hidden (`torch.Tensor` of shape `(rows, hidden)`): The target's last hidden states (post-norm).
        target_ids (`torch.LongTensor` of shape `(rows,)`): Tokens to predict, as rows of `head_weight`; -1 where a
            reduced vocabulary lacks the token, which then has no cross-entropy, soft or not.
        weights (`torch.FloatTensor` of shape `(rows,)`): Row weights, already divided by the global batch's sum.
        head_bias (`torch.Tensor` of shape `(vocab,)`, *optional*): The output head's bias. It gets no gradient: a head
            that learns has none.
        markov_states (`torch.Tensor` of shape `(rows, rank)`, *optional*): The sequential head's `m`.
        markov_weight (`torch.Tensor` of shape `(vocab, rank)`, *optional*): The sequential head's W2.
        target_log_norm (`torch.FloatTensor` of shape `(rows,)`, *optional*): `logsumexp` of the target's logits over
            its whole vocabulary ([`streamed_log_norm`]), where `head_weight` holds only some of its rows. What the
            target gives to the others adds to the L1 distance.
        ce_weight (`float`, *optional*, defaults to 0.1): Weight of the cross-entropy.
        tv_weight (`float`, *optional*, defaults to 0.9): Weight of the L1 distance (twice the total variation).
        soft_ce_weight (`float`, *optional*, defaults to 0.0): Weight of the soft cross-entropy. Its target is the
            softmax over the rows of the head alone, so over a reduced vocabulary where it holds some of them.
        logit_scale (`float`, *optional*, defaults to 1.0): What the output head's logits are multiplied with.
        softcap (`float`, *optional*): Soft cap on the scaled logits, before the sequential head's bias.
        target_head ([`~ops.output_head.OutputHead`], *optional*): The target's output head, where the drafter has
            another, with the same rows; else both have `head_weight`, `head_bias`, `logit_scale` and `softcap`.
        chunk_size (`int`, *optional*, defaults to 256): Rows whose logits are alive at a time.
        compile (`bool`, *optional*, defaults to `False`): Whether the pass over the vocabulary goes through
            `torch.compile` (on a CPU this needs a C++ compiler).

    Returns:
        [`DistillLoss`]: `loss`, float32 scalar; `cross_entropy` and `l1`, float32 `(rows,)`; `agrees`, bool `(rows,)`,
        whether both argmaxes are the same token. A slot's accept rate is `1 - l1 / 2`.

    Raises:
        `ValueError`: If only one of `markov_states` and `markov_weight` is given.
    """
    if (markov_states is None) != (markov_weight is None):
        raise ValueError("markov_states and markov_weight belong together: give both or neither.")
    num_rows = hidden.shape[0]
    rows = (hidden, target_hidden, target_ids, target_log_norm, weights, markov_states)
    if compile and num_rows % chunk_size:
        # One shape for every chunk means one compilation; rows of weight 0 change nothing.
        padding = chunk_size - num_rows % chunk_size
        rows = (row if row is None else F.pad(row, (0, 0) * (row.dim() - 1) + (0, padding)) for row in rows)
    hidden, target_hidden, target_ids, target_log_norm, weights, markov_states = rows
    gradient_of = compiled_logit_gradient() if compile else _gradient_of(hidden)
    term_weights = (ce_weight, tv_weight, soft_ce_weight)
    options = (term_weights, head_bias, logit_scale, softcap, target_head, chunk_size, gradient_of)
    loss, stats, agrees = StreamedDistillLoss.apply(
        hidden, head_weight, target_hidden, target_ids, target_log_norm, weights, markov_states, markov_weight, options
    )
    return DistillLoss(loss, stats[0, :num_rows], stats[1, :num_rows], agrees[:num_rows])


def _gradient_of(hidden: Tensor) -> Callable:
    kernel = kernel_for("distill_loss", hidden.device)
    return kernel.logit_gradient_kernel if kernel is not None and kernel.covers(hidden.dtype) else logit_gradient


__all__ = ["DistillLoss", "distill_loss", "distill_loss_reference", "streamed_log_norm"]
