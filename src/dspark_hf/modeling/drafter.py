"""DraftModel: what all drafters share, from the features they read to their way to the Hub."""

import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.utils import logging

from dspark_hf.files import follow_umask
from dspark_hf.publishing import push_model
from dspark_hf.publishing.engines import Checkpoint, not_served

from .borrowing import check_fit
from .configuration.drafter import DraftConfig
from .context import DraftState
from .families import get_family
from .placement import compute_device
from .vocabulary import check_vocabulary
from .vocabulary.ends import TokenEnds
from .wrappers import unwrap

logger = logging.get_logger(__name__)


class DraftModel(TokenEnds):
    """A drafter.

    It holds no embedding and no output head: [`DraftModel.bind`] borrows the target's, and saving leaves them out.
    A checkpoint that carries copies can be loaded with them (`own_embeddings=True`, which `AutoDrafter` finds out).

    A subclass says how blocks are drafted: `forward` for training, `extend_projected` and `propose` for decoding.

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
        self._make_ends(config, own_embeddings)
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

        Raises:
            `ValueError`: If the target is none that drafts can be made for, or a field cannot be used.
        """
        if isinstance(target, PreTrainedConfig):
            raise ValueError(
                f"A drafter borrows embedding and output head of its target, so from_target takes the model, got its "
                f"{type(target).__name__}. {cls.config_class.__name__}.from_target makes a drafter's config of it."
            )
        target = unwrap(target)
        model = cls(cls.config_class.from_target(target, **fields))
        device = compute_device(target.get_input_embeddings())
        return model.to(device=device, dtype=target.dtype).bind(target)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Without the warning of transformers, since it is PEFT that asks by this name, for each adapter."""
        return self.is_activation_checkpointing

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

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the drafter in the flat layout, with its calibration, and say which engines will not serve it.

        Args:
            save_directory (`str` or `os.PathLike`): The folder, made where there is none.
            is_main_process (`bool`, *optional*, defaults to `True`): Whether this process is the one that writes.
            push_to_hub (`bool`, *optional*, defaults to `False`): Refused; [`DraftModel.push_to_hub`] does it.
            kwargs: As of [`~transformers.PreTrainedModel.save_pretrained`].

        Raises:
            `ValueError`: If it is to be uploaded too.
        """
        if push_to_hub:
            raise ValueError("save_pretrained(push_to_hub=True) is not supported: call drafter.push_to_hub(repo_id).")
        if self.family.float32_names and is_main_process:
            tensors = kwargs.get("state_dict") or self.state_dict()
            kwargs["state_dict"] = self.family.to_store(tensors, self.dtype)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.save_calibration(save_directory)
            follow_umask(save_directory)
            self.tell_engines()

    def save_calibration(self, folder: str | os.PathLike) -> None:
        """Write what calibrates the confidence head into a folder, if there is such, and it is for these weights.

        Args:
            folder (`str` or `os.PathLike`): A folder that is there.
        """
        if self.calibration is None:
            return
        if self.calibration.is_of(self):
            self.calibration.save(folder)
        else:
            logger.warning(
                "The drafter's calibration is not saved: it was made for other weights than these. Make one with "
                "`dspark calibrate`."
            )

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

    def enable_input_require_grads(self) -> None:
        """Nothing to do: the borrowed embeddings stay frozen, and checkpointing needs no gradient of theirs."""

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

    @torch.no_grad()
    def extend(
        self, state: DraftState, features: Tensor, counts: Sequence[int] | None = None, ids: Tensor | None = None
    ) -> None:
        """Append tapped states to the context.

        Args:
            state ([`DraftState`]): The context, changed in place.
            features (`torch.Tensor` of shape `(batch, tokens, taps * hidden)`): Tapped states of the next positions.
            counts (`Sequence[int]`, *optional*): How many of the tokens each row keeps; all, if not given.
            ids (`torch.LongTensor` of shape `(batch, tokens)`, *optional*): These tokens, which an EAGLE-3 drafter
                reads.

        Raises:
            `ValueError`: If the features have another width, or `ids` are read and missing.
        """
        self.extend_projected(state, self.project(features), counts, ids)

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
