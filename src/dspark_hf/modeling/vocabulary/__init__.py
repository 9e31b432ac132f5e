"""What a drafter reads and proposes tokens with: which tokens it knows, and its embedding and output head."""

from .reduced import check_vocabulary, entry_tokens, frequent_tokens, token_entries, tokens_of, vocabulary_buffers

__all__ = [
    "check_vocabulary",
    "entry_tokens",
    "frequent_tokens",
    "token_entries",
    "tokens_of",
    "vocabulary_buffers",
]
