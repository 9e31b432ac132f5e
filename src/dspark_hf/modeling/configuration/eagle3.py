"""Eagle3Config."""

from math import inf, log
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from dspark_hf.messages import shown
from dspark_hf.modeling.drafting import LossWeights
from dspark_hf.modeling.families import DEFAULT_FAMILY, get_family

from .drafter import DraftConfig


@strict
class Eagle3Config(DraftConfig):
    r"""
    Configuration of an EAGLE-3 drafter (https://arxiv.org/abs/2503.01840): one decoder layer that drafts token by
    token.

    Args:
        ttt_length (`int`, *optional*, defaults to 7):
            Steps that training runs on the drafter's own states, and tokens of a proposal.
        step_loss_decay (`float`, *optional*, defaults to 0.8):
            Step k weighs `step_loss_decay ** (k - 1)` in training, whose loss is the cross-entropy to the target's
            distribution.
        norm_before_residual (`bool`, *optional*, defaults to `False`):
            Whether the residual stream starts from the normalised feature, as in some checkpoints of speculators.
        norm_before_fc (`bool`, *optional*, defaults to `False`):
            Whether the features of all taps are normalised together before they are projected, likewise.
        kwargs: The fields of [`DraftConfig`].

    Raises:
        `ValueError`: If a field is out of range; the message names the field and both sides.
    """

    model_type = "eagle3"
    architecture_suffix = "Eagle3Model"
    length_field = "ttt_length"

    ttt_length: int = 7
    step_loss_decay: float = 0.8
    norm_before_residual: bool = False
    norm_before_fc: bool = False

    def _check_ranges(self) -> None:
        super()._check_ranges()
        if self.ttt_length < 1 or not 0 < self.step_loss_decay <= 1:
            raise ValueError(
                f"ttt_length must be >= 1 and step_loss_decay above 0 and at most 1, got {self.ttt_length} and "
                f"{self.step_loss_decay}."
            )
        if not get_family(self.decoder_config.model_type).has_eagle3:
            raise ValueError(
                f"An EAGLE-3 drafter of {shown(self.decoder_config.model_type)} layers is not supported; make one "
                f"with family={DEFAULT_FAMILY!r}, or use DSparkConfig."
            )
        if self.num_hidden_layers != 1:
            raise ValueError(
                f"An EAGLE-3 drafter has one layer, got num_hidden_layers={self.num_hidden_layers}: deeper ones would "
                "need a pass over the whole context. Use DSparkConfig for a deeper drafter."
            )

    def _check_layer_types(self) -> None:
        if set(self.attention_types()) != {"full_attention"}:
            raise ValueError(
                f"The layer of an EAGLE-3 drafter sees the whole context, got layer_types={self.attention_types()}. "
                "Use DSparkConfig for a drafter with a sliding window."
            )

    @classmethod
    def default_family(cls, text_config: PreTrainedConfig) -> str:
        family = super().default_family(text_config)
        return family if get_family(family).has_eagle3 else DEFAULT_FAMILY

    @classmethod
    def describes(cls, flat: dict[str, Any]) -> bool:
        return "ttt_length" in flat

    @property
    def num_slots(self) -> int:
        """Tokens a proposal may have."""
        return self.ttt_length

    @property
    def loss_weights(self) -> LossWeights:
        # slot_weights() is exp(-(k - 1) / decay).
        decay = inf if self.step_loss_decay == 1 else -1 / log(self.step_loss_decay)
        return LossWeights(0.0, 0.0, 0.0, soft_ce_weight=1.0, slot_decay=decay)

    def to_diff_dict(self) -> dict[str, Any]:
        return super().to_diff_dict() | {"draft_num_hidden_layers": self.num_hidden_layers}

    @classmethod
    def _nest(cls, flat: dict[str, Any]) -> dict[str, Any]:
        return super()._nest({name: value for name, value in flat.items() if name != "draft_num_hidden_layers"})
