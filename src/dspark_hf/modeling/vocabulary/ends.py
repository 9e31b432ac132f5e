"""Where a drafter deals in tokens: its embedding and its output head, the target's or its own, and its vocabulary.

Shapes: V target vocabulary, D draft vocabulary, E hidden size.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dspark_hf.modeling.borrowing import Borrowed, logit_softcap
from dspark_hf.modeling.configuration.drafter import DraftConfig
from dspark_hf.modeling.drafting import BlockDraft, PickFn
from dspark_hf.modeling.families import Family
from dspark_hf.modeling.placement import compute_device, compute_dtype
from dspark_hf.modeling.wrappers import unwrap
from dspark_hf.ops.output_head import OutputHead, shape_logits

from .reduced import entry_tokens, token_entries, vocabulary_buffers


class TokenEnds(PreTrainedModel):
    """The ends of a [`DraftModel`]: tokens to states, and states to logits over what it can propose.

    Both are the target's, but for copies that a checkpoint carries and what was trained with the drafter.
    """

    config: DraftConfig
    family: Family

    def _make_ends(self, config: DraftConfig, own_embeddings: bool) -> None:
        """Make what the drafter holds itself: buffers of a reduced vocabulary, an embedding, a head."""
        self.num_outputs = num_outputs = config.draft_vocab_size or config.vocab_size
        if self.has_reduced_vocabulary:
            # The first tokens, until choose_vocabulary or a checkpoint says otherwise.
            self.register_buffer("t2d", torch.arange(config.vocab_size) < num_outputs)
            self.register_buffer("d2t", torch.zeros(num_outputs, dtype=torch.int64))
        has_head, has_embedding = own_embeddings or config.own_lm_head, own_embeddings or config.own_embed_tokens
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if has_embedding else None
        self.lm_head = nn.Linear(config.hidden_size, num_outputs, bias=False) if has_head else None
        own = {"embed_tokens.weight": config.own_embed_tokens, "lm_head.weight": config.own_lm_head}
        self._keys_to_ignore_on_save = [name for name, is_own in own.items() if not is_own]
        self.borrowed: Borrowed | None = None

    def choose_vocabulary(self, token_ids: Iterable[int]) -> None:
        """Say which tokens a reduced draft vocabulary stands for, before training.

        Args:
            token_ids (`Iterable[int]`): They, `config.draft_vocab_size` different ones.

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
            self.borrowed = self._borrow(self.borrowed.target)

    @property
    def has_reduced_vocabulary(self) -> bool:
        """Whether only some of the target's tokens can be drafted."""
        return self.config.draft_vocab_size is not None

    @property
    def draft_tokens(self) -> Tensor | None:
        """The token of each entry of a reduced vocabulary, int64 `(draft_vocab,)`; None where entries are tokens."""
        return entry_tokens(self.d2t) if self.has_reduced_vocabulary else None

    @property
    def knows_all_tokens(self) -> bool:
        """Whether the target has no tokens but the drafter's; some may have been added behind them."""
        return self.borrowed is None or self.borrowed.vocab_size <= self.config.vocab_size

    @property
    def proposes_all_tokens(self) -> bool:
        """Whether every token of the target is one that it can propose."""
        return self.knows_all_tokens and not self.has_reduced_vocabulary

    def entries_of(self, token_ids: Tensor) -> Tensor:
        """The output head's row for each token, -1 where it has none.

        Args:
            token_ids (`torch.LongTensor` of any shape): Tokens.

        Returns:
            `torch.LongTensor` of that shape.
        """
        known_ids = token_ids.clamp_max(self.config.vocab_size - 1)
        entries = token_entries(known_ids, self.t2d) if self.has_reduced_vocabulary else known_ids
        return entries if self.knows_all_tokens else torch.where(token_ids == known_ids, entries, -1)

    def _known(self, token_ids: Tensor) -> Tensor:
        """Tokens as the drafter's own tables take them: the last it knows in place of any that it does not."""
        return token_ids if self.knows_all_tokens else token_ids.clamp_max(self.config.vocab_size - 1)

    def _borrow(self, target: PreTrainedModel) -> Borrowed:
        return Borrowed(target, None if self.config.own_lm_head else self.draft_tokens)

    def is_bound_to(self, target: PreTrainedModel) -> bool:
        """Whether it borrows from this target, as the target is now.

        Args:
            target (`PreTrainedModel`): The target, or a PEFT or compiled wrapper around it.

        Returns:
            `bool`.
        """
        return self.borrowed is not None and self.borrowed.is_current(unwrap(target))

    def get_input_embeddings(self) -> nn.Module | None:
        """The drafter's own embedding; None where it borrows the target's."""
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module | None:
        """The drafter's own output head; None where it borrows the target's."""
        return self.lm_head

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings in the drafter's dtype, `(..., hidden)`.

        Args:
            input_ids (`torch.LongTensor` of shape `(...)`): Tokens.

        Returns:
            `torch.Tensor` of shape `(..., hidden)`.
        """
        embedding = self._vocabulary_module("embed_tokens")
        is_own = embedding is self.embed_tokens
        with torch.set_grad_enabled(is_own and torch.is_grad_enabled()):
            embeds = embedding((self._known(input_ids) if is_own else input_ids).to(compute_device(embedding)))
        scale = self.family.embed_scale(self.config.decoder_config)
        if is_own and scale != 1:
            embeds = embeds * torch.tensor(scale).to(embeds)  # rounded as in the target's own embedding
        return embeds.to(device=self.device, dtype=self.fc.weight.dtype)

    def base_logits(self, hidden: Tensor) -> Tensor:
        """The output head on block hidden states: `(..., hidden)` to logits over the draft vocabulary.

        Args:
            hidden (`torch.Tensor` of shape `(..., hidden)`): States behind the final norm.

        Returns:
            `torch.Tensor` of shape `(..., draft_vocab)`.
        """
        head = self._vocabulary_module("lm_head")
        # Of some slots of a block, a product would copy the whole head once per row.
        hidden = hidden.to(device=compute_device(head), dtype=compute_dtype(head, hidden.dtype)).contiguous()
        logits = head(hidden)[..., : self.num_outputs].to(self.device)
        return shape_logits(logits, *self._logit_shape())

    @property
    def head(self) -> OutputHead:
        """The output head in use: rows `(draft_vocab, hidden)`, which learn if they are its own, and what follows."""
        if self.lm_head is None and self.borrowed is not None:
            return self._borrowed_head()
        weight = self._vocabulary_module("lm_head").weight
        return OutputHead(weight if self.config.own_lm_head else weight.detach(), *self._logit_shape())

    @property
    def target_head(self) -> OutputHead:
        """The target's output head, for the tokens that the drafter can propose; `head`, unless that is its own."""
        return self._borrowed_head() if self.config.own_lm_head else self.head

    def _borrowed_head(self) -> OutputHead:
        tokens = self.draft_tokens
        return self.borrowed.head_rows(slice(self.num_outputs) if tokens is None else tokens)

    def _logit_shape(self) -> tuple[float, float | None]:
        """Scale and soft cap of the logits: the target's, with its output head."""
        if self.config.own_lm_head:
            return 1.0, None
        return (1.0, logit_softcap(self.config.decoder_config)) if self.borrowed is None else self.borrowed.logit_shape

    def _vocabulary_module(self, name: str) -> nn.Module:
        module = getattr(self, name)
        if module is None and self.borrowed is not None:
            module = getattr(self.borrowed, name)
        if module is None:
            raise ValueError(
                f"This drafter (made for {self.config.target_name_or_path or 'an unnamed target'}) has no embedding "
                "and no output head of its own; bind it to its target first: drafter.bind(target)."
            )
        return module

    def best_entries(self, logits: Tensor, num_candidates: int | None) -> tuple[Tensor, Tensor | None]:
        """The best of the output head's logits.

        Args:
            logits (`torch.Tensor` of shape `(..., draft_vocab)`): Logits.
            num_candidates (`int` or `None`): How many, k, are kept; all, if None.

        Returns:
            The logits `(..., k)` and their entries (int64, `(..., k)`); entries are None where all are kept.
        """
        if num_candidates is None or num_candidates >= logits.shape[-1]:
            return logits, None
        best = logits.topk(num_candidates, dim=-1)
        return best.values, best.indices

    def _draft(self, anchor_ids: Tensor, num_slots: int, pick: PickFn | None) -> BlockDraft:
        """A block behind anchors `(batch,)`, to be drafted slot by slot."""
        return BlockDraft(anchor_ids, num_slots, pick, self.draft_tokens)
