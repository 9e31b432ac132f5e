"""What a pass takes on a machine, by its tokens and the context, and a proposal by its rows.

Shapes: T token counts, C context lengths, R row counts of a table.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from dspark_hf.messages import shown
from dspark_hf.processor import is_narrow, multiplies

# The rule of thumb: what is added to a pass over one token by any more of them, and by as many as the device bears
# while it waits for weights, in passes over one token.
_ANY_MORE, _FULL = 0.05, 0.35
# What the drafter takes of the target's pass over as many tokens, and those that it reads for each row, its block.
_DRAFTER, _BLOCK = 0.175, 5
# Tokens that so bear: the cores of a CPU are soon busy with computing, in float32 sooner where they have no vectors of
# 512 bits. A single core waits as long as two do.
_TOKENS_OF_CORE, _TOKENS_OF_NARROW_CORE, _FEWEST_CORES, _TOKENS_OF_DEVICE = 8, 4, 2, 256
# A CPU multiplies a float32 matrix with one vector by other code than with two, which takes longer; where it has no
# instructions for a dtype of two bytes, it computes nearly as long for each token of a pass.
_ANY_MORE_FLOAT32, _EACH_MORE_EMULATED = 0.6, 0.45
# What a table may say. Costs are looked up for every number of tokens up to the most, which so takes 8 MiB.
_MOST = {"tokens": 2**20, "contexts": 2**31, "rows": 2**20}
_LEAST_SECONDS, _MOST_SECONDS = 1e-9, 1e9


@dataclass(frozen=True)
class StepCost:
    """Seconds of the target's pass and of the drafter's, measured on one machine with one pair of models.

    Costs have stairs, so a count between two measured ones is looked up at the next larger one. Past the largest, time
    grows with the tokens; between two contexts it is interpolated.

    Args:
        tokens (`Sequence[int]`): Tokens of a pass over all rows, rising.
        contexts (`Sequence[int]`): Tokens before it, of a row, rising.
        verify_seconds (`Sequence[Sequence[float]]`): Of a pass, for each context and number of tokens.
        rows (`Sequence[int]`): Rows that are drafted for at once, rising.
        draft_seconds (`Sequence[float]`): Of a proposal for so many rows.
        made_for (`dict`, *optional*): Device, models, dtype, attention, threads and versions that it holds for. Empty
            where it does not matter.

    Raises:
        `ValueError`: If numbers are missing, not positive, too large, not finite, or do not rise where they must.
    """

    tokens: Sequence[int]
    contexts: Sequence[int]
    verify_seconds: Sequence[Sequence[float]]
    rows: Sequence[int]
    draft_seconds: Sequence[float]
    made_for: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            values = getattr(self, name)
            is_whole = isinstance(values, Sequence) and all(
                isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most for value in values
            )
            if not is_whole or not values or any(a >= b for a, b in zip(values, values[1:], strict=False)):
                raise ValueError(
                    f"{name} of a step cost must be positive whole numbers that rise, up to {most}, got "
                    f"{shown(values)}. Measure again."
                )
        for name, shape in (
            ("verify_seconds", (len(self.contexts), len(self.tokens))), ("draft_seconds", (len(self.rows),))
        ):  # fmt: skip
            try:
                seconds = np.array(getattr(self, name))
                # Text may read as a number.
                seconds = seconds.astype(float) if seconds.dtype.kind in "iufO" else np.array(np.nan)
                # And so may True, beside numbers.
                if any(isinstance(value, bool) for value in _leaves(getattr(self, name))):
                    seconds = np.array(np.nan)
            except (TypeError, ValueError, OverflowError):
                seconds = np.array(np.nan)
            if seconds.shape != shape:
                raise ValueError(
                    f"{name} of a step cost must have the shape {shape} of its tokens, contexts and rows, without "
                    f"holes, got {shown(getattr(self, name))}. Measure again."
                )
            is_fine = (seconds >= _LEAST_SECONDS) & (seconds <= _MOST_SECONDS)
            # A drafter may cost nothing, as lookup does.
            if not (is_fine | (seconds == 0) if name == "draft_seconds" else is_fine).all():
                raise ValueError(
                    f"{name} of a step cost must be from {_LEAST_SECONDS:g} to {_MOST_SECONDS:g}, got "
                    f"{shown(getattr(self, name))}. Measure again."
                )
        if not isinstance(self.made_for, dict):
            raise ValueError(f"made_for of a step cost must be keys and values, got {shown(self.made_for)}.")

    @classmethod
    def rule_of_thumb(cls, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> "StepCost":
        """What passes take by estimate, in passes over one token: it looks at no clock and knows no models.

        Args:
            device (`torch.device`): Where the target runs.
            dtype (`torch.dtype`, *optional*, defaults to `torch.bfloat16`): What it computes in.

        Returns:
            [`StepCost`].
        """
        tokens = [*range(1, 33), *range(34, 65, 2), *range(72, 129, 8), *range(160, 513, 32)]
        if not multiplies(device, dtype):
            verify = [1 + _EACH_MORE_EMULATED * (count - 1) for count in tokens]
        else:
            is_float32_on_cpu = device.type == "cpu" and dtype.itemsize >= 4
            num_cores = max(torch.get_num_threads(), _FEWEST_CORES)
            of_core = _TOKENS_OF_NARROW_CORE if is_float32_on_cpu and is_narrow() else _TOKENS_OF_CORE
            most = of_core * num_cores if device.type == "cpu" else _TOKENS_OF_DEVICE
            any_more = _ANY_MORE_FLOAT32 if is_float32_on_cpu else _ANY_MORE
            verify = [1 + any_more * (count > 1) + _FULL * (count - 1) / most for count in tokens]
        passes = cls(tokens, [1], [verify], [1], [_DRAFTER])
        blocks = passes.verify(_BLOCK * tokens[-1])[_BLOCK * np.array(tokens)]
        return replace(passes, rows=tokens, draft_seconds=(_DRAFTER * blocks).tolist())

    def verify(self, num_tokens: int, context_len: int = 1) -> np.ndarray:
        """Seconds of passes over 1 to `num_tokens` tokens.

        Args:
            num_tokens (`int`): Most tokens.
            context_len (`int`, *optional*, defaults to 1): Tokens before them.

        Returns:
            `numpy.ndarray` of shape `(num_tokens + 1,)`; the first entry is 0.
        """
        before, after, share = self._between(context_len)
        of_context = (1 - share) * self._passes[before] + share * self._passes[after]
        seconds = _by_ceil(np.arange(num_tokens + 1), self.tokens, of_context)
        seconds[0] = 0.0
        return seconds

    def of_pass(self, num_tokens: int, context_len: int) -> float:
        """Seconds of one pass: the last number of [`verify`], without the others.

        Args:
            num_tokens (`int`): Tokens of the pass.
            context_len (`int`): Tokens before them.

        Returns:
            `float`.
        """
        before, after, share = self._between(context_len)
        place = min(bisect_left(self.tokens, num_tokens), len(self.tokens) - 1)
        seconds = (1 - share) * self.verify_seconds[before][place] + share * self.verify_seconds[after][place]
        return seconds * max(num_tokens / self.tokens[-1], 1.0)

    def _between(self, context_len: int) -> tuple[int, int, float]:
        """The contexts that a length lies between, and how far on the way to the second one."""
        after = bisect_left(self.contexts, context_len, hi=len(self.contexts) - 1)
        before = max(after - 1, 0)
        if after == before:
            return before, after, 1.0
        share = (context_len - self.contexts[before]) / (self.contexts[after] - self.contexts[before])
        return before, after, min(share, 1.0)

    def draft(self, num_rows: int) -> float:
        """Seconds of a proposal for so many rows.

        Args:
            num_rows (`int`): Rows that are drafted for.

        Returns:
            `float`.
        """
        return float(_by_ceil(np.array([num_rows]), self.rows, np.array(self.draft_seconds, dtype=float))[0])

    @cached_property
    def _passes(self) -> np.ndarray:
        return np.array(self.verify_seconds, dtype=float)

    def corrected(self, tokens: Sequence[int], of_passes: np.ndarray, of_proposals: np.ndarray) -> "StepCost":
        """The same costs, times some ratios, as far as a table may say so.

        Args:
            tokens (`Sequence[int]`): Tokens of the table that is made, rising; those of this one are among them.
            of_passes (`numpy.ndarray` of shape `(tokens,)`): Ratio for each of them.
            of_proposals (`numpy.ndarray` of shape `(rows,)`): Ratio for each number of rows.

        Returns:
            [`StepCost`]; it does not say what it was made for.
        """
        passes = [self.verify(tokens[-1], context)[tokens] * of_passes for context in self.contexts]
        drafts = np.array(self.draft_seconds, dtype=float)
        drafts = np.where(drafts > 0, np.clip(drafts * of_proposals, _LEAST_SECONDS, _MOST_SECONDS), 0.0)
        table = [np.clip(seconds, _LEAST_SECONDS, _MOST_SECONDS).tolist() for seconds in passes]
        return StepCost(tokens, self.contexts, table, self.rows, drafts.tolist())

    def digest(self) -> str:
        """A short digest of the whole table."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def without_draft(self) -> "StepCost":
        """The same for drafts that cost nothing to make."""
        return StepCost(self.tokens, self.contexts, self.verify_seconds, [1], [0.0], self.made_for)


def _leaves(values: Any) -> Iterator[Any]:
    for value in values if isinstance(values, (list, tuple)) else ():
        if isinstance(value, (list, tuple)):
            yield from _leaves(value)
        else:
            yield value


def _by_ceil(counts: np.ndarray, known: Sequence[int], seconds: np.ndarray) -> np.ndarray:
    places = np.searchsorted(known, counts)
    inside = seconds[np.minimum(places, len(known) - 1)]
    return np.where(places < len(known), inside, inside * counts / known[-1])
