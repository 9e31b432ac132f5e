"""The loss as its formula reads, with every `[N, V]` tensor in full (paper, section 3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dspark_hf.ops.output_head import OutputHead


def distill_loss_reference(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As of [`distill_loss`], with every logit in memory; differentiable by autograd.

    Returns:
        `tuple`: `loss`, `cross_entropy`, `l1` and `agrees` of [`DistillLoss`].
    """
    head = OutputHead(head_weight, logit_scale, softcap, head_bias)
    logits = head.logits(hidden)  # [N, V]
    if markov_states is not None:
        logits = logits + markov_states @ markov_weight.T
    target_logits = (head if target_head is None else target_head).logits(target_hidden)
    known = target_ids >= 0
    cross_entropy = F.cross_entropy(logits.float(), target_ids.clamp_min(0), reduction="none") * known
    soft_targets = torch.softmax(target_logits.float(), -1)
    soft_cross_entropy = -(soft_targets * torch.log_softmax(logits.float(), -1)).sum(-1) * known
    draft_probs = torch.softmax(logits.float(), -1)
    if target_log_norm is None:
        target_log_norm = torch.logsumexp(target_logits.float(), -1)
    target_probs = torch.exp(target_logits.float() - target_log_norm.unsqueeze(-1))
    outside = 1 - target_probs.sum(-1)
    l1 = (draft_probs - target_probs).abs().sum(-1) + outside
    rows = ce_weight * cross_entropy + tv_weight * l1 + soft_ce_weight * soft_cross_entropy
    loss = (weights * rows).sum()
    agrees = (logits.argmax(-1) == target_logits.argmax(-1)) & (target_probs.amax(-1) >= outside)
    return loss, cross_entropy.detach(), l1.detach(), agrees
