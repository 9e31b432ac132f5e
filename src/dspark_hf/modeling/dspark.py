"""DSparkModel: a parallel backbone, a light sequential head and a confidence head (paper, section 3).

Shapes: B batch, S sequence, L taps, E hidden size, V vocabulary, A anchors, G block inputs, n slots, r Markov rank,
T new context tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark_hf.ops.blocks import training_mask
from dspark_hf.publishing import push_model

from .borrowing import Borrowed, check_fit
from .configuration import DSparkConfig
from .context import DraftState, TrainingContext
from .drafting import BlockOutput, PickFn, Proposal
from .families import get_family
from .heads import MARKOV_HEADS, ConfidenceHead
from .placement import compute_device
from .vocabulary import entry_tokens, expand_logits, vocabulary_buffers
from .wrappers import unwrap


class DSparkModel(PreTrainedModel):
    """A DSpark drafter.

    It holds no embedding and no output head: [`DSparkModel.bind`] borrows the target's, and saving leaves them out.
    A checkpoint that carries copies can be loaded with them (`own_embeddings=True`, which `AutoDrafter` finds out).

    Args:
        config ([`DSparkConfig`]): The configuration.
        own_embeddings (`bool`, *optional*, defaults to `False`): Whether to hold an embedding and a head.
    """

    config: DSparkConfig
    config_class = DSparkConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    is_drafter = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = [r"^embed_tokens\.", r"^lm_head\.", r"rotary_emb\.inv_freq"]
    _keys_to_ignore_on_save = ["embed_tokens.weight", "lm_head.weight"]

    def __init__(self, config: DSparkConfig, own_embeddings: bool = False):
        super().__init__(config)
        decoder, hidden_size = config.decoder_config, config.hidden_size
        decoder._attn_implementation = config._attn_implementation
        self.family = get_family(decoder.model_type)
        self.fc = nn.Linear(len(config.target_layer_ids) * hidden_size, hidden_size, bias=False)
        self.hidden_norm = self.family.norm_cls(hidden_size, eps=decoder.rms_norm_eps)
        self.layers = nn.ModuleList(self.family.layer_cls(decoder, i) for i in range(decoder.num_hidden_layers))
        for layer in self.layers:
            layer.self_attn.is_causal = False
            layer._can_checkpoint_with_cache = True  # TrainingContext.update has no side effect
        self.norm = self.family.norm_cls(hidden_size, eps=decoder.rms_norm_eps)
        self.rotary_emb = self.family.rotary_cls(decoder)
        rank, num_outputs = config.markov_rank, config.draft_vocab_size or config.vocab_size
        if self.has_reduced_vocabulary:
            # The first tokens, until choose_vocabulary or a checkpoint says otherwise.
            self.register_buffer("t2d", torch.arange(config.vocab_size) < num_outputs)
            self.register_buffer("d2t", torch.zeros(num_outputs, dtype=torch.int64))
        head_cls = MARKOV_HEADS[config.markov_head_type]
        self.markov_head = head_cls(config.vocab_size, hidden_size, rank, num_outputs) if rank > 0 else None
        num_inputs = hidden_size + (rank if config.confidence_head_with_markov else 0)
        self.confidence_head = ConfidenceHead(num_inputs) if config.enable_confidence_head else None
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden_size) if own_embeddings else None
        self.lm_head = nn.Linear(hidden_size, num_outputs, bias=False) if own_embeddings else None
        self.borrowed: Borrowed | None = None
        self.last_stats = None
        self.post_init()

    @classmethod
    def from_target(cls, target: PreTrainedModel, **fields) -> "DSparkModel":
        """A fresh drafter for a target, bound to it, in the target's dtype and on its device.

        Args:
            target (`PreTrainedModel`): The target.
            fields: See [`DSparkConfig.from_target`].
        """
        target = unwrap(target)
        model = cls(DSparkConfig.from_target(target, **fields))
        device = compute_device(target.get_input_embeddings())
        return model.to(device=device, dtype=target.dtype).bind(target)

    def choose_vocabulary(self, token_ids: Iterable[int]) -> None:
        """Say which tokens a reduced draft vocabulary stands for, before training.

        Raises:
            `ValueError`: If the config has no `draft_vocab_size`, or the ids do not match it.
        """
        if not self.has_reduced_vocabulary:
            raise ValueError(
                "This drafter proposes every token of its target; set draft_vocab_size in its config first."
            )
        t2d, d2t = vocabulary_buffers(token_ids, self.config.draft_vocab_size, self.config.vocab_size)
        self.t2d.copy_(t2d)
        self.d2t.copy_(d2t)
        if self.borrowed is not None:
            self.borrowed = Borrowed(self.borrowed.target, entry_tokens(self.d2t))

    @property
    def has_reduced_vocabulary(self) -> bool:
        return self.config.draft_vocab_size is not None

    def bind(self, target: PreTrainedModel, check_name: bool = True) -> "DSparkModel":
        """Borrow the target's embedding and output head, in place of any copies of its own.

        Args:
            target (`PreTrainedModel`): The target to draft for, or a PEFT or compiled wrapper around it.
            check_name (`bool`, *optional*, defaults to `True`): Whether a drafter made for another target is refused.

        Raises:
            `ValueError`: If drafter and target do not fit; the message names both sides.
        """
        target = unwrap(target)
        check_fit(self.config, target, check_name=check_name)
        self.borrowed = Borrowed(target, entry_tokens(self.d2t) if self.has_reduced_vocabulary else None)
        self.embed_tokens = self.lm_head = None
        return self

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Upload the drafter in the flat layout, with a card, in one commit.

        Args:
            repo_id (`str`): The repository, made where there is none.
            options: `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr`,
                `max_shard_size`, `tags`; see [`~dspark_hf.publishing.push_model`].

        Raises:
            `ValueError`: If the Hub refuses; the message says what to do.
        """
        return push_model(self, repo_id, **options)

    def is_bound_to(self, target: PreTrainedModel) -> bool:
        return self.borrowed is not None and self.borrowed.is_current(unwrap(target))

    def get_input_embeddings(self) -> nn.Module | None:
        """The drafter's own embedding; None where it borrows the target's."""
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module | None:
        """The drafter's own output head; None where it borrows the target's."""
        return self.lm_head

    def enable_input_require_grads(self) -> None:
        """Nothing to do: the borrowed embeddings stay frozen, and checkpointing needs no gradient of theirs."""

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings in the drafter's dtype, `(..., hidden)`."""
        embedding = self._vocabulary_module("embed_tokens")
        return embedding(input_ids.to(compute_device(embedding))).to(device=self.device, dtype=self.fc.weight.dtype)

    def base_logits(self, hidden: Tensor) -> Tensor:
        """The target's output head on block hidden states: `(..., hidden)` to logits over the draft vocabulary."""
        head = self._vocabulary_module("lm_head")
        return head(hidden.to(device=compute_device(head), dtype=head.weight.dtype)).to(self.device)

    @property
    def head_weight(self) -> Tensor:
        """Weight `(draft_vocab, hidden)` of the output head in use."""
        return self._vocabulary_module("lm_head").weight

    def _vocabulary_module(self, name: str) -> nn.Module:
        module = getattr(self, name) if self.borrowed is None else getattr(self.borrowed, name)
        if module is None:
            raise ValueError(
                f"This drafter (made for {self.config.target_name_or_path or 'an unnamed target'}) has no embedding "
                "and no output head of its own; bind it to its target first: drafter.bind(target)."
            )
        return module

    def project(self, features: Tensor) -> Tensor:
        """Features `(batch, tokens, taps * hidden)` to context states `(batch, tokens, hidden)`."""
        if features.shape[-1] != self.fc.in_features:
            raise ValueError(
                f"features have width {features.shape[-1]}, but this drafter reads "
                f"{len(self.config.target_layer_ids)} taps of width {self.config.hidden_size} "
                f"({self.fc.in_features} in all)."
            )
        return self.hidden_norm(self.fc(features.to(device=self.device, dtype=self.fc.weight.dtype)))

    def _decode(self, hidden: Tensor, positions: Tensor, context, mask: Tensor | None) -> Tensor:
        rope = self.rotary_emb(hidden, positions)
        if mask is not None and self.config.decoder_config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=context,
                position_embeddings=rope,
                is_causal=False,
            )
        return self.norm(hidden)

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
        rope = self.rotary_emb(context, torch.arange(context.shape[1], device=context.device).unsqueeze(0))
        key_values = [self.family.context_kv(layer.self_attn, context, rope) for layer in self.layers]

        offsets = torch.arange(block_size, device=anchors.device)
        positions = (anchors.unsqueeze(-1) + offsets).flatten(1)  # [B, A*G]
        hidden = self._embed_blocks(input_ids.gather(1, anchors).flatten()).view(batch_size, positions.shape[1], -1)
        mask = training_mask(anchors, anchor_mask, context.shape[1], block_size)
        hidden = self._decode(hidden, positions, TrainingContext(key_values), mask)
        hidden = hidden.view(batch_size, num_anchors, block_size, -1)[:, :, block_size - self.config.num_slots :]

        previous = positions.view(batch_size, num_anchors, block_size)[..., : self.config.num_slots]
        previous = previous.clamp_max(input_ids.shape[1] - 1).flatten(1)
        prev_ids = input_ids.gather(1, previous).view(batch_size, num_anchors, -1)  # [B, A, n]
        output = BlockOutput(hidden, self._markov_states(prev_ids, hidden), self._confidence(hidden, prev_ids))
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
            vector, state = self.markov_head.step(prev_ids[..., slot], hidden[..., slot, :], state)
            states.append(vector)
        return torch.stack(states, -2)

    def _confidence(self, hidden: Tensor, prev_ids: Tensor) -> Tensor | None:
        if self.confidence_head is None:
            return None
        embeds = self.markov_head.markov_w1(prev_ids) if self.config.confidence_head_with_markov else None
        return self.confidence_head(hidden, embeds)

    def start(self, batch_size: int) -> DraftState:
        """An empty context for `batch_size` rows."""
        return DraftState(batch_size, len(self.layers))

    @torch.no_grad()
    def extend(self, state: DraftState, features: Tensor, counts: Sequence[int] | None = None) -> None:
        """Append tapped states to the context.

        Args:
            state ([`DraftState`]): The context, changed in place.
            features (`torch.Tensor` of shape `(batch, tokens, taps * hidden)`): Tapped states of the next positions.
            counts (`Sequence[int]`, *optional*): How many of the tokens each row keeps; all, if not given.
        """
        num_tokens = features.shape[1]
        context = self.project(features)
        rope = self.rotary_emb(context, state.positions(num_tokens, context.device))
        for index, layer in enumerate(self.layers):
            state.update(*self.family.context_kv(layer.self_attn, context, rope), index)
        state.advance([num_tokens] * features.shape[0] if counts is None else counts)

    @torch.no_grad()
    def propose(
        self, state: DraftState, anchor_ids: Tensor, pick: PickFn | None = None, num_slots: int | None = None
    ) -> Proposal:
        """Draft one block behind each row's anchor, which stands right after the row's context.

        Args:
            state ([`DraftState`]): The context; it is not changed.
            anchor_ids (`torch.LongTensor` of shape `(batch,)`): The last known token of each row.
            pick (`Callable`, *optional*): Chooses a slot's token from its logits over all tokens and the ids drafted
                before it. Without it the most likely token is taken, which spares the tokens that a reduced vocabulary
                lacks.
            num_slots (`int`, *optional*): Draft only the first slots, 1 to `config.num_slots`.

        Raises:
            `ValueError`: If `num_slots` is out of range.
        """
        num_slots = self.config.num_slots if num_slots is None else num_slots
        if not 1 <= num_slots <= self.config.num_slots:
            raise ValueError(f"num_slots must be 1 to {self.config.num_slots} for this drafter, got {num_slots}.")
        hidden = self.block_hidden(state, anchor_ids)[:, :num_slots]  # [B, n, E]
        logits = self.base_logits(hidden)  # [B, n, V]
        tokens = entry_tokens(self.d2t) if self.has_reduced_vocabulary else None
        prev_ids, markov_state, probs = anchor_ids, None, []
        ids = anchor_ids.new_empty(anchor_ids.shape[0], num_slots)
        for slot in range(num_slots):
            slot_logits = logits[:, slot]
            if self.markov_head is not None:
                vector, markov_state = self.markov_head.step(prev_ids, hidden[:, slot], markov_state)
                slot_logits = slot_logits + self.markov_head.markov_w2(vector)
            if pick is None:
                # The index of max() is that of argmax(), which is several times as slow in bfloat16 on a CPU.
                entries = slot_logits.max(-1).indices
                prev_ids, slot_probs = entries if tokens is None else tokens[entries], None
            else:
                if tokens is not None:
                    slot_logits = expand_logits(slot_logits, tokens, self.config.vocab_size)
                prev_ids, slot_probs = pick(slot_logits, ids[:, :slot])
            ids[:, slot] = prev_ids
            probs.append(slot_probs)
        confidence = self._confidence(hidden, torch.cat([anchor_ids.unsqueeze(1), ids[:, :-1]], 1))
        return Proposal(ids, None if probs[0] is None else torch.stack(probs, 1), confidence)

    @torch.no_grad()
    def block_hidden(self, state: DraftState, anchor_ids: Tensor) -> Tensor:
        """Block hidden states `(batch, slots, hidden)` after the final norm, before any head."""
        block_size = self.config.block_size
        positions = state.positions(block_size, anchor_ids.device)
        mask = state.block_mask(block_size, anchor_ids.device)
        hidden = self._decode(self._embed_blocks(anchor_ids), positions, state, mask)
        return hidden[:, block_size - self.config.num_slots :]
