"""Eagle3Model: one decoder layer that drafts token by token (https://arxiv.org/abs/2503.01840).

The layer reads pairs: the feature of position p with the embedding of the token at p + 1, from which it predicts the
token at p + 2. Behind the anchor its own output stands in for the feature. What the paper leaves open follows the
released checkpoints:

* A pair has the position of its token; only differences of positions matter.
* The feature is the projection of all taps (`fc`); the residual stream starts from it, before any norm.
* What stands in for the feature is the layer's output before the final norm.
* In training every step is given the true token, and sees the features before the anchor and its block's own steps.
* The loss is the cross-entropy to the target's distribution over the draft vocabulary, where the true token is in it;
  step k weighs `step_loss_decay ** (k - 1)`.

Shapes: B batch, S sequence, E hidden size, V vocabulary, A anchors, n steps (slots), T new tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dspark_hf.ops.blocks import training_mask

from .cache_name import CACHE_NAME
from .configuration.eagle3 import Eagle3Config
from .context import Eagle3State, TrainingContext
from .context.pairs import FixedPairs
from .drafter import DraftModel
from .drafting import BlockOutput, PickFn, Proposal
from .families import Family


class Eagle3Layer(GradientCheckpointingLayer):
    """A stock decoder layer whose attention reads `[embedding; feature]`.

    Args:
        family ([`Family`]): Where the layer's parts come from.
        config ([`Eagle3Config`]): The configuration.
    """

    _can_checkpoint_with_cache = True  # TrainingContext.update has no side effect

    def __init__(self, family: Family, config: Eagle3Config):
        super().__init__()
        stock = family.layer_cls(config.decoder_config, 0)
        self.self_attn, self.mlp = stock.self_attn, stock.mlp
        self.self_attn.is_causal = False
        for name in ("q_proj", "k_proj", "v_proj"):
            narrow = getattr(self.self_attn, name)
            wide = nn.Linear(2 * config.hidden_size, narrow.out_features, bias=narrow.bias is not None)
            setattr(self.self_attn, name, wide)
        self.input_layernorm = stock.input_layernorm
        self.hidden_norm = family.norm_cls(config.hidden_size, eps=config.decoder_config.rms_norm_eps)
        self.post_attention_layernorm = stock.post_attention_layernorm
        self.norm_before_residual = config.norm_before_residual

    def pairs(self, embeds: Tensor, hidden: Tensor) -> Tensor:
        """What the attention reads, `(batch, tokens, 2 * hidden)`, of `embeds` and `hidden`, both `(batch, tokens,
        hidden)`.
        """
        return torch.cat([self.input_layernorm(embeds), self.hidden_norm(hidden)], -1)

    def forward(
        self,
        hidden: Tensor,
        embeds: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        context: Any = None,
    ) -> Tensor:
        """
        Args:
            hidden (`torch.Tensor` of shape `(batch, tokens, hidden)`): Features, or this layer's own output.
            embeds (`torch.Tensor` of shape `(batch, tokens, hidden)`): Embeddings of the tokens after them.
            rope (`tuple[torch.Tensor, torch.Tensor]`): Cosines and sines of the pairs' positions.
            mask (`torch.Tensor` of shape `(batch, 1, tokens, pairs)`, *optional*): Which pairs are seen.
            context ([`TrainingContext`], [`Eagle3State`] or [`FixedPairs`]): The pairs before.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, hidden)`.
        """
        residual = self.hidden_norm(hidden) if self.norm_before_residual else hidden
        hidden, _ = self.self_attn(
            self.pairs(embeds, hidden),
            position_embeddings=rope,
            attention_mask=mask,
            **{CACHE_NAME: context},
            is_causal=False,
        )
        hidden = residual + hidden
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Eagle3Model(DraftModel):
    """An EAGLE-3 drafter.

    Args:
        config ([`Eagle3Config`]): The configuration.
        own_embeddings (`bool`, *optional*, defaults to `False`): Whether to hold an embedding and a head.
    """

    config: Eagle3Config
    config_class = Eagle3Config
    reads_tokens = True

    def __init__(self, config: Eagle3Config, own_embeddings: bool = False):
        super().__init__(config, own_embeddings)
        self.layers = nn.ModuleList([Eagle3Layer(self.family, config)])
        eps = config.decoder_config.rms_norm_eps
        if config.norm_before_fc:
            self.input_norm = self.family.norm_cls(self.fc.in_features, eps=eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        features: Tensor,
        anchors: Tensor,
        anchor_mask: Tensor,
        objective: Callable[["Eagle3Model", BlockOutput], Any] | None = None,
    ) -> Any:
        """Draft behind every anchor for `ttt_length` steps, on the drafter's own states but the true tokens.

        Args and Returns: as of [`DSparkModel.forward`]; anchors are positions from 1 on.
        """
        layer, projected = self.layers[0], self.project(features)
        positions = torch.arange(1, input_ids.shape[1], device=projected.device).unsqueeze(0)
        key_values = self._key_values(input_ids[:, 1:], projected[:, :-1], positions)
        # The pair that ends with the anchor is the first step's input; its feature stands one place before.
        places = (anchors - 1).clamp_min(0)
        hidden = projected.gather(1, places.unsqueeze(-1).expand(-1, -1, projected.shape[-1]))  # [B, A, E]
        num_context = key_values[0].shape[2]
        mask = training_mask(places, anchor_mask, num_context, block_size=1)
        own, outputs = mask[..., num_context:], []
        for step in range(self.config.ttt_length):
            token_ids = input_ids.gather(1, (anchors + step).clamp_max(input_ids.shape[1] - 1))
            embeds, rope = self.embed(token_ids), self.rope(hidden, anchors + step)
            context = TrainingContext([key_values])
            if step + 1 < self.config.ttt_length:
                new = self.family.context_kv(layer.self_attn, layer.pairs(embeds, hidden), rope)
                key_values = tuple(torch.cat(pair, 2) for pair in zip(key_values, new, strict=True))
            hidden = layer(hidden, embeds, rope, self._attention_mask(mask, hidden.dtype), context=context)
            mask = torch.cat([mask, own], -1)
            outputs.append(self.norm(hidden))
        output = BlockOutput(torch.stack(outputs, 2))
        return output if objective is None else objective(self, output)

    def _key_values(self, token_ids: Tensor, before: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of pairs: tokens `(batch, tokens)`, and the features `(batch, tokens, hidden)` before."""
        layer, rope = self.layers[0], self.rope(before, positions)
        return self.family.context_kv(layer.self_attn, layer.pairs(self.embed(token_ids), before), rope)

    def _empty_context(self, batch_size: int) -> Eagle3State:
        return Eagle3State(batch_size)

    @torch.no_grad()
    def extend_projected(
        self, state: Eagle3State, states: Tensor, counts: Sequence[int] | None = None, ids: Tensor | None = None
    ) -> None:
        """Append what [`DraftModel.project`] has made of tapped states to the context.

        Args:
            state ([`Eagle3State`]): The context, changed in place.
            states (`torch.Tensor` of shape `(batch, tokens, hidden)`): Projected states of the next positions.
            counts (`Sequence[int]`, *optional*): How many of the tokens each row keeps; all, if not given.
            ids (`torch.LongTensor` of shape `(batch, tokens)`): These tokens.

        Raises:
            `ValueError`: If `ids` is missing.
        """
        if ids is None:
            raise ValueError("An EAGLE-3 drafter reads tokens beside their features: pass ids to extend().")
        self._append(state, states, ids)
        state.advance([states.shape[1]] * states.shape[0] if counts is None else counts)

    @torch.no_grad()
    def append(self, state: Eagle3State | FixedPairs, features: Tensor, ids: Tensor) -> None:
        """Write the pairs of tapped states behind the context, without counting them.

        Args:
            state ([`Eagle3State`] or [`FixedPairs`]): The context, changed in place.
            features (`torch.Tensor` of shape `(batch, tokens, taps * hidden)`): Tapped states.
            ids (`torch.LongTensor` of shape `(batch, tokens)`): The tokens there.
        """
        self._append(state, self.project(features), ids)

    def _append(self, state: Eagle3State | FixedPairs, projected: Tensor, ids: Tensor) -> None:
        before, positions = state.append(projected), state.positions(projected.shape[1], projected.device)
        state.update(*self._key_values(ids, before, positions), 0)

    @torch.no_grad()
    def propose(
        self,
        state: Eagle3State | FixedPairs,
        anchor_ids: Tensor,
        pick: PickFn | None = None,
        num_slots: int | None = None,
        num_candidates: int | None = None,
    ) -> Proposal:
        """Draft behind each row's anchor, which stands right after the row's context.

        Args:
            state ([`Eagle3State`] or [`FixedPairs`]): The context; what is drafted leaves it again.
            anchor_ids (`torch.LongTensor` of shape `(batch,)`): The last known token of each row.
            pick (`Callable`, *optional*): As of [`DSparkModel.propose`].
            num_slots (`int`, *optional*): Draft only so many tokens, 1 to `config.num_slots`.
            num_candidates (`int`, *optional*): How many of a step's best tokens it is drawn from; all, if not given.

        Returns:
            [`Proposal`]: Its `ids` are int64 of shape `(batch, num_slots)`.

        Raises:
            `ValueError`: If `num_slots` is out of range.
        """
        num_slots = self._slots_to_draft(num_slots)
        block, hidden, prev_ids = self._draft(anchor_ids, num_slots, pick), state.last_features(), anchor_ids
        if pick is None:
            # Without a sequential head the best of all is the best of any number of them.
            num_candidates = None
        for _ in range(num_slots):
            rope = self.rope(hidden, state.positions(1, anchor_ids.device))
            mask = self._attention_mask(state.block_mask(1, anchor_ids.device), hidden.dtype)
            hidden = self.layers[0](hidden, self.embed(prev_ids.unsqueeze(1)), rope, mask, context=state)
            state = state.next()
            best = self.best_entries(self.base_logits(self.norm(hidden))[:, 0], num_candidates)
            prev_ids = block.choose(*best)
        state.back(num_slots)
        return block.proposal()
