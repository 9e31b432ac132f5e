"""Drafts that stand at a chosen rate: what an engine makes of a drafter of that quality, without one."""

import copy
import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dspark_hf.modeling import Proposal


def with_acceptance(drafter: Any, texts: Sequence[Sequence[int]], acceptance: float, seed: int) -> Any:
    """A drafter that works as this one does, and whose greedy drafts then are put right or wrong.

    Each slot is right with that probability, whatever stands before it. Where a row has left its text, and behind the
    text's end, drafts are its own.

    Args:
        drafter ([`DSparkModel`]): Whose passes take the time; it is not changed.
        texts (`Sequence[Sequence[int]]`): Token ids of each row, the prompt without padding and its plain answer.
        acceptance (`float`): The rate.
        seed (`int`): Seed of what is right.

    Returns:
        A drafter, which shares its weights with the given one.
    """
    copied = copy.copy(drafter)
    kind = type(drafter)
    copied.__class__ = type(f"Synthetic{kind.__name__}", (_Synthetic, kind), {})
    copied.texts, copied.acceptance, copied.random = texts, acceptance, random.Random(seed)
    return copied


class _Synthetic:
    """What is laid over a drafter's class."""

    texts: Sequence[Sequence[int]]
    acceptance: float
    random: random.Random

    def start(self, batch_size: int) -> Any:
        state = super().start(batch_size)
        state.row_ids, select = list(range(batch_size)), state.select

        def select_and_note(rows: Sequence[int]) -> None:
            select(rows)
            state.row_ids = [state.row_ids[row] for row in rows]

        state.select = select_and_note
        return state

    def propose(self, state: Any, anchor_ids: Tensor, *args: Any, **kwargs: Any) -> Proposal:
        proposal = super().propose(state, anchor_ids, *args, **kwargs)
        places = state.positions(1, anchor_ids.device).expand(len(anchor_ids), 1)[:, 0].tolist()
        drafts = proposal.ids.tolist()
        for row, (row_id, place) in enumerate(zip(state.row_ids, places, strict=True)):
            text = self.texts[row_id]
            if place >= len(text) or text[place] != anchor_ids[row].item():
                continue
            for slot, right in enumerate(text[place + 1 : place + 1 + len(drafts[row])]):
                is_right = self.random.random() < self.acceptance
                wrong = (right + 1) % self.config.vocab_size
                drafts[row][slot] = right if is_right else wrong
        return Proposal(proposal.ids.new_tensor(drafts), proposal.candidates, proposal.confidence_logits)
