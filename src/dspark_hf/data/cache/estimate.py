"""How large a cache will be, before any work."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from dspark_hf.data.left_out import LeftOut
from dspark_hf.data.rows import encode_row, row_name

from .codecs import DTYPES
from .rows import RowCodec

_SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class CacheEstimate:
    """What a cache will take.

    Attributes:
        num_rows (`int`): Source rows.
        num_tokens (`int`): Tokens; extrapolated from `num_sampled` rows where that is less than all.
        num_sampled (`int`): Rows that were counted.
        bytes_per_token (`dict[str, float]`): By dtype.
    """

    num_rows: int
    num_tokens: int
    num_sampled: int
    bytes_per_token: dict[str, float]

    def num_bytes(self, dtype: str) -> int:
        """Bytes that a cache of this `dtype`, one of the names in `bytes_per_token`, takes."""
        return round(self.num_tokens * self.bytes_per_token[dtype])


def estimate_target_cache(
    config: PreTrainedConfig,
    rows: Sequence[Mapping[str, Any]],
    *,
    num_taps: int,
    tokenizer: Any = None,
    max_length: int = 4096,
    log_norm: bool = False,
    keep_special_tokens: bool = False,
    num_sampled: int = _SAMPLE_ROWS,
) -> CacheEstimate:
    """Count tokens, of all rows or of some drawn at random, and tell what each dtype takes. No weights are needed.

    Args:
        config (`PreTrainedConfig`): The target's.
        rows (`Sequence[Mapping]`): As for [`build_target_cache`].
        num_taps (`int`): Taps.
        tokenizer, max_length, log_norm, keep_special_tokens: As for [`build_target_cache`].
        num_sampled (`int`, *optional*, defaults to 1000): At most so many rows are counted.
    """
    num_sampled = min(num_sampled, len(rows))
    counted = 0
    for index in sorted(random.Random(0).sample(range(len(rows)), num_sampled)):
        row = encode_row(
            rows[index], tokenizer, max_length, keep_special_tokens, where=row_name(index), left_out=LeftOut()
        )
        counted += len(row["input_ids"]) if any(row["loss_mask"]) else 0
    hidden_size = config.get_text_config().hidden_size
    return CacheEstimate(
        num_rows=len(rows),
        num_tokens=round(counted * len(rows) / max(num_sampled, 1)),
        num_sampled=num_sampled,
        bytes_per_token=cache_bytes_per_token(num_taps, hidden_size, log_norm=log_norm),
    )


def cache_bytes_per_token(num_taps: int, hidden_size: int, *, log_norm: bool = False) -> dict[str, float]:
    """What a cache keeps of a token, ids and mask included, by dtype.

    Args:
        num_taps (`int`): Taps.
        hidden_size (`int`): Hidden size of the target.
        log_norm (`bool`, *optional*, defaults to `False`): As for [`build_target_cache`].
    """
    return {dtype: RowCodec(dtype, num_taps, hidden_size, log_norm).bytes_per_token for dtype in DTYPES}
