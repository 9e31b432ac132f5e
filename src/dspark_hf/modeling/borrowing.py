"""What a drafter takes from its target, and whether the two fit."""

from types import NoneType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from dspark_hf.ops.output_head import OutputHead

from .configuration.drafter import DraftConfig, check_taps
from .fingerprint import target_fingerprint
from .placement import loaded


class Borrowed:
    """The target's modules a drafter uses without owning: not registered, not saved or pickled, shared by deep copies.

    Args:
        target (`PreTrainedModel`): The target.
        token_ids (`torch.LongTensor` of shape `(draft_vocab,)`, *optional*): Rows of the output head to use; a copy of
            them is made, for speed. All rows of the target's own head, if not given.
    """

    def __init__(self, target: PreTrainedModel, token_ids: Tensor | None = None):
        self.target = target
        self.embed_tokens: nn.Module = target.get_input_embeddings()
        self._whole_head: nn.Module = target.get_output_embeddings()
        self.lm_head = self._whole_head if token_ids is None else _select_rows(self._whole_head, token_ids)
        self.logit_shape = logit_scale(target.config), logit_softcap(target.config)
        self._target_rows: nn.Module | None = None

    def target_rows(self, token_ids: Tensor | None) -> nn.Module:
        """Rows of the target's output head, for training a drafter with another head; a copy that is made once."""
        if token_ids is None:
            return self._whole_head
        if self._target_rows is None:
            self._target_rows = _select_rows(self._whole_head, token_ids)
        return self._target_rows

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
    """The soft cap that a target of this config puts on its logits, as Gemma does."""
    return getattr(config.get_text_config(), "final_logit_softcapping", None)


def logit_scale(config: PreTrainedConfig) -> float:
    """What a target of this config multiplies its output head's logits with, as Cohere, Falcon-H1 and Granite do."""
    config = config.get_text_config()
    for name in ("logit_scale", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None) or 1.0
    # Granite and MiniCPM3 divide by what goes by the same name elsewhere.
    return scaling if config.model_type == "hyperclovax" else 1.0 / scaling


def output_head(target: PreTrainedModel) -> OutputHead:
    """The output head of a target, with what follows it."""
    return OutputHead(target.get_output_embeddings().weight, logit_scale(target.config), logit_softcap(target.config))


def _select_rows(head: nn.Linear, token_ids: Tensor) -> nn.Linear:
    selected = nn.Linear(head.in_features, len(token_ids), bias=head.bias is not None, device="meta")
    with loaded(head):
        rows = token_ids.to(head.weight.device)
        selected.weight = nn.Parameter(head.weight.detach()[rows], requires_grad=False)
        if head.bias is not None:
            selected.bias = nn.Parameter(head.bias.detach()[rows], requires_grad=False)
    return selected


def check_fit(config: DraftConfig, target: PreTrainedModel, *, check_name: bool = True) -> None:
    """Check that a drafter can read this target.

    Args:
        config ([`DraftConfig`]): The drafter's configuration.
        target (`PreTrainedModel`): The target.
        check_name (`bool`, *optional*, defaults to `True`): Whether a drafter made for another target is refused.

    Raises:
        `ValueError`: If sizes differ, a tap is out of range, or the drafter was made for another target.
    """
    text_config = target.config.get_text_config()
    target_name = target.name_or_path or type(target).__name__
    sides = f"drafter (made for {config.target_name_or_path or 'an unnamed target'}) and target ({target_name})"
    for what, ours, theirs in (
        ("vocabulary", config.vocab_size, text_config.vocab_size),
        ("hidden size", config.hidden_size, text_config.hidden_size),
        ("number of target layers", config.num_target_layers, text_config.num_hidden_layers),
        ("soft cap on the logits", logit_softcap(config.decoder_config), logit_softcap(text_config)),
    ):
        if ours is not None and ours != theirs:
            raise ValueError(
                f"The {what} differs between {sides}: {ours} and {theirs}. Use the drafter that was trained for this "
                "target, or train one: DSparkModel.from_target(target)."
            )
    check_taps(config.target_layer_ids, text_config.num_hidden_layers)
    if target.get_output_embeddings() is None:
        raise ValueError(f"{sides} do not fit: the target has no output head. Load it with AutoModelForCausalLM.")
    if check_name and config.target_name_or_path is not None and not is_made_for(config, target):
        raise ValueError(
            f"This drafter was made for {config.target_name_or_path}, and {target_name} is another model: neither "
            "name nor weights agree. Drafts would be exact but rarely accepted. Load the drafter of this target; for "
            "a fine-tuned or merged target pass SpeculationConfig(check_target=False), and to train the drafter for "
            "it call drafter.bind(target, check_name=False) first."
        )


def is_made_for(config: DraftConfig, target: PreTrainedModel) -> bool:
    """Whether a drafter was made for this target, by its name or its fingerprint."""
    # A folder may hold a copy under any name, and a repository may be re-trained under its old one: either is enough.
    name = config.target_name_or_path
    if target.name_or_path and name and _last_part(name) == _last_part(target.name_or_path):
        return True
    fingerprint = target_fingerprint(target)
    if config.target_fingerprint is None or fingerprint is None:
        return not target.name_or_path
    return fingerprint == config.target_fingerprint


def _last_part(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
