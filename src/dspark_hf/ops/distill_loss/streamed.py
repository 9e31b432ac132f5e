"""The same loss and its gradient in one pass over chunks of rows: one `[chunk, V]` buffer is alive at a time.

With p = softmax(z) the draft's distribution, t the target's and y the token, the gradient on a row's logits is
    w * (a (p - 1[y]) + b p (s - sum(p s)) + c (p - t')),   s = sign(p - t),
for loss w (a CE + b sum|p - t| - c sum t' log p), t' being t over the vocabulary's entries. Where y is no entry the
terms of a and c fall away. It is known as soon as the row is, so logits are never kept for a backward pass.
"""

from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dspark_hf.ops.output_head import OutputHead

# Rows that are float32 at a time in `streamed_log_norm`: few enough to stay in a processor's cache.
_NORM_ROWS = 32


def logit_gradient(
    logits: Tensor,
    target_logits: Tensor,
    target_ids: Tensor,
    target_log_norm: Tensor | None,
    weights: Tensor,
    term_weights: tuple[float, float, float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradient of some rows.

    Args:
        logits (`torch.Tensor` of shape `(rows, vocab)`): The drafter's.
        target_logits (`torch.Tensor` of shape `(rows, vocab)`): The target's.
        target_ids (`torch.LongTensor` of shape `(rows,)`): Tokens to predict; -1 where there is none.
        target_log_norm (`torch.FloatTensor` of shape `(rows,)` or `None`): As of [`distill_loss`].
        weights (`torch.FloatTensor` of shape `(rows,)`): Row weights.
        term_weights (`tuple[float, float, float]`): Those of cross-entropy, L1 distance and soft cross-entropy.

    Returns:
        `tuple`: The gradient `(rows, vocab)` in the logits' dtype, of the weighted loss; and of each row, `(rows,)`,
        the
        loss, cross-entropy, L1 distance and whether the argmaxes agree.
    """
    ce_weight, tv_weight, soft_ce_weight = term_weights
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scores, target_scores = logits.to(dtype), target_logits.to(dtype)
    top, target_top = scores.amax(-1, keepdim=True), target_scores.amax(-1, keepdim=True)
    # Two argmaxes agree where one entry is both maxima: one more reduction in a pass that is made anyway.
    agrees = ((scores == top) & (target_scores == target_top)).any(-1)
    log_norm = top + torch.log(torch.exp(scores - top).sum(-1, keepdim=True))
    if target_log_norm is None:
        target_norm = target_top + torch.log(torch.exp(target_scores - target_top).sum(-1, keepdim=True))
    else:
        target_norm = target_log_norm.unsqueeze(-1)
    target_probs = torch.exp(target_scores - target_norm)
    probs = torch.exp(scores - log_norm)
    difference = probs - target_probs
    sign = torch.sign(difference)
    tilt = (probs * sign).sum(-1, keepdim=True)
    l1 = difference.abs().sum(-1)
    if target_log_norm is not None:
        outside = 1 - target_probs.sum(-1)
        l1 = l1 + outside
        agrees = agrees & (torch.exp(target_top - target_norm).squeeze(-1) >= outside)
    known = (target_ids >= 0).unsqueeze(-1)
    index = target_ids.clamp_min(0).unsqueeze(-1)
    cross_entropy = ((log_norm - scores.gather(-1, index)) * known).squeeze(-1)
    one_hot = torch.arange(logits.shape[-1], device=logits.device) == index
    towards_token = ce_weight * known * (probs - one_hot.to(dtype))
    gradient = towards_token + tv_weight * probs * (sign - tilt)
    loss = ce_weight * cross_entropy + tv_weight * l1
    if soft_ce_weight:
        soft_targets = torch.softmax(target_scores, -1)
        gradient = gradient + soft_ce_weight * known * (probs - soft_targets)
        soft_cross_entropy = log_norm - (soft_targets * scores).sum(-1, keepdim=True)
        loss = loss + soft_ce_weight * (soft_cross_entropy * known).squeeze(-1)
    gradient = weights.unsqueeze(-1) * gradient
    return gradient.to(logits.dtype), loss, cross_entropy, l1, agrees


@cache
def compiled_logit_gradient():
    """[`logit_gradient`] through `torch.compile`: the passes over the vocabulary fuse into a few."""
    return torch.compile(logit_gradient, dynamic=False)


class StreamedDistillLoss(torch.autograd.Function):
    """Forward computes loss and gradients; backward only scales them."""

    @staticmethod
    def forward(
        ctx,
        hidden,
        head_weight,
        target_hidden,
        target_ids,
        target_log_norm,
        weights,
        markov_states,
        markov_weight,
        options,
    ):
        term_weights, head_bias, logit_scale, softcap, target_head, chunk_size, gradient_of = options
        head = OutputHead(head_weight, logit_scale, softcap, head_bias)
        target_head = head if target_head is None else target_head
        num_rows = hidden.shape[0]
        loss = hidden.new_zeros((), dtype=torch.float32)
        stats = hidden.new_empty(2, num_rows, dtype=torch.float32)
        agrees = torch.empty(num_rows, dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        # Only a head of the drafter's own is trained.
        grad_head = torch.zeros_like(head_weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_states = None if markov_states is None else torch.empty_like(markov_states)
        grad_weight = None if markov_weight is None else torch.zeros_like(markov_weight, dtype=torch.float32)
        for start in range(0, num_rows, chunk_size):
            rows = slice(start, min(start + chunk_size, num_rows))
            logits = head.logits(hidden[rows])
            # The cap's derivative, 1 - tanh^2, from what it gave.
            slope = None if softcap is None else 1 - (logits / softcap).square()
            if markov_states is not None:
                logits.addmm_(markov_states[rows], markov_weight.T)
            target_logits = target_head.logits(target_hidden[rows])
            log_norm = None if target_log_norm is None else target_log_norm[rows]
            gradient, row_loss, cross_entropy, l1, agrees[rows] = gradient_of(
                logits, target_logits, target_ids[rows], log_norm, weights[rows], term_weights
            )
            del logits, target_logits
            loss += (weights[rows] * row_loss).sum()
            stats[0, rows], stats[1, rows] = cross_entropy, l1
            if markov_states is not None:
                torch.mm(gradient, markov_weight, out=grad_states[rows])
                grad_weight += gradient.T @ markov_states[rows]
            gradient = gradient if slope is None else gradient.mul_(slope)
            torch.mm(gradient, head_weight, out=grad_hidden[rows])
            if grad_head is not None:
                grad_head += gradient.T @ hidden[rows]
        if logit_scale != 1:
            grad_hidden.mul_(logit_scale)
        if grad_head is not None:
            grad_head = grad_head.mul_(logit_scale).to(head_weight.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.to(markov_weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_head, grad_states, grad_weight)
        ctx.mark_non_differentiable(stats, agrees)
        return loss, stats, agrees

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        scaled = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        grad_hidden, grad_head, grad_states, grad_weight = scaled
        return grad_hidden, grad_head, None, None, None, None, grad_states, grad_weight, None


@torch.no_grad()
def streamed_log_norm(hidden: Tensor, head: OutputHead, chunk_size: int) -> Tensor:
    """`logsumexp` of a head's logits, with one `[chunk, V]` buffer alive at a time.

    Args:
        hidden (`torch.Tensor` of shape `(rows, hidden)`): States that the head reads.
        head ([`OutputHead`]): The head.
        chunk_size (`int`): Rows whose logits are alive at a time.

    Returns:
        `torch.FloatTensor` of shape `(rows,)`.
    """
    chunks = (head.logits(rows) for rows in hidden.split(chunk_size))
    parts = (torch.logsumexp(part.float(), -1) for logits in chunks for part in logits.split(_NORM_ROWS))
    return torch.cat([hidden.new_empty(0, dtype=torch.float32), *parts])
