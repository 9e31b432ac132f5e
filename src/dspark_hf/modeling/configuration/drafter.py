"""DraftConfig: what all drafters' configurations share; nested in memory, flat on disk.

The flat form puts the draft decoder's fields and the drafter's own side by side, as released checkpoints do and
serving engines read.
"""

from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec

from dspark_hf.messages import shown
from dspark_hf.modeling.drafting import LossWeights
from dspark_hf.modeling.families import DEFAULT_FAMILY, FAMILIES, get_family
from dspark_hf.modeling.fingerprint import public_name, target_fingerprint
from dspark_hf.modeling.wrappers import unwrap

from .taps import check_taps, spread_taps

# What every stock config has and no drafter: a number of labels takes memory by itself.
_OF_CLASSIFIERS = {"id2label", "label2id", "num_labels", "problem_type"}

# Far more than a target ever accepts at once; every round runs the drafter on as many.
_MOST_SLOTS = 1024


def _of_decoder(name: str, may_change: bool = False) -> property:
    def write(config: "DraftConfig", value: Any) -> None:
        setattr(config.decoder_config, name, value)

    doc = f"The draft decoder's `{name}`."
    return property(lambda config: getattr(config.decoder_config, name), write if may_change else None, doc=doc)


@strict
class DraftConfig(PreTrainedConfig):
    r"""
    What every drafter's configuration holds.

    Args:
        decoder_config (`PreTrainedConfig`):
            The draft decoder: a stock config of one of the families.
        target_layer_ids (`list[int]`):
            Target layers whose raw outputs are the features, 0-based and ascending; not the last layer, but for
            DeepSeek-V4-shaped drafters.
        num_target_layers (`int`, *optional*):
            Layers of the target. Some checkpoints do not tell; binding the drafter fills it in.
        num_anchors (`int`, *optional*, defaults to 512):
            Anchors sampled per sequence in training.
        draft_vocab_size (`int`, *optional*):
            Tokens the drafter can propose, if it has a reduced vocabulary; all, if not given. The checkpoint then
            holds `t2d` and `d2t`, which say which tokens these are.
        own_lm_head (`bool`, *optional*, defaults to `False`):
            Whether the checkpoint holds an output head that was trained with the drafter, which then is not borrowed
            from the target.
        own_embed_tokens (`bool`, *optional*, defaults to `False`):
            The same of an embedding.
        target_name_or_path (`str`, *optional*):
            The target this drafter was made for.
        target_fingerprint (`str`, *optional*):
            Digest of some of that target's weights ([`target_fingerprint`]).

    Raises:
        `ValueError`: If a field is out of range; the message names the field and both sides.
    """

    sub_configs_defaults = {"decoder_config": SubConfigSpec(config_class=AutoConfig, model_type=DEFAULT_FAMILY)}
    # Ends the name by which serving engines choose their class, after the family's: "Qwen3" + "DSparkModel".
    architecture_suffix = ""
    default_num_layers = 1
    # What a checkpoint means that does not name a field, where that is not the default of a new drafter.
    when_absent = {}
    # The field that says how long a proposal is.
    length_field = ""

    decoder_config: PreTrainedConfig | dict | None = None
    target_layer_ids: list[int] | None = None
    num_target_layers: int | None = None
    num_anchors: int = 512
    draft_vocab_size: int | None = None
    own_lm_head: bool = False
    own_embed_tokens: bool = False
    target_name_or_path: str | None = None
    target_fingerprint: str | None = None

    def __post_init__(self, **kwargs):
        if self.target_layer_ids is None:
            self.target_layer_ids = [0]
        super().__post_init__(**kwargs)
        self._check_ranges()

    def _check_ranges(self) -> None:
        self.check_taps(self.num_target_layers)
        if self.draft_vocab_size is not None and not 1 <= self.draft_vocab_size <= self.vocab_size:
            raise ValueError(
                f"draft_vocab_size={self.draft_vocab_size} must be 1 to {self.vocab_size}, the target's vocabulary."
            )
        if self.num_anchors < 1:
            raise ValueError(f"num_anchors must be >= 1, got {self.num_anchors}.")
        self.check_length(getattr(self.decoder_config, "max_position_embeddings", None))
        self._check_layer_types()

    def check_taps(self, num_target_layers: int | None) -> None:
        """Raise `ValueError` if a target of so many layers cannot be tapped so; `None` is an unknown number.

        Args:
            num_target_layers (`int` or `None`): Layers of the target.
        """
        family = get_family(self.decoder_config.model_type)
        check_taps(self.target_layer_ids, num_target_layers, with_last=family.may_tap_last)

    def check_length(self, num_positions: int | None) -> None:
        """Check that a proposal fits into a text.

        Args:
            num_positions (`int` or `None`): The longest text, in tokens; `None` is an unknown number.

        Raises:
            `ValueError`: If a proposal is longer than that, or than any that a drafter can make.
        """
        if self.num_slots > _MOST_SLOTS:
            raise ValueError(
                f"{self.length_field}={getattr(self, self.length_field)} proposes more than {_MOST_SLOTS} tokens; use "
                "a smaller one."
            )
        if num_positions is not None and self.num_slots > num_positions:
            raise ValueError(
                f"{self.length_field}={getattr(self, self.length_field)} proposes more tokens than there are "
                f"positions (max_position_embeddings={num_positions}); use a smaller one."
            )

    def _check_layer_types(self) -> None:
        unknown = sorted(set(self.attention_types()) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ValueError(
                f"Draft layers of type {unknown} are not supported; use a drafter whose layer_types are all "
                "'full_attention' or 'sliding_attention'."
            )

    def attention_types(self) -> list[str]:
        """Attention of each draft layer: `"full_attention"` or `"sliding_attention"`."""
        return getattr(self.decoder_config, "layer_types", None) or ["full_attention"] * self.num_hidden_layers

    @classmethod
    def describes(cls, flat: dict[str, Any]) -> bool:
        """Whether a `config.json` in the flat layout is that of a drafter of this kind.

        Args:
            flat (`dict[str, Any]`): What the file holds.

        Returns:
            `bool`.
        """
        raise NotImplementedError

    @property
    def num_slots(self) -> int:
        """Tokens a proposal may have."""
        raise NotImplementedError

    @property
    def loss_weights(self) -> LossWeights:
        """What this kind of drafter is trained with, unless the training arguments say otherwise."""
        return LossWeights()

    # generate() and pipelines read these from the assistant's config.
    vocab_size = _of_decoder("vocab_size")
    hidden_size = _of_decoder("hidden_size")
    num_hidden_layers = _of_decoder("num_hidden_layers")
    initializer_range = _of_decoder("initializer_range")
    # A trainer writes the tokenizer's ids here, as into any model's config.
    bos_token_id = _of_decoder("bos_token_id", may_change=True)
    eos_token_id = _of_decoder("eos_token_id", may_change=True)
    pad_token_id = _of_decoder("pad_token_id", may_change=True)

    @classmethod
    def from_target(
        cls,
        target: PreTrainedModel | PreTrainedConfig,
        *,
        family: str | None = None,
        num_hidden_layers: int | None = None,
        num_taps: int = 5,
        **overrides: Any,
    ) -> "DraftConfig":
        """A drafter config that fits a target.

        Args:
            target (`PreTrainedModel` or `PreTrainedConfig`):
                The target. From a model its name and fingerprint are recorded too.
            family (`str`, *optional*):
                Shape of the draft layers. Defaults to the target's own where it has a family here, else `"qwen3"`.
            num_hidden_layers (`int`, *optional*):
                Draft layers; 5, or 1 for EAGLE-3, if not given.
            num_taps (`int`, *optional*, defaults to 5):
                Tapped layers, spread evenly, if `target_layer_ids` is not given.
            overrides:
                Fields of this class, or of the draft decoder's config (e.g. `intermediate_size`).

        Returns:
            [`DraftConfig`] of this class.

        Raises:
            `ValueError`: If a field is unknown, out of range, or of the wrong type, or the target is no model.
        """
        if not isinstance(target, (nn.Module, PreTrainedConfig)):
            raise ValueError(
                f"target must be a model in memory, got {shown(target)}: load it first, with "
                "AutoModelForCausalLM.from_pretrained(...)."
            )
        num_hidden_layers = cls.default_num_layers if num_hidden_layers is None else num_hidden_layers
        for name, value in (("num_hidden_layers", num_hidden_layers), ("num_taps", num_taps)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} must be a whole number, got {shown(value)}.")
        target = unwrap(target)
        config = target if isinstance(target, PreTrainedConfig) else target.config
        text_config = config.get_text_config()
        family = get_family(family or cls.default_family(text_config))
        own_fields = cls.own_fields()
        own = {name: value for name, value in overrides.items() if name in own_fields}
        decoder_fields = {name: value for name, value in overrides.items() if name not in own_fields}
        if unknown := sorted(set(decoder_fields) - {field.name for field in fields(family.config_cls)}):
            raise ValueError(
                f"Unknown drafter fields {unknown}. A drafter takes {sorted(own_fields)} and the fields of "
                f"{family.config_cls.__name__}."
            )
        num_layers = text_config.num_hidden_layers
        own.setdefault("target_layer_ids", spread_taps(num_layers, num_taps))
        own.setdefault("num_target_layers", num_layers)
        if "mask_token_id" in own_fields:
            own.setdefault("mask_token_id", text_config.vocab_size - 1)
        if isinstance(target, PreTrainedModel):
            own.setdefault("target_name_or_path", public_name(target.name_or_path))
            own.setdefault("target_fingerprint", target_fingerprint(target))
        try:
            return cls(decoder_config=family.decoder_config(text_config, num_hidden_layers, **decoder_fields), **own)
        except StrictDataclassError as error:
            raise ValueError(f"A drafter field cannot be used: {' '.join(str(error).split())}.") from error

    @classmethod
    def default_family(cls, text_config: PreTrainedConfig) -> str:
        """The target's own family where there is one for new drafters, else `"qwen3"`.

        Args:
            text_config (`PreTrainedConfig`): The target's, of its text part.

        Returns:
            `str`: A name in `FAMILIES`.
        """
        family = FAMILIES.get(text_config.model_type)
        return text_config.model_type if family is not None and family.is_default else DEFAULT_FAMILY

    def name_target(self, target: PreTrainedModel) -> None:
        """Record another target, for which the drafter is trained from now on: its name and fingerprint.

        Args:
            target (`PreTrainedModel`): It.
        """
        self.target_name_or_path = public_name(target.name_or_path)
        self.target_fingerprint = target_fingerprint(target)

    def to_diff_dict(self) -> dict[str, Any]:
        """The JSON form: decoder fields and drafter fields side by side (`config.json` of a released checkpoint)."""
        flat = self.decoder_config.to_diff_dict()
        flat |= {name: getattr(self, name) for name in self.own_fields() - {"decoder_config"}}
        for name in ("dtype", "transformers_version"):
            flat[name] = super().to_diff_dict().get(name)
        for name in ("own_lm_head", "own_embed_tokens"):
            if not flat[name]:
                del flat[name]
        family = get_family(self.decoder_config.model_type)
        # The decoder's diff holds a null only where its class would otherwise fill in something else.
        silent = self.own_fields() | {"dtype", "transformers_version"}
        flat = {name: value for name, value in flat.items() if value is not None or name not in silent}
        for name in family.unwritten:
            flat.pop(name, None)
        return (flat | family.engine_fields(self.decoder_config)) | {
            "architectures": [family.engine_name + self.architecture_suffix],
            "model_type": self.decoder_config.model_type,
            "tie_word_embeddings": False,
        }

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        return super().from_dict(cls._nest(config_dict), **kwargs)

    @classmethod
    def _nest(cls, flat: dict[str, Any]) -> dict[str, Any]:
        """The nested form of a flat one; any other as it is."""
        if "decoder_config" in flat or "target_layer_ids" not in flat:
            return cls._of_release(flat) if "dspark_block_size" in flat else flat
        family = get_family(flat.get("model_type", DEFAULT_FAMILY))
        shared = {"architectures", "dtype", "torch_dtype", "transformers_version"}
        own_fields = cls.own_fields()
        own = cls.when_absent | {name: value for name, value in flat.items() if name in own_fields | shared}
        others = own_fields | shared | _OF_CLASSIFIERS | {"model_type"}
        decoder = {name: value for name, value in flat.items() if name not in others}
        return {**own, "decoder_config": family.make_config(**decoder), "model_type": cls.model_type}

    @classmethod
    def _of_release(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The vocabulary of a release with target and drafter, which PEFT asks for where it saves an adapter.

        [`AutoDrafter`] reads the drafter in it.
        """
        names = {"dspark_block_size": "block_size", "dspark_noise_token_id": "mask_token_id"}
        own = {ours: config[name] for name, ours in names.items() if name in config and ours in cls.own_fields()}
        return {**own, "decoder_config": {"model_type": DEFAULT_FAMILY, "vocab_size": config["vocab_size"]}}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls._nest(config_dict), kwargs

    @classmethod
    def own_fields(cls) -> set[str]:
        """Names of the drafter's fields, which lie beside the decoder's in the flat form."""
        return {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
