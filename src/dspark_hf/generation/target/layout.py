"""Where the prompt stands: which of its tokens are cached already, and which are ids or embeddings.

A *column* is a place in the target's cache. Columns and token ids are counted alike, unless only the new tokens of a
longer text are given, or embeddings take the place of ids: then the ids start some columns later.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache, GenerationConfig

from dspark_hf.modeling.cache_name import CACHE_NAME


@dataclass(frozen=True)
class PromptLayout:
    """Widths of a prompt.

    Attributes:
        num_rows (`int`): Rows of the batch.
        num_ids (`int`): Token ids of a row.
        num_columns (`int`): Cache columns of a row once the prompt has been processed.
        num_cached (`int`): Columns that an earlier turn has filled.
    """

    num_rows: int
    num_ids: int
    num_columns: int
    num_cached: int = 0

    @property
    def shift(self) -> int:
        """Column of the first token id; negative where embeddings are fewer than ids."""
        return self.num_columns - self.num_ids

    @classmethod
    def of(cls, input_ids: Tensor, model_kwargs: dict[str, Any], config: GenerationConfig) -> "PromptLayout":
        """The layout of what `generate()` prepared, as plain `generate()` understands it.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, ids)`): The ids: all tokens, or those that are not cached.
            model_kwargs (`dict`): What `generate()` prepared for the forward passes, the cache among it.
            config (`GenerationConfig`): The prepared config.

        Raises:
            `ValueError`: If cache, mask and tokens do not go together, or no token is left to process.
        """
        num_rows, num_ids = input_ids.shape
        if input_ids.is_floating_point():
            raise ValueError(f"input_ids must be integers, got {input_ids.dtype}; pass embeddings as inputs_embeds.")
        embeds, mask = model_kwargs.get("inputs_embeds"), model_kwargs.get("attention_mask")
        cache = model_kwargs[CACHE_NAME]
        num_cached, keys = cache.get_seq_length(), first_keys(cache)
        if num_cached > 0 and keys is not None and keys.shape[0] != num_rows:
            raise ValueError(
                f"The cache holds {keys.shape[0]} rows, and {num_rows} are to be generated, "
                "num_return_sequences included. Repeat those of a copy, with its method batch_repeat_interleave(n)."
            )
        num_masked = getattr(config, "_mask_length", num_ids) if mask is None else mask.shape[1]
        if embeds is not None:
            num_columns = embeds.shape[1]
        elif num_cached > 0 and num_masked != num_ids:
            num_columns = num_cached + num_ids
        else:
            num_columns = num_ids
        if embeds is not None and mask is None and 0 < num_ids != num_columns:
            raise ValueError(
                f"inputs_embeds hold {num_columns} tokens and input_ids {num_ids}, so positions are unknown. Give an "
                "attention_mask over the embeddings, or leave out input_ids."
            )
        if num_columns == 0 or num_rows == 0:
            raise ValueError(
                f"The prompt is empty ({num_rows} rows of {num_columns} tokens); a drafter needs at least one token "
                "of input_ids to start from."
            )
        if num_columns <= num_cached:
            raise ValueError(
                f"The cache holds {num_cached} tokens already, and {num_columns} are given, so none is new. "
                "Pass all tokens, cached ones included, or new ones with an attention_mask over cached and new tokens."
            )
        if mask is not None and mask.shape[1] != num_columns:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, but the prompt has {num_columns}, of which {num_cached} "
                "are cached. Give a mask over all of them."
            )
        return cls(num_rows, num_ids, num_columns, num_cached)


def first_keys(cache: Cache) -> Tensor | None:
    """Keys `(batch, heads, columns, dim)` of a `cache`'s first layer that has any; some have recurrent states only."""
    return next((layer.keys for layer in cache.layers if getattr(layer, "keys", None) is not None), None)
