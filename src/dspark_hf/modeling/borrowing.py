"""What a drafter takes from its target, and whether the two fit."""

from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from dspark_hf.messages import cut
from dspark_hf.ops.output_head import OutputHead

from .configuration.drafter import DraftConfig
from .fingerprint import is_folder, target_fingerprint
from .placement import loaded
from .plain_head import plain_rows

logger = logging.get_logger(__name__)


class Borrowed:
    """The target's modules a drafter uses without owning: not registered, not saved or pickled, shared by deep copies.

    Args:
        target (`PreTrainedModel`): The target.
        token_ids (`torch.LongTensor` of shape `(draft_vocab,)`, *optional*): Rows of the output head to use, of which
            decoding has a copy, for speed. The target's own head, if not given.
    """

    def __init__(self, target: PreTrainedModel, token_ids: Tensor | None = None):
        self.target = target
        self.embed_tokens: nn.Module = target.get_input_embeddings()
        self._whole_head: nn.Module = target.get_output_embeddings()
        self._token_ids = token_ids
        self._copied_head: nn.Module | None = None
        self.logit_shape = logit_scale(target.config), logit_softcap(target.config)
        self.vocab_size: int = target.config.get_text_config().vocab_size

    @property
    def lm_head(self) -> nn.Module:
        """The output head to decode with."""
        if self._token_ids is not None and self._copied_head is None:
            self.renew()
        return self._whole_head if self._token_ids is None else self._copied_head

    def renew(self) -> None:
        """Copy the rows that decoding uses: the target may have changed since, by training or a merged adapter.

        Nothing tells that it has: weights changed through `.data` count no version. A copy costs little beside a pass.
        """
        if self._token_ids is None:
            return
        # What is made in inference mode cannot be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), loaded(self._whole_head):
            weight, bias = plain_rows(self._whole_head, slice(None))
            ids, copied = self._token_ids.to(weight.device), self._copied_head
            if copied is None or copied.weight.dtype != weight.dtype or copied.weight.device != weight.device:
                # Without values, for which random numbers would be drawn.
                copied = nn.Linear(weight.shape[1], len(ids), bias is not None, "meta", weight.dtype)
                self._copied_head = copied = copied.to_empty(device=weight.device).requires_grad_(False)
            # In place: compiled code goes on with the module that it has seen, and fresh memory would take longer.
            torch.index_select(weight, 0, ids, out=copied.weight)
            if bias is not None:
                copied.bias.copy_(bias[ids])

    def head_rows(self, rows: Tensor | slice) -> OutputHead:
        """The target's output head as it is now, for training, with what follows it.

        Args:
            rows (`torch.LongTensor` of shape `(rows,)` or `slice`): Which tokens' rows.
        """
        weight, bias = plain_rows(self._whole_head, rows)
        return OutputHead(weight, *self.logit_shape, bias)

    def is_current(self, target: PreTrainedModel) -> bool:
        """Whether these still are the modules of `target`; resizing its vocabulary, for one, replaces them."""
        return (
            self.target is target
            and self.embed_tokens is target.get_input_embeddings()
            and self._whole_head is target.get_output_embeddings()
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Borrowed":
        return self

    def __reduce__(self) -> tuple:
        # A drafter from a pickle is bound to no target yet.
        return NoneType, ()


def logit_softcap(config: PreTrainedConfig) -> float | None:
    """The soft cap that a target of this `config` puts on its logits, as Gemma does."""
    return getattr(config.get_text_config(), "final_logit_softcapping", None)


def logit_scale(config: PreTrainedConfig) -> float:
    """What a target of this `config` multiplies its head's logits with, as Cohere, Falcon-H1 and Granite do."""
    config = config.get_text_config()
    for name in ("logit_scale", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None) or 1.0
    # Granite and MiniCPM3 divide by what goes by the same name elsewhere.
    return scaling if config.model_type == "hyperclovax" else 1.0 / scaling


def output_head(target: PreTrainedModel) -> OutputHead:
    """The output head of a `target`, with what follows it.

    Raises:
        `ValueError`: If it holds its matrix in a form that it alone can read.
    """
    weight, bias = plain_rows(target.get_output_embeddings(), slice(None))
    return OutputHead(weight, logit_scale(target.config), logit_softcap(target.config), bias)


def check_fit(config: DraftConfig, target: PreTrainedModel, *, check_name: bool = True) -> None:
    """Check that a drafter can read this target.

    Args:
        config ([`DraftConfig`]): The drafter's configuration.
        target (`PreTrainedModel`): The target.
        check_name (`bool`, *optional*, defaults to `True`): Whether a drafter made for another target is refused.

    Raises:
        `ValueError`: If sizes differ, a tap is out of range, the drafter was made for another target, or the target is
            an encoder-decoder.
    """
    text_config = target.config.get_text_config()
    target_name = target.name_or_path or type(target).__name__
    if target.config.is_encoder_decoder:
        raise ValueError(
            f"A drafter needs a decoder-only target, and {target_name} is an encoder-decoder; generate without a "
            "drafter."
        )
    sides = _sides(config, target_name)
    check_target_sizes(config, text_config, target_name)
    config.check_length(getattr(text_config, "max_position_embeddings", None))
    if target.get_output_embeddings() is None:
        raise ValueError(f"{sides} do not fit: the target has no output head. Load it with AutoModelForCausalLM.")
    modules = (
        ("embedding", "embedding_dim", target.get_input_embeddings()),
        ("output head", "in_features", target.get_output_embeddings()),
    )
    for what, attribute, module in modules:
        width = getattr(module, attribute, config.hidden_size)
        if width != config.hidden_size:
            raise ValueError(
                f"The {what} of {target_name} is {width} wide and its layers are {config.hidden_size}, so a drafter "
                "cannot borrow it; generate without a drafter."
            )
    if check_name and config.target_name_or_path is not None:
        _check_name(config, target, target_name)


def _check_name(config: DraftConfig, target: PreTrainedModel, target_name: str) -> None:
    is_same = is_made_for(config, target)
    made_for = cut(config.target_name_or_path)
    if is_same is None:
        logger.warning_once(
            f"This drafter was made for {made_for}; whether {target_name} is the same model in another place is not "
            "known, since its weights cannot be compared. If few drafts are accepted, it is another."
        )
    elif not is_same:
        is_told = config.target_fingerprint is not None and target_fingerprint(target) is not None
        told = "neither name nor weights agree" if is_told else "the names differ, and its weights cannot be compared"
        raise ValueError(
            f"This drafter was made for {made_for}, and {target_name} is another model: "
            f"{told}. Drafts would be exact but rarely accepted. Load the drafter of this target; for "
            "a fine-tuned or merged target pass SpeculationConfig(check_target=False), and to train the drafter for "
            "it call drafter.bind(target, check_name=False) first."
        )


def check_target_sizes(config: DraftConfig, text_config: PreTrainedConfig, target_name: str) -> None:
    """Check that a drafter can read a target of this config.

    Args:
        config ([`DraftConfig`]): The drafter's configuration.
        text_config (`PreTrainedConfig`): That of the target's text part.
        target_name (`str`): The target's name, for messages.

    Raises:
        `ValueError`: If sizes differ, or a tap is out of range.
    """
    sides = _sides(config, target_name)
    # Tokens that were added behind those the drafter knows are no obstacle: it never proposes them.
    for what, ours, theirs in (
        ("vocabulary", config.vocab_size, min(config.vocab_size, text_config.vocab_size)),
        ("hidden size", config.hidden_size, text_config.hidden_size),
        ("number of target layers", config.num_target_layers, text_config.num_hidden_layers),
        ("soft cap on the logits", logit_softcap(config.decoder_config), logit_softcap(text_config)),
    ):
        if ours is not None and ours != theirs:
            raise ValueError(
                f"The {what} differs between {sides}: {ours} and {theirs}. Use the drafter that was trained for this "
                "target, or train one: DSparkModel.from_target(target)."
            )
    config.check_taps(text_config.num_hidden_layers)


def _sides(config: DraftConfig, target_name: str) -> str:
    return f"drafter (made for {config.target_name_or_path or 'an unnamed target'}) and target ({target_name})"


def is_made_for(config: DraftConfig, target: PreTrainedModel) -> bool | None:
    """Whether a drafter of this `config` was made for the `target`, by its name or its fingerprint.

    None where nothing tells: weights cannot be compared, and the names differ, one of which is a folder's alone.
    """
    # A folder may hold a copy under any name, and a repository may be re-trained under its old one: either is enough.
    ours, theirs = config.target_name_or_path, target.name_or_path
    if theirs and ours and _last_part(ours) == _last_part(theirs):
        return True
    has_more = target.config.get_text_config().vocab_size > config.vocab_size
    fingerprint = target_fingerprint(target, config.vocab_size if has_more else None)
    if config.target_fingerprint is not None and fingerprint is not None:
        return fingerprint == config.target_fingerprint
    # Where a folder's name is kept, it is the last part of its path.
    are_repositories = ours and theirs and "/" in ours and not is_folder(theirs)
    return not theirs or (False if are_repositories else None)


def _last_part(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
