"""What a generation is made of, timed alone: a plain step, a verification, a proposal.

Shapes: B rows, S tokens of each, n drafts.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from dspark_hf.evaluation.running.runs import Run, wait_for
from dspark_hf.generation.rollback.compaction import is_compactable
from dspark_hf.generation.target.decode_kernels import decode_kernels
from dspark_hf.generation.target.flat import FlatRunner
from dspark_hf.generation.target.layout import PromptLayout
from dspark_hf.modeling.cache_name import CACHE_NAME

# Each piece is timed so often, in turn with the others, and the median counts.
_NUM_TIMES = 5


@dataclass(frozen=True)
class Pieces:
    """Seconds of the pieces, for a batch in the middle of its answers.

    Args:
        plain (`float`): A pass over one token of each row, and its argmax.
        verify (`float`): A pass over a whole block, and its argmax.
        draft (`float`): A whole block's proposal, and reading the features of the tokens before it.
    """

    plain: float
    verify: float
    draft: float

    def ideal_ratio(self, tau: float) -> float:
        """Speed against plain decoding of rounds that make `tau` tokens and consist of nothing but the pieces."""
        return tau * self.plain / (self.verify + self.draft)


def can_time(target: Any) -> bool:
    """Whether a `target`'s pieces can be timed: those of one whose cache keeps nothing but keys and values."""
    return is_compactable(DynamicCache(config=target.config))


@torch.no_grad()
def time_pieces(target: Any, drafter: Any, rows: Sequence[Sequence[int]], num_taken: int) -> Pieces:
    """Time the pieces of a generation, each on its own, behind the same cache.

    Args:
        target (`PreTrainedModel`): The model, one that [`can_time`] takes.
        drafter ([`DSparkModel`]): Its drafter, bound to it.
        rows (`Sequence[Sequence[int]]`): Token ids of each row, of which all but the last are cached.
        num_taken (`int`): Tokens that a round makes, whose features the drafter reads.

    Returns:
        [`Pieces`].

    Raises:
        `ValueError`: If the rows are of different lengths, or shorter than two tokens.
    """
    if len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        raise ValueError(
            f"Rows must have one length, of at least 2 tokens, got {sorted({len(row) for row in rows})}: cut them."
        )
    num_slots = drafter.config.num_slots
    ids = torch.tensor(rows, device=target.device)
    ids = torch.cat([ids, ids[:, -1:].expand(-1, num_slots)], 1)
    plain = _plain_step(target, ids, len(rows[0]))
    verify, draft = _round_pieces(target, drafter, ids, len(rows[0]), num_taken)
    steps = (plain, verify, draft)
    with decode_kernels(target):
        for step in steps:
            step()
        times = [[seconds_of(step, target.device) for step in steps] for _ in range(_NUM_TIMES)]
    return Pieces(*map(statistics.median, zip(*times, strict=True)))


def time_pieces_of(target: Any, drafter: Any, prompt_ids: Sequence[Sequence[int]], run: Run) -> Pieces:
    """Time the pieces in the middle of the answers of a run, at the tau that it had.

    Args:
        target (`Any`): The target.
        drafter (`Any`): Its drafter.
        prompt_ids (`Sequence[Sequence[int]]`): The run's prompts.
        run ([`Run`]): The run, with its answers and statistics.
    """
    pairs = list(zip(prompt_ids, run.ids, strict=True))
    length = max(2, sum(len(prompt) + len(answer) // 2 for prompt, answer in pairs) // len(pairs))
    rows = [[*prompt, *answer] for prompt, answer in pairs]
    # Rows that are too short go on with their own tokens: what a pass takes does not depend on them.
    rows = [(row * (length // len(row) + 1))[:length] for row in rows]
    return time_pieces(target, drafter, rows, max(1, round(run.stats.tau)))


def efficiency(runs: Sequence[tuple[Run, Run, Pieces]]) -> dict[str, Any]:
    """How much of the speed that the pieces allow is reached.

    Args:
        runs (`Sequence[tuple[Run, Run, Pieces]]`): Of each call the run with the drafter, the plain one, and the
            pieces.

    Returns:
        `dict`, JSON-able: `median` and `calls`, the ratio to plain decoding over [`Pieces.ideal_ratio`]; and the
        medians `plain_step_seconds`, `verify_seconds` and `draft_seconds`.
    """
    calls = [
        own.tokens_per_second / plain.tokens_per_second / one.ideal_ratio(own.stats.tau)
        for own, plain, one in runs
        # An answer of one token has no rounds.
        if own.stats.rounds > 0
    ]
    pieces = [one for _, _, one in runs]
    return {
        "median": statistics.median(calls) if calls else None,
        "calls": calls,
        "plain_step_seconds": statistics.median(one.plain for one in pieces),
        "verify_seconds": statistics.median(one.verify for one in pieces),
        "draft_seconds": statistics.median(one.draft for one in pieces),
    }


def _plain_step(target: Any, ids: torch.Tensor, num_tokens: int) -> Callable[[], None]:
    cache = DynamicCache(config=target.config)
    target(ids[:, : num_tokens - 1], **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)
    # Sliding windows then keep what a step pushes out of them.
    cache.activate_past_recording()
    last = ids[:, num_tokens - 1 : num_tokens]

    def step() -> None:
        target(last, **{CACHE_NAME: cache}, use_cache=True).logits.max(-1).indices.tolist()
        cache.crop(-1)

    return step


def _round_pieces(
    target: Any, drafter: Any, ids: torch.Tensor, num_tokens: int, num_taken: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A verification and a proposal, as the decoding loop runs them."""
    num_rows, num_cached, num_slots = ids.shape[0], num_tokens - 1, drafter.config.num_slots
    positions = torch.arange(num_cached, device=ids.device).expand(num_rows, -1)
    model_kwargs = {
        CACHE_NAME: DynamicCache(config=target.config), "position_ids": positions, "use_cache": True,
    }  # fmt: skip
    layout = PromptLayout(num_rows, num_cached, num_cached)
    runner = FlatRunner(target, drafter.config.target_layer_ids, model_kwargs, layout, num_tokens + num_slots)
    state, piece = drafter.start(num_rows), None
    for _ in runner.prefill(ids[:, :num_cached]):
        begin = 0
        for piece in runner.take_prompt():
            drafter.extend(state, piece, None, ids[:, begin : begin + piece.shape[1]])
            begin += piece.shape[1]
    features = piece[:, -min(num_taken, num_cached) :]
    lens, offers = [num_tokens] * num_rows, [num_slots] * num_rows

    def verify() -> None:
        runner.verify(ids, lens, offers).max(-1).indices.tolist()
        runner.take_features(features.shape[1])
        runner.commit([num_slots + 1] * num_rows, [num_cached + 1] * num_rows)

    def draft() -> None:
        state.crop([num_cached - features.shape[1]] * num_rows)
        drafter.extend(state, features, None, ids[:, num_cached - features.shape[1] : num_cached])
        drafter.propose(state, ids[:, num_cached], num_slots=num_slots).ids.tolist()

    return verify, draft


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of one run of a step, until its device is done.

    Args:
        step (`Callable`): What to run.
        device (`torch.device`): Where it runs.
    """
    wait_for(device)
    started = time.perf_counter()
    step()
    wait_for(device)
    return time.perf_counter() - started
