"""DSparkModel: a parallel backbone, a light sequential head and a confidence head (paper, section 3).

Shapes: B batch, S sequence, L taps, E hidden size, V vocabulary, A anchors, G block inputs, n slots, r Markov rank,
T new context tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dspark_hf.ops.blocks import LayerView, training_mask

from .block_attention import block_attention
from .cache_name import CACHE_NAME
from .configuration.dspark import DFlashConfig, DSparkConfig
from .context import DraftState, FixedState, TrainingContext
from .drafter import DraftModel
from .drafting import BlockOutput, PickFn, Proposal
from .heads import SEQUENTIAL_HEADS, ConfidenceHead
from .vanilla_walk import walk_block


class DSparkModel(DraftModel):
    """A DSpark drafter.

    Args:
        config ([`DSparkConfig`]): The configuration.
        own_embeddings (`bool`, *optional*, defaults to `False`): Whether to hold an embedding and a head.
    """

    config: DSparkConfig
    config_class = DSparkConfig

    def __init__(self, config: DSparkConfig, own_embeddings: bool = False):
        super().__init__(config, own_embeddings)
        decoder, hidden_size, rank = config.decoder_config, config.hidden_size, config.markov_rank
        self.hidden_norm = self.family.norm_cls(hidden_size, eps=decoder.rms_norm_eps)
        self.layers = nn.ModuleList(self.family.layer_cls(decoder, i) for i in range(decoder.num_hidden_layers))
        for layer in self.layers:
            layer.self_attn.is_causal = False
            layer._can_checkpoint_with_cache = True  # TrainingContext.update has no side effect
        self.hc_head = self.family.collapse(decoder)
        self._views, self._layer_types = config.layer_views, config.attention_types()
        make_head = SEQUENTIAL_HEADS[config.markov_head_type]
        self.markov_head = make_head(config, self.num_outputs) if rank > 0 else None
        num_inputs = hidden_size + (rank if config.confidence_head_with_markov else 0)
        has_bias = self.family.has_confidence_bias
        self.confidence_head = ConfidenceHead(num_inputs, has_bias) if config.enable_confidence_head else None
        self.post_init()

    def project(self, features: Tensor) -> Tensor:
        """Tapped states to context states: as of [`DraftModel.project`], normed."""
        return self.hidden_norm(super().project(features))

    def _decode(
        self, hidden: Tensor, positions: Tensor, context: Any, mask_of: Callable[[LayerView], Tensor | None]
    ) -> Tensor:
        """States of the tokens after all layers, before the final norm."""
        hidden = self.family.lift(self.config.decoder_config, hidden)
        masks = {view: self._attention_mask(mask_of(view), hidden.dtype) for view in set(self._views)}
        ropes = self._ropes(hidden, positions)
        for layer, view, layer_type in zip(self.layers, self._views, self._layer_types, strict=True):
            hidden = layer(
                hidden,
                attention_mask=masks[view],
                position_ids=positions,
                **{CACHE_NAME: context},
                position_embeddings=ropes[layer_type],
                is_causal=False,
            )
        return hidden if self.hc_head is None else self.hc_head(hidden)

    def _normed(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States after the final norm, for the output head, and those that the other heads read."""
        hidden = self.norm(states)
        return hidden, states if self.family.heads_read_raw else hidden

    def _ropes(self, hidden: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {layer_type: self.rope(hidden, positions, layer_type) for layer_type in set(self._layer_types)}

    def _context_kv(self, context: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Every layer's keys and values of context states."""
        ropes = self._ropes(context, positions)
        return [
            self.family.context_kv(layer.self_attn, context, ropes[layer_type])
            for layer, layer_type in zip(self.layers, self._layer_types, strict=True)
        ]

    def forward(
        self,
        input_ids: Tensor,
        features: Tensor,
        anchors: Tensor,
        anchor_mask: Tensor,
        objective: Callable[["DSparkModel", BlockOutput], Any] | None = None,
    ) -> Any:
        """Draft a block at every anchor, teacher-forced, for training (paper, section 3.4).

        Sequences may be padded on the right: an anchor's context ends before any padding.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`): Token ids.
            features (`torch.Tensor` of shape `(batch, sequence, taps * hidden)`): Tapped states of the target.
            anchors (`torch.LongTensor` of shape `(batch, anchors)`): Anchor positions.
            anchor_mask (`torch.BoolTensor` of shape `(batch, anchors)`): False for anchors that are padding.
            objective (`Callable`, *optional*): Turns this model and its [`BlockOutput`] into a loss. It runs inside
                the forward pass, where wrappers that shard parameters have gathered them.

        Returns:
            [`BlockOutput`], or what `objective` returns.
        """
        batch_size, num_anchors = anchors.shape
        block_size = self.config.block_size
        context = self.project(features)
        key_values = self._context_kv(context, torch.arange(context.shape[1], device=context.device).unsqueeze(0))

        offsets = torch.arange(block_size, device=anchors.device)
        positions = (anchors.unsqueeze(-1) + offsets).flatten(1)  # [B, A*G]
        hidden = self._embed_blocks(input_ids.gather(1, anchors).flatten()).view(batch_size, positions.shape[1], -1)
        mask_of = partial(training_mask, anchors, anchor_mask, context.shape[1], block_size)
        states = self._decode(hidden, positions, TrainingContext(key_values), mask_of)
        states = states.view(batch_size, num_anchors, block_size, -1)[:, :, block_size - self.config.num_slots :]
        hidden, read = self._normed(states)

        previous = positions.view(batch_size, num_anchors, block_size)[..., : self.config.num_slots]
        previous = previous.clamp_max(input_ids.shape[1] - 1).flatten(1)
        prev_ids = input_ids.gather(1, previous).view(batch_size, num_anchors, -1)  # [B, A, n]
        output = BlockOutput(hidden, self._markov_states(prev_ids, read), self._confidence(read, prev_ids))
        return output if objective is None else objective(self, output)

    def _embed_blocks(self, anchor_ids: Tensor) -> Tensor:
        """`(rows,)` anchors to block inputs `(rows, block, hidden)`."""
        ids = anchor_ids.new_full((anchor_ids.shape[0], self.config.block_size), self.config.mask_token_id)
        ids[:, 0] = anchor_ids
        return self.embed(ids)

    def _markov_states(self, prev_ids: Tensor, hidden: Tensor) -> Tensor | None:
        if self.markov_head is None:
            return None
        state, states = None, []
        for slot in range(hidden.shape[-2]):
            vector, state = self.markov_head.step(self._previous(prev_ids[..., slot]), hidden[..., slot, :], state)
            states.append(vector)
        return torch.stack(states, -2)

    def _previous(self, prev_ids: Tensor) -> Tensor:
        """The tokens before slots as the sequential head takes them."""
        table = getattr(self.markov_head, "markov_w1", None)
        return self.embed(prev_ids) if table is None else table(self._known(prev_ids))

    def _confidence(self, hidden: Tensor, prev_ids: Tensor) -> Tensor | None:
        if self.confidence_head is None:
            return None
        embeds = self._previous(prev_ids) if self.config.confidence_head_with_markov else None
        return self.confidence_head(hidden, embeds)

    def _empty_context(self, batch_size: int) -> DraftState:
        # What no block sees again is not kept.
        windows = {view.window if view.is_anchored else None for view in self._views}
        return DraftState(batch_size, len(self.layers), window=windows.pop() if len(windows) == 1 else None)

    @torch.no_grad()
    def extend_projected(
        self, state: DraftState, states: Tensor, counts: Sequence[int] | None = None, ids: Tensor | None = None
    ) -> None:
        """Append what [`DSparkModel.project`] has made of tapped states to the context.

        Args:
            state ([`DraftState`]): The context, changed in place.
            states (`torch.Tensor` of shape `(batch, tokens, hidden)`): Projected states of the next positions.
            counts (`Sequence[int]`, *optional*): How many of the tokens each row keeps; all, if not given.
            ids (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): These tokens; not read here.
        """
        self._append(state, states)
        state.advance([states.shape[1]] * states.shape[0] if counts is None else counts)

    @torch.no_grad()
    def append(self, state: DraftState | FixedState, features: Tensor, ids: Tensor | None = None) -> None:
        """Write the keys and values of tapped states behind the context, without counting them.

        Args:
            state ([`DraftState`] or [`FixedState`]): The context, changed in place.
            features (`torch.Tensor` of shape `(batch, tokens, taps * hidden)`): Tapped states.
            ids (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): The tokens there; not read here.
        """
        self._append(state, self.project(features))

    def _append(self, state: DraftState | FixedState, context: Tensor) -> None:
        positions = state.positions(context.shape[1], context.device)
        for index, key_values in enumerate(self._context_kv(context, positions)):
            state.update(*key_values, index)

    @torch.no_grad()
    def propose(
        self,
        state: DraftState | FixedState,
        anchor_ids: Tensor,
        pick: PickFn | None = None,
        num_slots: int | None = None,
        num_candidates: int | None = None,
    ) -> Proposal:
        """Draft one block behind each row's anchor, which stands right after the row's context.

        Args:
            state ([`DraftState`]): The context; it is not changed.
            anchor_ids (`torch.LongTensor` of shape `(batch,)`): The last known token of each row.
            pick (`Callable`, *optional*): Chooses a slot's token among its candidates, see [`PickFn`]. Without it the
                most likely one is taken.
            num_slots (`int`, *optional*): Draft only the first slots, 1 to `config.num_slots`.
            num_candidates (`int`, *optional*): How many of the output head's best tokens the sequential head chooses
                among; all, if not given, which costs a product with the whole vocabulary for each slot.

        Returns:
            [`Proposal`]: Its `ids` are int64 of shape `(batch, num_slots)`.

        Raises:
            `ValueError`: If `num_slots` is out of range.
        """
        num_slots = self._slots_to_draft(num_slots)
        if pick is None and self.markov_head is None:
            # The best of all is the best of any number of them.
            num_candidates = None
        hidden, read = (states[:, :num_slots] for states in self.block_hidden(state, anchor_ids))
        return self.pick_slots(read, *self.best_entries(self.base_logits(hidden), num_candidates), anchor_ids, pick)

    @torch.no_grad()
    def pick_slots(
        self, hidden: Tensor, logits: Tensor, entries: Tensor | None, anchor_ids: Tensor, pick: PickFn | None
    ) -> Proposal:
        """Go through the slots from left to right, each with the sequential head's bias, and choose their tokens.

        Args:
            hidden (`torch.Tensor` of shape `(batch, slots, hidden)`): Block states that the heads read.
            logits (`torch.Tensor` of shape `(batch, slots, k)`): The output head's logits of each slot's candidates.
            entries (`torch.LongTensor` of shape `(batch, slots, k)`, *optional*): Which entries of the draft
                vocabulary those are; all, if not given.
            anchor_ids (`torch.LongTensor` of shape `(batch,)`): The last known token of each row.
            pick (`Callable`, *optional*): As of [`DSparkModel.propose`].

        Returns:
            [`Proposal`].
        """
        walked = walk_block(self, hidden, logits, entries, anchor_ids, pick)
        if walked is not None:
            return walked
        block, prev_ids, markov_state = self._draft(anchor_ids, hidden.shape[1], pick), anchor_ids, None
        for slot in range(hidden.shape[1]):
            slot_logits, slot_entries = logits[:, slot], None if entries is None else entries[:, slot]
            if self.markov_head is not None:
                vector, markov_state = self.markov_head.step(self._previous(prev_ids), hidden[:, slot], markov_state)
                slot_logits = slot_logits + self.markov_head.bias(vector, slot_entries)
            prev_ids = block.choose(slot_logits, slot_entries)
        return block.proposal(self._confidence(hidden, torch.cat([anchor_ids.unsqueeze(1), block.ids[:, :-1]], 1)))

    @torch.no_grad()
    def block_hidden(self, state: DraftState | FixedState, anchor_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Block hidden states before any head.

        Args:
            state ([`DraftState`]): The context; it is not changed.
            anchor_ids (`torch.LongTensor` of shape `(batch,)`): The last known token of each row.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` of shape `(batch, slots, hidden)`: those after the final norm, which
            the output head reads, and those that the other heads read; the same in most families.
        """
        block_size = self.config.block_size
        positions = state.positions(block_size, anchor_ids.device)
        mask_of = partial(state.block_mask, block_size, anchor_ids.device)
        with block_attention(self.config.decoder_config, state, block_size, self._views, anchor_ids.device):
            states = self._decode(self._embed_blocks(anchor_ids), positions, state, mask_of)
        return self._normed(states[:, block_size - self.config.num_slots :])


class DFlashModel(DSparkModel):
    """A DFlash drafter: the backbone of [`DSparkModel`] without heads.

    Args:
        config ([`DFlashConfig`]): The configuration.
        own_embeddings (`bool`, *optional*, defaults to `False`): Whether to hold an embedding and a head.
    """

    config: DFlashConfig
    config_class = DFlashConfig
