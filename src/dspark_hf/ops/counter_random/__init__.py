"""The random numbers of kernels: a counter for each row and slot, under a key that torch's generator draws for a call.

Keys make calls independent of each other, so drafting and verification too. Here are the key, and the same numbers one
by one on the host, which tests and self-checks compare draws with.

Source: Salmon et al. 2011, Philox 4x32-10 (https://doi.org/10.1145/2063384.2063405), as `triton.language.randint4x`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_FACTORS, _STEPS, _ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
_WORD = 2**32


def draw_key(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A key of 62 bits, int64 `(1,)` on a `device`, of its `generator` or of torch's own."""
    return torch.randint(2**62, (1,), generator=generator, device=device)


def uniforms(key: int, counters: Iterable[int]) -> Tensor:
    """Numbers in [0, 1) of 53 bits, float64 `(counters,)`, one for each of `counters` under a 64-bit `key`."""
    return torch.tensor([_uniform(key, counter) for counter in counters], dtype=torch.float64)


def _uniform(key: int, counter: int) -> float:
    words = [counter % _WORD, counter // _WORD, 0, 0]
    keys = [key % _WORD, key // _WORD]
    for _ in range(_ROUNDS):
        first, second = words[0] * _FACTORS[0], words[2] * _FACTORS[1]
        words = [
            second // _WORD ^ words[1] ^ keys[0], second % _WORD, first // _WORD ^ words[3] ^ keys[1], first % _WORD
        ]  # fmt: skip
        keys = [(part + step) % _WORD for part, step in zip(keys, _STEPS, strict=True)]
    return (words[0] << 21 | words[1] >> 11) * 2.0**-53
