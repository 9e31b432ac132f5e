"""DSparkConfig: nested in memory, flat on disk (the layout of released checkpoints, which engines read)."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec

from .families import DEFAULT_FAMILY, FAMILIES, get_family
from .fingerprint import target_fingerprint
from .wrappers import unwrap


@strict
class DSparkConfig(PreTrainedConfig):
    r"""
    Configuration of a DSpark drafter (paper, section 3). With `markov_rank=0` and no confidence head it is a DFlash
    drafter that also samples from the anchor slot.

    Args:
        decoder_config (`PreTrainedConfig`):
            The draft decoder: a stock config of one of the families.
        block_size (`int`, *optional*, defaults to 7):
            Block inputs G: the anchor and G - 1 mask tokens.
        mask_token_id (`int`, *optional*, defaults to 0):
            Token whose embedding fills the block after the anchor.
        target_layer_ids (`list[int]`):
            Target layers whose raw outputs are the features, 0-based and ascending; never the last layer.
        num_target_layers (`int`):
            Layers of the target.
        num_anchors (`int`, *optional*, defaults to 512):
            Anchors sampled per sequence in training.
        markov_rank (`int`, *optional*, defaults to 256):
            Rank r of the sequential head; 0 leaves it out.
        markov_head_type (`"vanilla"`, `"gated"` or `"rnn"`, *optional*, defaults to `"vanilla"`):
            Form of the sequential head.
        enable_confidence_head (`bool`, *optional*, defaults to `True`):
            Whether the drafter predicts which slots survive.
        confidence_head_with_markov (`bool`, *optional*, defaults to `True`):
            Whether the confidence head also reads the previous token's Markov embedding.
        sample_from_anchor (`bool`, *optional*, defaults to `True`):
            Whether the anchor's own output predicts slot 1. Where it is `False` (z-lab's DFlash), a block of G inputs
            gives G - 1 slots.
        draft_vocab_size (`int`, *optional*):
            Tokens the drafter can propose, if it has a reduced vocabulary; all, if not given. The checkpoint then
            holds `t2d` and `d2t`, which say which tokens these are.
        target_name_or_path (`str`, *optional*):
            The target this drafter was made for.
        target_fingerprint (`str`, *optional*):
            Digest of some of that target's weights ([`target_fingerprint`]).

    Raises:
        `ValueError`: If a field is out of range; the message names the field and both sides.
    """

    model_type = "dspark"
    sub_configs_defaults = {"decoder_config": SubConfigSpec(config_class=AutoConfig, model_type=DEFAULT_FAMILY)}

    decoder_config: PreTrainedConfig | dict | None = None
    block_size: int = 7
    mask_token_id: int = 0
    target_layer_ids: list[int] | None = None
    num_target_layers: int | None = None
    num_anchors: int = 512
    markov_rank: int = 256
    markov_head_type: Literal["vanilla", "gated", "rnn"] = "vanilla"
    enable_confidence_head: bool = True
    confidence_head_with_markov: bool = True
    sample_from_anchor: bool = True
    draft_vocab_size: int | None = None
    target_name_or_path: str | None = None
    target_fingerprint: str | None = None

    def __post_init__(self, **kwargs):
        if self.target_layer_ids is None:
            self.target_layer_ids = [0]
        if self.num_target_layers is None:
            self.num_target_layers = max(self.target_layer_ids) + 2
        if self.markov_rank == 0:
            self.confidence_head_with_markov = False
        super().__post_init__(**kwargs)
        self._check_ranges()

    def _check_ranges(self) -> None:
        taps, last = self.target_layer_ids, self.num_target_layers - 1
        if not taps or any(not 0 <= tap < last for tap in taps) or sorted(set(taps)) != list(taps):
            raise ValueError(
                f"target_layer_ids must be ascending ids from 0 to {last - 1} for a target of "
                f"{self.num_target_layers} layers (its last layer, {last}, is read after the final norm "
                f"and cannot be tapped), got {taps}."
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
        if self.draft_vocab_size is not None and not 1 <= self.draft_vocab_size <= self.vocab_size:
            raise ValueError(
                f"draft_vocab_size={self.draft_vocab_size} must be 1 to {self.vocab_size}, the target's vocabulary."
            )
        if self.markov_rank < 0 or self.num_anchors < 1:
            raise ValueError(
                f"markov_rank must be >= 0 and num_anchors >= 1, got {self.markov_rank} and {self.num_anchors}."
            )

    @property
    def num_slots(self) -> int:
        """Tokens a block proposes."""
        return self.block_size if self.sample_from_anchor else self.block_size - 1

    # generate() and pipelines read these from the assistant's config.
    @property
    def vocab_size(self) -> int:
        return self.decoder_config.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.decoder_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.decoder_config.num_hidden_layers

    @property
    def initializer_range(self) -> float:
        return self.decoder_config.initializer_range

    @property
    def bos_token_id(self) -> int | None:
        return self.decoder_config.bos_token_id

    @property
    def eos_token_id(self) -> int | list[int] | None:
        return self.decoder_config.eos_token_id

    @property
    def pad_token_id(self) -> int | None:
        return self.decoder_config.pad_token_id

    @classmethod
    def from_target(
        cls,
        target: PreTrainedModel | PreTrainedConfig,
        *,
        family: str | None = None,
        num_hidden_layers: int = 5,
        num_taps: int = 5,
        **overrides: Any,
    ) -> "DSparkConfig":
        """A drafter config that fits a target.

        Args:
            target (`PreTrainedModel` or `PreTrainedConfig`):
                The target. From a model its name and fingerprint are recorded too.
            family (`str`, *optional*):
                Shape of the draft layers. Defaults to the target's own where it has a family here, else `"qwen3"`.
            num_hidden_layers (`int`, *optional*, defaults to 5):
                Draft layers.
            num_taps (`int`, *optional*, defaults to 5):
                Tapped layers, spread evenly, if `target_layer_ids` is not given.
            overrides:
                Fields of this class, or of the draft decoder's config (e.g. `intermediate_size`).

        Raises:
            `ValueError`: If a field is unknown or out of range.
        """
        target = unwrap(target)
        config = target if isinstance(target, PreTrainedConfig) else target.config
        text_config = config.get_text_config()
        family = get_family(
            family or (text_config.model_type if text_config.model_type in FAMILIES else DEFAULT_FAMILY)
        )
        own = {name: value for name, value in overrides.items() if name in _OWN_FIELDS}
        decoder_fields = {name: value for name, value in overrides.items() if name not in _OWN_FIELDS}
        if unknown := sorted(set(decoder_fields) - {field.name for field in fields(family.config_cls)}):
            raise ValueError(
                f"Unknown drafter fields {unknown}. A drafter takes {sorted(_OWN_FIELDS)} and the fields of "
                f"{family.config_cls.__name__}."
            )
        num_layers = text_config.num_hidden_layers
        own.setdefault("target_layer_ids", spread_taps(num_layers, num_taps))
        own.setdefault("mask_token_id", text_config.vocab_size - 1)
        own.setdefault("num_target_layers", num_layers)
        if isinstance(target, PreTrainedModel):
            own.setdefault("target_name_or_path", _public_name(target.name_or_path))
            own.setdefault("target_fingerprint", target_fingerprint(target))
        return cls(decoder_config=family.decoder_config(text_config, num_hidden_layers, **decoder_fields), **own)

    def name_target(self, target: PreTrainedModel) -> None:
        """Record another target, for which the drafter is trained from now on: its name and fingerprint."""
        self.target_name_or_path = _public_name(target.name_or_path)
        self.target_fingerprint = target_fingerprint(target)

    def to_diff_dict(self) -> dict[str, Any]:
        """The JSON form: decoder fields and drafter fields side by side (`config.json` of a released checkpoint)."""
        flat = self.decoder_config.to_diff_dict()
        flat |= {name: getattr(self, name) for name in _OWN_FIELDS - {"decoder_config"}}
        for name in ("dtype", "transformers_version"):
            flat[name] = super().to_diff_dict().get(name)
        if self.markov_rank == 0:
            del flat["markov_head_type"]
        if not self.enable_confidence_head:
            del flat["confidence_head_with_markov"]
        return {name: value for name, value in flat.items() if value is not None} | {
            "architectures": [get_family(self.decoder_config.model_type).architecture],
            "model_type": self.decoder_config.model_type,
            "tie_word_embeddings": False,
        }

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        if "decoder_config" not in config_dict and "target_layer_ids" in config_dict:
            config_dict = cls._nest(config_dict)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def _nest(cls, flat: dict[str, Any]) -> dict[str, Any]:
        family = get_family(flat.get("model_type", DEFAULT_FAMILY))
        shared = {"architectures", "dtype", "torch_dtype", "transformers_version"}
        own = {name: value for name, value in flat.items() if name in _OWN_FIELDS | shared}
        # A checkpoint without these names has no such head: they default to the released meaning, not to ours.
        own.setdefault("markov_rank", 0)
        own.setdefault("enable_confidence_head", False)
        own.setdefault("confidence_head_with_markov", False)
        decoder = {name: value for name, value in flat.items() if name not in _OWN_FIELDS | shared | {"model_type"}}
        return {**own, "decoder_config": family.config_cls(**decoder), "model_type": cls.model_type}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if "target_layer_ids" in config_dict and "decoder_config" not in config_dict:
            config_dict = cls._nest(config_dict)
        return config_dict, kwargs


def spread_taps(num_target_layers: int, num_taps: int) -> list[int]:
    """Evenly spaced taps from layer 1 to the third layer from the end: `[1, 9, 17, 25, 33]` of 36 (paper, 5.1).

    Raises:
        `ValueError`: If the target has fewer than two layers.
    """
    if num_target_layers < 2 or num_taps < 1:
        raise ValueError(
            f"A drafter taps layers below the last one: it needs a target of two layers or more and one tap or more, "
            f"got {num_target_layers} layers and num_taps={num_taps}."
        )
    first, last = min(1, num_target_layers - 2), max(min(1, num_target_layers - 2), num_target_layers - 3)
    steps = max(num_taps - 1, 1)
    return sorted({round(first + step * (last - first) / steps) for step in range(num_taps)})


def _public_name(name_or_path: str) -> str | None:
    # A folder's place on this machine tells others nothing; its name may.
    return (Path(name_or_path).name if Path(name_or_path).is_dir() else name_or_path) or None


_OWN_FIELDS = {field.name for field in fields(DSparkConfig)} - {field.name for field in fields(PreTrainedConfig)}
