"""The cache of layers with a sliding window."""

from transformers.generation.continuous_batching.cache_allocators.sliding_attention import (
    SlidingAttentionCacheAllocator,
)


class DraftRing(SlidingAttentionCacheAllocator):
    """A window's ring with room for tokens that may be taken back."""

    # Tokens of a step that may be.
    slack: int

    @property
    def _ring(self) -> int:
        return self.sliding_window + self.slack

    def _compute_blocks_needed(self, allocated_blocks: int, past_length: int, query_length: int) -> int:
        length = min(past_length + query_length, self._ring)
        return max(0, -(-length // self.tokens_per_page) - allocated_blocks)

    def _token_indices_to_physical_indices(self, request_id: str, start_index: int, length: int) -> list[int]:
        table, size = self.block_table[request_id], self.tokens_per_page
        places = (divmod(index % self._ring, size) for index in range(start_index, start_index + length))
        return [table[page] * self.block_physical_stride + offset for page, offset in places]

    def get_read_indices(self, request_id: str, past_length: int, query_length: int) -> list[int]:
        num_seen = min(past_length, self.sliding_window - 1)
        seen = self._token_indices_to_physical_indices(request_id, past_length - num_seen, num_seen)
        return seen + [self.sentinel_index] * query_length

    def get_write_indices(self, request_id: str, past_length: int, query_length: int) -> list[int]:
        num_kept = min(query_length, self._ring)
        begin = past_length + query_length - num_kept
        kept = self._token_indices_to_physical_indices(request_id, begin, num_kept)
        return [self.write_trash_index] * (query_length - num_kept) + kept
