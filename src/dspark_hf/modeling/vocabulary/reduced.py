"""A reduced draft vocabulary: the tokens a drafter can propose, as the checkpoint buffers `t2d` and `d2t`.

`t2d` `(V,)` bool says which target tokens are entries; entry d stands for token `d + d2t[d]`, int64 `(D,)`.
Shapes: V target vocabulary, D draft vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def vocabulary_buffers(token_ids: Iterable[int], draft_vocab_size: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """`t2d` `(vocab_size,)` and `d2t` `(draft_vocab_size,)` of the given `token_ids`, in whatever order they come.

    Raises:
        `ValueError`: If there are not exactly `draft_vocab_size` different ids from 0 to `vocab_size - 1`.
    """
    ids = torch.tensor(sorted(set(token_ids)), dtype=torch.int64)
    if len(ids) != draft_vocab_size or int(ids[0]) < 0 or int(ids[-1]) >= vocab_size:
        raise ValueError(
            f"A draft vocabulary of {draft_vocab_size} needs so many different ids from 0 to {vocab_size - 1}, "
            f"got {len(ids)}."
        )
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[ids] = True
    return t2d, ids - torch.arange(len(ids))


def check_vocabulary(t2d: Tensor, d2t: Tensor) -> None:
    """Check that both buffers tell of the same tokens: `t2d` of shape `(vocab,)`, `d2t` of shape `(draft_vocab,)`.

    Raises:
        `ValueError`: If `d2t` leads out of the vocabulary, or to other tokens than `t2d` marks, or not in order.
    """
    tokens = entry_tokens(d2t)
    if tokens.shape != (num_marked := int(t2d.sum()),) or not torch.equal(tokens, torch.nonzero(t2d).squeeze(-1)):
        raise ValueError(
            f"The reduced draft vocabulary is no such thing: t2d marks {num_marked} of {len(t2d)} tokens, and the "
            f"{len(d2t)} entries of d2t lead to tokens from {int(tokens.min())} to {int(tokens.max())} that are not "
            "these in ascending order. Entry d of d2t must be the d-th token that t2d marks, minus d."
        )


def entry_tokens(d2t: Tensor) -> Tensor:
    """Ascending token ids `(draft_vocab,)` of the entries of `d2t`, which has that shape."""
    return d2t + torch.arange(len(d2t), device=d2t.device)


def token_entries(token_ids: Tensor, t2d: Tensor) -> Tensor:
    """Entries of `token_ids` of any shape by `t2d` `(vocab,)`, -1 where the draft vocabulary lacks one."""
    entries = torch.cumsum(t2d, 0) - 1
    return torch.where(t2d[token_ids], entries[token_ids], -1)


def tokens_of(entries: Tensor | None, logits: Tensor, draft_tokens: Tensor | None) -> Tensor:
    """The tokens that logits are those of.

    Args:
        entries (`torch.LongTensor` of any shape, *optional*): Entries of the draft vocabulary; all, if not given.
        logits (`torch.Tensor` of shape `(..., draft_vocab)`): Of all entries; read where `entries` are not given.
        draft_tokens (`torch.LongTensor` of shape `(draft_vocab,)`, *optional*): The token of each entry; entries are
            tokens, if not given.

    Returns:
        `torch.LongTensor` of the shape of `entries`; of all, that of `logits`, without storage.
    """
    if entries is not None:
        return entries if draft_tokens is None else draft_tokens[entries]
    tokens = torch.arange(logits.shape[-1], device=logits.device) if draft_tokens is None else draft_tokens
    return tokens.expand(logits.shape)


def frequent_tokens(rows: Iterable[Mapping[str, Any]], size: int, vocab_size: int) -> list[int]:
    """The tokens that supervised text uses most, ties and gaps filled with low ids (which BPE merged first).

    Args:
        rows (`Iterable[Mapping]`): Rows of `input_ids` and `loss_mask`.
        size (`int`): Tokens wanted.
        vocab_size (`int`): Size of the target's vocabulary.

    Returns:
        `list[int]`: Ascending ids.
    """
    counts: Counter[int] = Counter(range(vocab_size))
    for row in rows:
        counts.update(int(token) for token, keep in zip(row["input_ids"], row["loss_mask"], strict=True) if keep)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return sorted(ranked[:size])
