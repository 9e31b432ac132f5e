"""Prompt lookup, as the caller asks for it: a drafter without a model.

Source: Saxena 2023, prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from typing import Any

import torch

from dspark_hf.modeling.context import DraftState


class PromptLookup:
    """A drafter without a model, for texts that repeat themselves or their prompt: code, summaries, edits, quotes.

    Pass it to `generate()` as `assistant_model`, or beside a drafter as `SpeculationConfig(prompt_lookup=...)`: rows
    whose latest tokens occurred before then get what followed there, the others the drafter's proposal.

    Args:
        num_slots (`int`, *optional*, defaults to 8): Most drafts of a round.
        min_ngram (`int`, *optional*, defaults to 2): Fewest tokens that must agree.
        max_ngram (`int`, *optional*, defaults to 4): Most tokens that are compared; longer agreements count more.

    Attributes:
        last_stats ([`SpeculationStats`] or `None`): What happened in the latest `generate()` with it as its drafter.

    Raises:
        `ValueError`: If a number is out of range.
    """

    is_drafter = True
    # There is nothing to move.
    device = torch.device("cpu")

    def __init__(self, num_slots: int = 8, min_ngram: int = 2, max_ngram: int = 4):
        for name, value in (("num_slots", num_slots), ("min_ngram", min_ngram), ("max_ngram", max_ngram)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}.")
        if min_ngram > max_ngram:
            raise ValueError(
                f"min_ngram must not exceed max_ngram, got {min_ngram} and {max_ngram}; raise max_ngram as well."
            )
        self.num_slots = num_slots
        self.min_ngram = min_ngram
        self.max_ngram = max_ngram
        self.last_stats = None

    def bind(self, target: Any, check_name: bool = True) -> "PromptLookup":
        """Nothing to do: lookup serves every target.

        Args:
            target (`PreTrainedModel`): Any.
            check_name (`bool`, *optional*, defaults to `True`): Of no account.

        Returns:
            [`PromptLookup`]: Itself.
        """
        return self

    def is_bound_to(self, target: Any) -> bool:
        """Whether it may draft for `target`: always.

        Args:
            target (`PreTrainedModel`): Any.

        Returns:
            `bool`.
        """
        return True

    def start(self, batch_size: int) -> DraftState:
        """A context that stays empty: lookup reads tokens, not features.

        Args:
            batch_size (`int`): Rows.

        Returns:
            [`DraftState`].
        """
        return DraftState(batch_size, num_layers=0)

    def to(self, device: torch.device) -> "PromptLookup":
        """Nothing to do: lookup happens on the host.

        Args:
            device (`torch.device`): Any.

        Returns:
            [`PromptLookup`]: Itself.
        """
        return self

    def __repr__(self) -> str:
        return f"PromptLookup(num_slots={self.num_slots}, min_ngram={self.min_ngram}, max_ngram={self.max_ngram})"
