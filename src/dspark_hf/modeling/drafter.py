"""DraftModel: what all drafters share, the features they read and the vocabulary they borrow.

Shapes: B batch, L taps, E hidden size, V vocabulary, n slots.
"""

import json
import os
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.utils import logging

from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.output_head import OutputHead, shape_logits
from dspark_hf.publishing import push_model
from dspark_hf.publishing.engines import Checkpoint, not_served

from .borrowing import Borrowed, check_fit, logit_softcap
from .configuration.drafter import DraftConfig
from .context import DraftState
from .drafting import PickFn
from .families import get_family
from .placement import compute_device, compute_dtype
from .vocabulary import check_vocabulary, entry_tokens, token_entries, vocabulary_buffers
from .wrappers import unwrap

logger = logging.get_logger(__name__)


class DraftModel(PreTrainedModel):
    """A drafter.

    It holds no embedding and no output head: [`DraftModel.bind`] borrows the target's, and saving leaves them out.
    A checkpoint that carries copies can be loaded with them (`own_embeddings=True`, which `AutoDrafter` finds out).

    A subclass says how blocks are drafted: `forward` for training, `start`, `extend` and `propose` for decoding.

    Args:
        config ([`DraftConfig`]): The configuration.
        own_embeddings (`bool`, *optional*, defaults to `False`): Whether to hold an embedding and a head.
    """

    config: DraftConfig
    config_class = DraftConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    is_drafter = True
    reads_tokens = False  # whether extend() needs the tokens beside their features
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = [
        r"^embed_tokens\.",
        r"^lm_head\.",
        r"^verifier_(norm|lm_head)\.",
        r"rotary_emb\.inv_freq",
    ]

    def __init__(self, config: DraftConfig, own_embeddings: bool = False):
        decoder, hidden_size = config.decoder_config, config.hidden_size
        self.family = get_family(decoder.model_type)
        # transformers asks for these while it makes and loads a model.
        self._supports_sdpa = not self.family.has_sinks
        self._keep_in_fp32_modules_strict = self.family.float32_names
        self.family.check_attention(config._attn_implementation)
        super().__init__(config)
        decoder._attn_implementation = config._attn_implementation
        decoder._experts_implementation = config._experts_implementation
        self.fc = nn.Linear(len(config.target_layer_ids) * hidden_size, hidden_size, bias=False)
        self.input_norm: nn.Module | None = None  # of all features, before fc
        self.norm = self.family.norm_cls(hidden_size, eps=decoder.rms_norm_eps)
        self.rotary_emb = self.family.rotary(decoder)
        self.num_outputs = num_outputs = config.draft_vocab_size or config.vocab_size
        if self.has_reduced_vocabulary:
            # The first tokens, until choose_vocabulary or a checkpoint says otherwise.
            self.register_buffer("t2d", torch.arange(config.vocab_size) < num_outputs)
            self.register_buffer("d2t", torch.zeros(num_outputs, dtype=torch.int64))
        has_head, has_embedding = own_embeddings or config.own_lm_head, own_embeddings or config.own_embed_tokens
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden_size) if has_embedding else None
        self.lm_head = nn.Linear(hidden_size, num_outputs, bias=False) if has_head else None
        own = {"embed_tokens.weight": config.own_embed_tokens, "lm_head.weight": config.own_lm_head}
        self._keys_to_ignore_on_save = [name for name, is_own in own.items() if not is_own]
        self.borrowed: Borrowed | None = None
        self.calibration: Any = None  # of the confidence head, if it was loaded with one
        self.last_stats = None

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kwargs: Any) -> None:
        """As of [`~transformers.PreTrainedModel.set_attn_implementation`].

        Args:
            attn_implementation (`str` or `dict`): Its name, or names by part.
            args, kwargs: As there.

        Raises:
            `ValueError`: If it would drop the attention sinks of the draft layers.
        """
        is_dict = isinstance(attn_implementation, dict)
        for name in attn_implementation.values() if is_dict else [attn_implementation]:
            self.family.check_attention(name)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        self.family.init_weights(module, self.config.initializer_range)
        if module is self.rotary_emb:
            # Loading leaves frequencies empty, and knows how to fill in only those of families with one table.
            for name, buffer in self.family.rotary(self.config.decoder_config).named_buffers():
                initialization.copy_(getattr(module, name), buffer)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if any(buffer.dtype != torch.float32 for buffer in self.rotary_emb.buffers()):
            # Rounded frequencies would turn far positions by wrong angles, and loading would not round them.
            self.rotary_emb = self.family.rotary(self.config.decoder_config).to(self.device)
        return self

    @classmethod
    def from_target(cls, target: PreTrainedModel, **fields) -> "DraftModel":
        """A fresh drafter for a target, bound to it, in the target's dtype and on its device.

        Args:
            target (`PreTrainedModel`): The target.
            fields: See [`DraftConfig.from_target`].

        Returns:
            [`DraftModel`] of this class, with random weights.
        """
        target = unwrap(target)
        model = cls(cls.config_class.from_target(target, **fields))
        device = compute_device(target.get_input_embeddings())
        return model.to(device=device, dtype=target.dtype).bind(target)

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
    def is_gradient_checkpointing(self) -> bool:
        """Without the warning of transformers, since it is PEFT that asks by this name, for each adapter."""
        return self.is_activation_checkpointing

    @property
    def has_reduced_vocabulary(self) -> bool:
        """Whether only some of the target's tokens can be drafted."""
        return self.config.draft_vocab_size is not None

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

    def bind(self, target: PreTrainedModel, check_name: bool = True) -> "DraftModel":
        """Borrow the target's embedding and output head, in place of any copies of its own.

        What was trained with the drafter (`config.own_lm_head`, `config.own_embed_tokens`) stays.

        Args:
            target (`PreTrainedModel`): The target to draft for, or a PEFT or compiled wrapper around it.
            check_name (`bool`, *optional*, defaults to `True`): Whether a drafter made for another target is refused.

        Returns:
            [`DraftModel`]: Itself.

        Raises:
            `ValueError`: If drafter and target do not fit, whom the message names, or a reduced vocabulary is none.
        """
        target = unwrap(target)
        if self.has_reduced_vocabulary:
            check_vocabulary(self.t2d, self.d2t)
        check_fit(self.config, target, check_name=check_name)
        if self.config.num_target_layers is None:
            self.config.num_target_layers = target.config.get_text_config().num_hidden_layers
        self.borrowed = self._borrow(target)
        if not self.config.own_embed_tokens:
            self.embed_tokens = None
        if not self.config.own_lm_head:
            self.lm_head = None
        return self

    def _borrow(self, target: PreTrainedModel) -> Borrowed:
        copies_rows = self.has_reduced_vocabulary and not self.config.own_lm_head
        return Borrowed(target, entry_tokens(self.d2t) if copies_rows else None)

    def start(self, batch_size: int) -> DraftState:
        """An empty context for a generation, which drafts with the target's weights of now.

        Args:
            batch_size (`int`): Rows.

        Returns:
            [`DraftState`]: For `extend` and `propose`.
        """
        if self.borrowed is not None:
            self.borrowed.renew()
        return self._empty_context(batch_size)

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save the drafter in the flat layout, and say which engines will not serve it, once for each reason.

        Args:
            save_directory (`str` or `os.PathLike`): The folder, made where there is none.
            is_main_process (`bool`, *optional*, defaults to `True`): Whether this process is the one that writes.
            kwargs: As of [`~transformers.PreTrainedModel.save_pretrained`].
        """
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.tell_engines()

    def tell_engines(self) -> None:
        """Warn of the engines that will not serve what `save_pretrained` writes, once for each reason."""
        for told in not_served(Checkpoint(json.loads(self.config.to_json_string()))):
            logger.warning_once(told)

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Upload the drafter in the flat layout, with a card, in one commit.

        Args:
            repo_id (`str`): The repository, made where there is none.
            options: `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr`,
                `max_shard_size`, `tags`; see [`~publishing.push_model`].

        Returns:
            `CommitInfo`: With `commit_url` and `oid`.

        Raises:
            `ValueError`: If the Hub refuses; the message says what to do.
        """
        return push_model(self, repo_id, **options)

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

    def enable_input_require_grads(self) -> None:
        """Nothing to do: the borrowed embeddings stay frozen, and checkpointing needs no gradient of theirs."""

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
        tokens = entry_tokens(self.d2t) if self.has_reduced_vocabulary else slice(self.num_outputs)
        return self.borrowed.head_rows(tokens)

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

    def rope(self, hidden: Tensor, positions: Tensor, layer_type: str = "full_attention") -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions for the draft layers of a type.

        Args:
            hidden (`torch.Tensor` of shape `(batch, tokens, hidden)`): States, for their dtype and device.
            positions (`torch.LongTensor` of shape `(batch, tokens)`): Places in the text, from 0.
            layer_type (`str`, *optional*, defaults to `"full_attention"`): Or `"sliding_attention"`.

        Returns:
            Two `torch.Tensor` of shape `(batch, tokens, head_dim)`, in the dtype of `hidden`.
        """
        return self.family.rope(self.rotary_emb, hidden, positions, layer_type)

    def project(self, features: Tensor) -> Tensor:
        """Tapped states to states of the drafter's width.

        Args:
            features (`torch.Tensor` of shape `(batch, tokens, taps * hidden)`): Outputs of the tapped layers, side by
                side, in any floating dtype.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, hidden)`, in the drafter's dtype.

        Raises:
            `ValueError`: If the features have another width.
        """
        if features.shape[-1] != self.fc.in_features:
            raise ValueError(
                f"features have width {features.shape[-1]}, but this drafter reads "
                f"{len(self.config.target_layer_ids)} taps of width {self.config.hidden_size} "
                f"({self.fc.in_features} in all). Give the outputs of layers {self.config.target_layer_ids}, "
                "side by side."
            )
        features = features.to(device=self.device, dtype=self.fc.weight.dtype)
        return self.fc(features if self.input_norm is None else self.input_norm(features))

    def _attention_mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """A boolean mask in the form that the attention in use takes."""
        if mask is None or self.config.decoder_config._attn_implementation != "eager":
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    def _slots_to_draft(self, num_slots: int | None) -> int:
        num_slots = self.config.num_slots if num_slots is None else num_slots
        if not 1 <= num_slots <= self.config.num_slots:
            raise ValueError(f"num_slots must be 1 to {self.config.num_slots} for this drafter, got {num_slots}.")
        return num_slots

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

    def _choose(
        self, logits: Tensor, entries: Tensor | None, drafted_ids: Tensor, pick: PickFn | None
    ) -> tuple[Tensor, Candidates | None, Tensor]:
        """A slot's tokens `(batch,)`, what they were drawn from, and its largest probability `(batch,)`.

        Logits `(batch, k)` are those of some entries.
        """
        if pick is None:
            # The index of max() is that of argmax(), which is several times as slow in bfloat16 on a CPU.
            places, probs = logits.max(-1).indices, None
        else:
            token_ids = self._entry_tokens(entries, logits)
            places, probs = pick(logits, token_ids, drafted_ids)
        chosen = places if entries is None else entries.gather(1, places.unsqueeze(1)).squeeze(1)
        ids = self._entry_tokens(chosen, logits)
        if probs is not None:
            return ids, Candidates(token_ids, probs), probs.amax(-1)
        logits = logits.float()
        return ids, None, (logits.amax(-1) - logits.logsumexp(-1)).exp()

    def _entry_tokens(self, entries: Tensor | None, logits: Tensor) -> Tensor:
        """Tokens of entries of the draft vocabulary; of all, `(batch, draft_vocab)` without storage, if not given."""
        tokens = entry_tokens(self.d2t) if self.has_reduced_vocabulary else None
        if entries is not None:
            return entries if tokens is None else tokens[entries]
        tokens = torch.arange(logits.shape[-1], device=logits.device) if tokens is None else tokens
        return tokens.expand(logits.shape)
