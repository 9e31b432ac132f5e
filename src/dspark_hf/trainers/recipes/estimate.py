"""How much disk and memory a recipe takes, before any work.

Shapes: L taps, E hidden size, V vocabulary.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from dspark_hf.data.cache import cache_bytes_per_token
from dspark_hf.modeling import DraftConfig, DraftModel
from dspark_hf.modeling.families import get_family
from dspark_hf.publishing.engines import CONVERT, Checkpoint, not_served
from dspark_hf.trainers.arguments import DraftTrainingArguments

from .recipe import Recipe

_COUNTED = "dspark_counted"
# A reduced draft vocabulary to compare with, and the share of the parameters that it may leave to be worth a word.
_SMALL_VOCABULARY, _WORTHWHILE = 32768, 0.7


@dataclass(frozen=True)
class TrainingEstimate:
    """Sizes in bytes; memory is that of one process that holds the drafter whole.

    Attributes:
        cache_per_token (`dict[str, float]`): What a cache keeps of a token, by the cache's dtype.
        cache (`dict[str, int]`, *optional*): The same for all tokens of the text, if their number is known.
        num_tokens (`int`, *optional*): Of the text.
        num_parameters (`int`): Of the drafter.
        drafter (`int`): Its float32 weights, gradients and two AdamW states, and its bfloat16 copies under autocast.
        target (`int`): bfloat16 weights of the target where it runs in the loop or decodes held-out prompts, else of
            its embedding and head.
        activations (`int`): What the draft layers keep for the backward pass; with checkpointing what is left of it
            and one layer's.
        batch (`int`): Features and last hidden states of a batch.
        loss (`int`): Logits of draft and target and their gradients, a chunk at a time.
        notes (`list[str]`): What to know before training: engines that will not serve the drafter, and what a reduced
            draft vocabulary would save, if that is a good part of it.
    """

    cache_per_token: dict[str, float]
    cache: dict[str, int] | None
    num_tokens: int | None
    num_parameters: int
    drafter: int
    target: int
    activations: int
    batch: int
    loss: int
    notes: list[str] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """The parts' sum."""
        return self.drafter + self.target + self.activations + self.batch + self.loss


def estimate_training(
    recipe: Recipe, target_config: PreTrainedConfig | None = None, num_tokens: int | None = None
) -> TrainingEstimate:
    """Estimate a recipe, with full batches and every anchor in use.

    Args:
        recipe ([`Recipe`]): The recipe.
        target_config (`PreTrainedConfig`, *optional*): The target's config; by default what `estimate.target` gives.
        num_tokens (`int`, *optional*): Of the text; by default what `estimate.tokens` says.

    Raises:
        `ValueError`: If the target's sizes are not known.
    """
    if target_config is None:
        if not recipe.estimate.get("target"):
            raise ValueError("The recipe does not give the target's sizes (estimate.target); pass its config.")
        target_config = AutoConfig.for_model(**recipe.estimate["target"])
    fields = {name: recipe.training.get(name) for name in ("per_device_train_batch_size", "loss_chunk_size")}
    defaults = DraftTrainingArguments.__dataclass_fields__
    batch_size, chunk_size = (defaults[name].default if value is None else value for name, value in fields.items())
    config = recipe.drafter_cls.config_class.from_target(target_config, **recipe.drafter)
    num_anchors = min(recipe.training.get("num_anchors") or config.num_anchors, recipe.max_length)
    num_parameters = _num_parameters(recipe.drafter_cls, config)
    width = (len(config.target_layer_ids) + 1) * config.hidden_size
    num_tokens = recipe.estimate.get("tokens") if num_tokens is None else num_tokens
    is_reduced = config.draft_vocab_size is not None
    per_token = cache_bytes_per_token(len(config.target_layer_ids), config.hidden_size, log_norm=is_reduced)
    vocab_size = config.draft_vocab_size or config.vocab_size
    sizes = (recipe.drafter_cls, config, batch_size, recipe.max_length, num_anchors)
    activations = saved_bytes(*sizes)
    if recipe.training.get("activation_checkpointing") or recipe.training.get("gradient_checkpointing"):
        stored = saved_bytes(*sizes, is_checkpointed=True)
        # While a layer is computed again, what it saves is there too.
        activations = stored + (activations - stored) // config.num_hidden_layers
    told = not_served(Checkpoint(json.loads(config.to_json_string())))
    return TrainingEstimate(
        cache_per_token=per_token,
        cache=None if num_tokens is None else {name: round(size * num_tokens) for name, size in per_token.items()},
        num_tokens=num_tokens,
        num_parameters=num_parameters,
        drafter=(4 * 4 + 2) * num_parameters,
        target=2 * _target_parameters(recipe, target_config.get_text_config()),
        activations=activations,
        batch=2 * width * batch_size * recipe.max_length,
        loss=4 * 4 * chunk_size * vocab_size,
        notes=told + _hints(recipe, target_config, num_parameters),
    )


def _hints(recipe: Recipe, target_config: PreTrainedConfig, num_parameters: int) -> list[str]:
    vocab_size = target_config.get_text_config().vocab_size
    if recipe.drafter.get("draft_vocab_size") is not None or vocab_size <= _SMALL_VOCABULARY:
        return []
    fields = {**recipe.drafter, "draft_vocab_size": _SMALL_VOCABULARY}
    config = recipe.drafter_cls.config_class.from_target(target_config, **fields)
    smaller = _num_parameters(recipe.drafter_cls, config)
    if smaller > _WORTHWHILE * num_parameters:
        return []
    return [
        f"Most of the drafter is there for {vocab_size:,} tokens: draft_vocab_size={_SMALL_VOCABULARY} would leave "
        f"{smaller / 1e6:.1f}M parameters (of engines vLLM reads a reduced vocabulary: {CONVERT})."
    ]


def _target_parameters(recipe: Recipe, config: PreTrainedConfig) -> int:
    if recipe.needs_target:
        return _num_parameters(AutoModelForCausalLM.from_config, config)
    return (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size


def _num_parameters(make: Any, config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make(config).parameters())


def saved_bytes(
    drafter_cls: type[DraftModel],
    config: DraftConfig,
    batch_size: int,
    num_tokens: int,
    num_anchors: int,
    is_checkpointed: bool = False,
) -> int:
    """What a training pass of a drafter in bfloat16 keeps for its backward pass, counted on a model without storage.

    Attention is taken to keep its inputs, its mask and its output, as fused kernels do; with sinks, which only its
    eager form knows of, all that this one keeps.

    Args:
        drafter_cls (`type`): The drafter's class.
        config ([`DraftConfig`]): Its configuration.
        batch_size (`int`): Sequences of a pass.
        num_tokens (`int`): Tokens of each.
        num_anchors (`int`): Anchors of each.
        is_checkpointed (`bool`, *optional*, defaults to `False`): Whether layers are computed again in the backward
            pass.

    Returns:
        `int`: Bytes.
    """
    attention = "eager" if get_family(config.decoder_config.model_type).has_sinks else _COUNTED
    AttentionInterface.register(_COUNTED, _counted_attention)
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            model = drafter_cls._from_config(config, own_embeddings=True, attn_implementation=attention).train()
            # Of the same tokens, in one product: without storage, nobody knows which expert has any.
            model.config.decoder_config._experts_implementation = "grouped_mm"
            ids = torch.zeros(batch_size, num_tokens, dtype=torch.int64)
            anchors = torch.zeros(batch_size, num_anchors, dtype=torch.int64)
            features = torch.zeros(batch_size, num_tokens, model.fc.in_features)
            mask = torch.ones(batch_size, num_anchors, dtype=torch.bool)
    finally:
        torch.set_default_dtype(dtype)
    model.embed_tokens.requires_grad_(False)
    if is_checkpointed:
        model.activation_checkpointing_enable()
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, features, anchors, mask)
    return sum(storage.nbytes() for storage in storages.values())


class _SavesInputs(torch.autograd.Function):
    """Attention's bookkeeping without its work."""

    @staticmethod
    def forward(ctx, query, key, value, mask):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mask, output)
        return output


def _counted_attention(module: nn.Module, query, key, value, attention_mask, **kwargs):
    # Key and value heads are repeated where a mask is given.
    repeats = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    return _SavesInputs.apply(query, key, value, attention_mask).transpose(1, 2).contiguous(), None
