"""Where two greedy runs part, and whether the target was undecided there.

Low precision rounds logits, and a forward of one token rounds differently from a forward of several. Where the two
best logits lie within that rounding, either token is the target's own choice: a numerical tie.
"""

import math
from dataclasses import dataclass

import torch

from dspark_hf.evaluation.running.precision import PrecisionCopies


@dataclass(frozen=True)
class TokenDifference:
    """The first place where plain and speculative ids differ.

    Args:
        position (`int`): Index among the new tokens.
        plain_id (`int`, *optional*): The plain run's token; `None` where that run had ended.
        speculative_id (`int`, *optional*): The speculative run's token; `None` where that run had ended.
        gap (`float`): The target's best logit minus its second best there, in the dtype of the runs.
        spacing (`float`): Distance between neighbouring numbers of that dtype at the best logit. Logits that went
            through a whole network are uncertain by a few of these.
        gap_float32 (`float`): The same in float32.
        choice_gap_float32 (`float`, *optional*): float32 logit of `plain_id` minus that of `speculative_id`.
    """

    position: int
    plain_id: int | None
    speculative_id: int | None
    gap: float
    spacing: float
    gap_float32: float
    choice_gap_float32: float | None


def first_difference(left: list[int], right: list[int]) -> int | None:
    """The first index at which the token lists `left` and `right` differ, or `None` where they are equal."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))


class TieFinder:
    """Looks at differences through the target's own logits.

    Args:
        copies ([`PrecisionCopies`]): The target, in the dtype of the runs and on request in float32.
        dtype (`torch.dtype`): The dtype of the runs.
    """

    def __init__(self, copies: PrecisionCopies, dtype: torch.dtype) -> None:
        self._copies = copies
        self._dtype = dtype

    def examine(self, prompt_ids: list[int], plain: list[int], speculative: list[int]) -> TokenDifference | None:
        """Compare two greedy answers to one prompt.

        Args:
            prompt_ids (`list[int]`): The prompt, without padding.
            plain (`list[int]`): New tokens of the plain run.
            speculative (`list[int]`): New tokens of the speculative run.

        Returns:
            [`TokenDifference`], or `None` where the answers are equal.
        """
        position = first_difference(plain, speculative)
        if position is None:
            return None
        prefix = prompt_ids + plain[:position]
        plain_id = plain[position] if position < len(plain) else None
        speculative_id = speculative[position] if position < len(speculative) else None
        logits = self._next_logits(prefix, self._dtype)
        exact = self._next_logits(prefix, torch.float32)
        both = plain_id is not None and speculative_id is not None
        return TokenDifference(
            position=position,
            plain_id=plain_id,
            speculative_id=speculative_id,
            gap=_top_gap(logits),
            spacing=_spacing(logits.max().item(), self._dtype),
            gap_float32=_top_gap(exact),
            choice_gap_float32=(exact[plain_id] - exact[speculative_id]).item() if both else None,
        )

    @torch.no_grad()
    def _next_logits(self, ids: list[int], dtype: torch.dtype) -> torch.Tensor:
        """Logits `[V]` after `ids`, from one plain forward over all of them."""
        model = self._copies.get(dtype)
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
        return logits[0, -1].float()


def _top_gap(logits: torch.Tensor) -> float:
    best, second = logits.topk(2).values.tolist()
    return best - second


def _spacing(value: float, dtype: torch.dtype) -> float:
    """Distance from `value` to the next larger number of `dtype`."""
    exponent = math.frexp(abs(value))[1] - 1
    return math.ldexp(torch.finfo(dtype).eps, exponent)
