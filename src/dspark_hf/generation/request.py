"""One generation, as it was asked for and as transformers prepared it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from dspark_hf.modeling.cache_name import CACHE_NAME
from dspark_hf.modeling.placement import compute_device

from .config import SpeculationConfig
from .prompt_lookup import PromptLookup

# Most rows whose texts are looked up beside a drafter by itself. With more it costs a little: some row has a hit in
# nearly every round, and what it drafts makes the pass longer for all (docs/numbers.md).
MOST_LOOKUP_ROWS = 4


@dataclass(frozen=True)
class Request:
    """What the decoding loop is given. Nobody changes it.

    Attributes:
        model (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`] or [`PromptLookup`]): The drafter.
        speculation ([`SpeculationConfig`]): How to speculate.
        input_ids (`torch.LongTensor` of shape `(batch, ids)`): The prompt's token ids.
        logits_processor (`LogitsProcessorList`): Processors that shape the target's distribution.
        stopping_criteria (`StoppingCriteriaList`): When to stop.
        generation_config (`GenerationConfig`): The prepared config.
        model_kwargs (`dict`): What was prepared for the target's forward passes, the cache among it.
        streamer (`BaseStreamer`, *optional*): Gets tokens as they are made.
        is_static (`bool`): Whether rounds are to have fixed shapes.
        may_be_ragged (`bool`): Whether they may be others, where fixed shapes are left to this library.
        why_ragged (`str`, *optional*): Where they are left to it and cannot be had, what stands in the way.
        synced_gpus (`bool`): Whether other processes share the target, so that each makes as many passes.
    """

    model: PreTrainedModel
    drafter: Any
    speculation: SpeculationConfig
    input_ids: Tensor
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    model_kwargs: dict[str, Any]
    streamer: Any = None
    synced_gpus: bool = False
    is_static: bool = False
    may_be_ragged: bool = False
    why_ragged: str | None = None

    @property
    def batch_size(self) -> int:
        """Rows of the batch."""
        return self.input_ids.shape[0]

    @property
    def cache(self) -> Cache:
        """The target's cache."""
        return self.model_kwargs[CACHE_NAME]

    @property
    def prompt_mask(self) -> Tensor | None:
        """The prompt's attention mask `(batch, columns)`, if there is one."""
        return self.model_kwargs.get("attention_mask")

    @property
    def device(self) -> torch.device:
        """Where the target takes token ids."""
        return compute_device(self.model.get_input_embeddings())

    @property
    def has_draft_model(self) -> bool:
        """Whether a model drafts; otherwise lookup alone does."""
        return not isinstance(self.drafter, PromptLookup)

    @property
    def lookup(self) -> PromptLookup | None:
        """What is looked up: as the caller asks, else by default where batches are small and rounds not static."""
        if not self.has_draft_model:
            return self.drafter
        asked = self.speculation.prompt_lookup
        if asked is None and self.batch_size <= MOST_LOOKUP_ROWS and not self.is_static:
            return PromptLookup()
        return asked or None

    @property
    def temperature(self) -> float:
        """That tokens are drawn at; 0 in greedy decoding."""
        config = self.generation_config
        return (1.0 if config.temperature is None else float(config.temperature)) if config.do_sample else 0.0

    @property
    def has_user_cache(self) -> bool:
        """Whether the cache is the caller's own."""
        return getattr(self.cache, "_is_user_defined", False)

    @property
    def returns_cache(self) -> bool:
        """Whether someone gets the cache in the end."""
        return bool(self.generation_config.return_dict_in_generate or self.has_user_cache)

    @property
    def needs_all_rows(self) -> bool:
        """Whether rows that have ended are processed to the end: for the cache, or for other processes."""
        return self.returns_cache or self.synced_gpus
