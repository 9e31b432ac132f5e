"""DSparkConfig, and DFlashConfig: the same drafter without heads."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from dspark_hf.modeling.drafting import LossWeights
from dspark_hf.modeling.families import get_family
from dspark_hf.ops.blocks import LayerView

from .drafter import DraftConfig


@strict
class DSparkConfig(DraftConfig):
    r"""
    Configuration of a DSpark drafter (paper, section 3).

    Args:
        block_size (`int`, *optional*, defaults to 7):
            Block inputs G: the anchor and G - 1 mask tokens.
        mask_token_id (`int`, *optional*, defaults to 0):
            Token whose embedding fills the block after the anchor.
        markov_rank (`int`, *optional*, defaults to 256):
            Rank r of the sequential head; 0 leaves it out.
        markov_head_type (`"vanilla"`, `"gated"`, `"rnn"` or `"domino"`, *optional*, defaults to `"vanilla"`):
            Form of the sequential head.
        gru_hidden_dim (`int`, *optional*):
            Size of the recurrence of a `"domino"` head, which has no other; as wide as the drafter, if not given.
        pure_draft_prefix_len (`int`, *optional*, defaults to 1):
            Slots at the block's start that a `"domino"` head gives no bias: 0 or 1.
        enable_confidence_head (`bool`, *optional*, defaults to `True`):
            Whether the drafter predicts which slots survive.
        confidence_head_with_markov (`bool`, *optional*, defaults to `True`):
            Whether the confidence head also reads the previous token's Markov embedding.
        sample_from_anchor (`bool`, *optional*, defaults to `True`):
            Whether the anchor's own output predicts slot 1. Where it is `False` (z-lab's DFlash), a block of G inputs
            gives G - 1 slots.
        is_causal (`bool`, *optional*):
            Whether a block input sees only the inputs before it, in every layer. If not given, it does so in sliding
            layers and sees the whole block in the others, as engines read checkpoints that do not tell;
            DeepSeek-V4's layers see it in any case.
        kwargs: The fields of [`DraftConfig`].

    Raises:
        `ValueError`: If a field is out of range; the message names the field and both sides.
    """

    model_type = "dspark"
    architecture_suffix = "DSparkModel"
    default_num_layers = 5
    length_field = "block_size"
    when_absent = {"markov_rank": 0, "enable_confidence_head": False, "confidence_head_with_markov": False}

    block_size: int = 7
    mask_token_id: int = 0
    markov_rank: int = 256
    markov_head_type: Literal["vanilla", "gated", "rnn", "domino"] = "vanilla"
    gru_hidden_dim: int | None = None
    pure_draft_prefix_len: int = 1
    enable_confidence_head: bool = True
    confidence_head_with_markov: bool = True
    sample_from_anchor: bool = True
    is_causal: bool | None = None

    def __post_init__(self, **kwargs):
        if self.markov_rank == 0:
            self.confidence_head_with_markov = False
        if self.markov_head_type == "domino":
            self.confidence_head_with_markov = False  # there is no table of tokens that it could read
        super().__post_init__(**kwargs)
        if self.markov_head_type == "domino" and self.gru_hidden_dim is None:
            self.gru_hidden_dim = self.hidden_size

    def _check_ranges(self) -> None:
        super()._check_ranges()
        if self.pure_draft_prefix_len not in (0, 1) or (self.gru_hidden_dim is not None and self.gru_hidden_dim < 1):
            raise ValueError(
                "pure_draft_prefix_len must be 0 or 1 and gru_hidden_dim at least 1, got "
                f"{self.pure_draft_prefix_len} and {self.gru_hidden_dim}."
            )
        if self.num_slots < 1:
            raise ValueError(
                f"block_size={self.block_size} with sample_from_anchor={self.sample_from_anchor} leaves no slot to "
                "draft; use a larger block."
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"mask_token_id={self.mask_token_id} lies outside the vocabulary of {self.vocab_size} tokens; "
                "choose a token that text does not contain."
            )
        if self.markov_rank < 0:
            raise ValueError(f"markov_rank must be >= 0, got {self.markov_rank}.")

    def _check_layer_types(self) -> None:
        super()._check_layer_types()
        window = getattr(self.decoder_config, "sliding_window", None)
        if "sliding_attention" in self.attention_types() and (window is None or window < self.block_size):
            raise ValueError(
                f"Draft layers of type 'sliding_attention' need a sliding_window of at least a block "
                f"(block_size={self.block_size}), got sliding_window={window}."
            )

    @classmethod
    def describes(cls, flat: dict[str, Any]) -> bool:
        return "block_size" in flat and bool(flat.get("markov_rank") or flat.get("enable_confidence_head"))

    @property
    def layer_views(self) -> list[LayerView]:
        """What the block inputs of each draft layer see."""
        sliding = [layer_type == "sliding_attention" for layer_type in self.attention_types()]
        window = getattr(self.decoder_config, "sliding_window", None)
        if get_family(self.decoder_config.model_type).has_anchored_window:
            return [LayerView(window if slides else None, bool(self.is_causal), slides) for slides in sliding]
        return [
            LayerView(window if slides else None, slides if self.is_causal is None else self.is_causal)
            for slides in sliding
        ]

    @property
    def num_slots(self) -> int:
        """Tokens a block proposes."""
        return self.block_size if self.sample_from_anchor else self.block_size - 1

    def to_diff_dict(self) -> dict[str, Any]:
        flat = super().to_diff_dict()
        if self.markov_rank == 0:
            del flat["markov_head_type"]
        if self.markov_head_type != "domino" or self.markov_rank == 0:
            del flat["pure_draft_prefix_len"]
            flat.pop("gru_hidden_dim", None)
        if not self.enable_confidence_head:
            del flat["confidence_head_with_markov"]
        return flat


@strict
class DFlashConfig(DSparkConfig):
    r"""
    Configuration of a DFlash drafter (https://arxiv.org/abs/2602.06036): DSpark's backbone, whose slots know nothing
    of each other, trained on cross-entropy alone. On disk it is a DSpark drafter without heads.

    Args:
        kwargs: The fields of [`DSparkConfig`]; there is neither a sequential nor a confidence head.

    Raises:
        `ValueError`: If a head is asked for, or a field is out of range.
    """

    model_type = "dflash"

    markov_rank: int = 0
    enable_confidence_head: bool = False
    confidence_head_with_markov: bool = False

    def _check_ranges(self) -> None:
        super()._check_ranges()
        if self.markov_rank or self.enable_confidence_head:
            raise ValueError(
                f"A DFlash drafter has no heads, got markov_rank={self.markov_rank} and "
                f"enable_confidence_head={self.enable_confidence_head}; use DSparkConfig for a drafter with heads."
            )

    @classmethod
    def describes(cls, flat: dict[str, Any]) -> bool:
        return "block_size" in flat and not super().describes(flat)

    @property
    def loss_weights(self) -> LossWeights:
        return LossWeights(ce_weight=1.0, tv_weight=0.0, confidence_weight=0.0)
