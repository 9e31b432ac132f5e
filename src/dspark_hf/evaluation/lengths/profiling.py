"""What passes and proposals take on this machine: a [`StepCost`], measured.

Shapes: R rows, c tokens of context, n slots.
"""

import random
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from dspark_hf.evaluation.running.pieces import can_time, seconds_of
from dspark_hf.generation.lengths.cost_files import circumstances
from dspark_hf.generation.lengths.step_cost import StepCost
from dspark_hf.generation.target.decode_kernels import decode_kernels
from dspark_hf.generation.target.flat import FlatRunner
from dspark_hf.generation.target.layout import PromptLayout
from dspark_hf.modeling.cache_name import CACHE_NAME

_CONTEXTS = 256, 1024
# Tokens of a pass that are measured first; more follow between two that are far apart in time.
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_JUMP, _NUM_REFINEMENTS = 1.15, 2
_NUM_WARM_UPS = 2
# Where time per token falls no more by this share from half as many tokens on, a processor only computes; the fewest
# tokens of which that is believed.
_COMPUTING, _LEAST_COMPUTING = 0.9, 8
# Tokens that a round makes, whose features the drafter reads.
_NUM_READ = 2


@torch.no_grad()
def profile(
    target: Any,
    drafter: Any,
    *,
    contexts: Sequence[int] | None = None,
    max_tokens: int | None = None,
    num_repeats: int = 7,
    seed: int = 0,
    report: Callable[[str, int, int], None] = lambda name, num_done, num_all: None,
) -> StepCost:
    """Measure passes of the target by tokens and context, and the drafter's proposals by rows.

    All sizes are gone through in turn, in another order each time, and of each the median counts, so that what else
    the machine does meets all alike. Between sizes where time jumps more are measured. A pass that takes longer than
    one over more tokens is taken to take as long as that. Sizes from which on time grows as tokens do are left out: a
    table says of them just that, and a slow processor would be at them for an hour.

    Args:
        target (`PreTrainedModel`): The model, in evaluation mode.
        drafter ([`DSparkModel`]): Its drafter, bound to it.
        contexts (`Sequence[int]`, *optional*): Tokens before the pass, of each row; by default 256 and 1,024, or as
            many as the target has positions for.
        max_tokens (`int`, *optional*): Most tokens of a pass; 512 by default, and 128 on a CPU.
        num_repeats (`int`, *optional*, defaults to 7): Times of each size.
        seed (`int`, *optional*, defaults to 0): Of the order and the tokens.
        report (`Callable`, *optional*): Called with what is measured, the times taken, and how many there are.

    Returns:
        [`StepCost`], with the circumstances that it holds for.

    Raises:
        `ValueError`: If a number is out of range, or the target keeps more than keys and values.
    """
    longest = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    most = sys.maxsize if longest is None else longest - 1 - drafter.config.num_slots
    if contexts is None:
        contexts = [min(length, most) for length in _CONTEXTS]
    max_tokens = (128 if target.device.type == "cpu" else 512) if max_tokens is None else max_tokens
    for name, values, least in (
        ("contexts", contexts, 4), ("max_tokens", [max_tokens], 2), ("num_repeats", [num_repeats], 1),
    ):  # fmt: skip
        if not values or min(values) < least:
            raise ValueError(f"{name} must be at least {least}, got {list(values)}.")
    if max(contexts) > most:
        raise ValueError(
            f"contexts must leave room for a block within the target's {longest} positions, so be at most {most}, got "
            f"{list(contexts)}."
        )
    if not can_time(target):
        raise ValueError(
            f"{type(target).__name__} keeps more than keys and values in its cache, so its passes cannot be timed "
            "alone. Generation estimates what they take."
        )
    rng, contexts = random.Random(seed), sorted(set(contexts))
    sizes = [size for size in _SIZES if size < max_tokens] + [max_tokens]
    with decode_kernels(target):
        verify: dict[int, dict[int, float]] = {context: {} for context in contexts}
        sizes = _until_computing(_Passes(target, drafter, contexts[0], rng).of, sizes, target.device)
        for _ in range(1 + _NUM_REFINEMENTS):
            new = [size for size in sizes if size not in verify[contexts[0]]]
            for context in contexts if new else ():
                passes = _Passes(target, drafter, context, rng)
                steps = {size: passes.of(size) for size in new}
                seconds = _medians(steps, num_repeats, target.device, rng, report, f"passes behind {context} tokens")
                verify[context] |= seconds
            sizes = _with_midpoints(verify[contexts[0]])
        rows = sorted({-(-size // (drafter.config.num_slots + 1)) for size in sizes} | {1})
        steps = {num_rows: _proposal(drafter, num_rows, contexts[0]) for num_rows in rows}
        draft = _medians(steps, num_repeats, target.device, rng, report, "proposals")
    return StepCost(
        sorted(verify[contexts[0]]),
        contexts,
        [_rising(verify[context]) for context in contexts],
        rows,
        _rising(draft),
        circumstances(target, drafter),
    )


class _Passes:
    """Passes of the target over some tokens, as rounds run them, behind contexts of one length.

    Rows of a number are prepared once. A row has at most as many tokens as a block.
    """

    def __init__(self, target: Any, drafter: Any, context: int, rng: random.Random):
        self._target, self._drafter, self._context = target, drafter, context
        vocab_size = target.config.get_text_config().vocab_size
        # One token more than is cached, and a block behind it.
        num_ids = context + 1 + drafter.config.num_slots
        self._ids = torch.tensor([[rng.randrange(vocab_size) for _ in range(num_ids)]], device=target.device)
        self._cached = DynamicCache(config=target.config)
        target(self._ids[:, : context - 1], **{CACHE_NAME: self._cached}, use_cache=True, logits_to_keep=1)
        self._runners: dict[int, FlatRunner] = {}

    def of(self, num_tokens: int) -> Callable[[], None]:
        """A pass over so many tokens of as few rows as have them, and what follows until the next."""
        num_rows = -(-num_tokens // (self._drafter.config.num_slots + 1))
        runner = self._runner(num_rows)
        share, rest = divmod(num_tokens - num_rows, num_rows)
        offers = [share + (row < rest) for row in range(num_rows)]
        ids, lens = self._ids.expand(num_rows, -1), [self._context + 1] * num_rows
        num_read = min(_NUM_READ, max(offers) + 1)

        def step() -> None:
            runner.verify(ids, lens, offers).max(-1).indices.tolist()
            runner.take_features(num_read)
            runner.commit([max(offers) + 1] * num_rows, lens)

        return step

    def _runner(self, num_rows: int) -> FlatRunner:
        if num_rows not in self._runners:
            cache = DynamicCache(config=self._target.config)
            for index, layer in enumerate(self._cached.layers):
                cache.update(*(kept.expand(num_rows, -1, -1, -1) for kept in (layer.keys, layer.values)), index)
            positions = torch.arange(self._context, device=self._ids.device).expand(num_rows, -1)
            kwargs = {CACHE_NAME: cache, "position_ids": positions, "use_cache": True}
            layout = PromptLayout(num_rows, self._context, self._context, self._context - 1)
            taps = self._drafter.config.target_layer_ids
            runner = FlatRunner(self._target, taps, kwargs, layout, self._ids.shape[1] + 1)
            for _ in runner.prefill(self._ids[:, : self._context].expand(num_rows, -1)):
                for _ in runner.take_prompt():
                    pass
            self._runners[num_rows] = runner
        return self._runners[num_rows]


def _proposal(drafter: Any, num_rows: int, context: int) -> Callable[[], None]:
    """A whole block's proposal for some rows, and reading the features of the tokens before it."""
    width = len(drafter.config.target_layer_ids) * drafter.config.hidden_size
    features = torch.randn(1, context, width, device=drafter.device).to(drafter.fc.weight.dtype)
    features, ids = features.expand(num_rows, -1, -1), torch.ones(num_rows, context, dtype=torch.int64)
    ids, state = ids.to(drafter.device), drafter.start(num_rows)
    drafter.extend(state, features, None, ids)

    def step() -> None:
        state.crop([context - _NUM_READ] * num_rows)
        drafter.extend(state, features[:, -_NUM_READ:], None, ids[:, -_NUM_READ:])
        drafter.propose(state, ids[:, 0]).ids.tolist()

    return step


def _until_computing(
    pass_of: Callable[[int], Callable[[], None]], sizes: Sequence[int], device: torch.device
) -> list[int]:
    """The sizes up to the first from which on time grows as tokens do, by a first look at each."""
    each: dict[int, float] = {}
    for place, size in enumerate(sizes):
        step = pass_of(size)
        each[size] = min(seconds_of(step, device) for _ in range(_NUM_WARM_UPS)) / size
        half = max((other for other in each if 2 * other <= size), default=size)
        if size >= _LEAST_COMPUTING and half < size and each[size] > _COMPUTING * each[half]:
            return list(sizes[: place + 1])
    return list(sizes)


def _medians(
    steps: dict[int, Callable[[], None]],
    num_repeats: int,
    device: torch.device,
    rng: random.Random,
    report: Callable[[str, int, int], None],
    name: str,
) -> dict[int, float]:
    """Median seconds of each step, gone through in turn."""
    times: dict[int, list[float]] = {size: [] for size in steps}
    num_all = (num_repeats + _NUM_WARM_UPS) * len(steps)
    for repeat in range(num_repeats + _NUM_WARM_UPS):
        for place, size in enumerate(rng.sample(sorted(steps), len(steps))):
            taken = seconds_of(steps[size], device)
            if repeat >= _NUM_WARM_UPS:
                times[size].append(taken)
            report(name, repeat * len(steps) + place + 1, num_all)
    return {size: statistics.median(taken) for size, taken in times.items()}


def _with_midpoints(seconds: dict[int, float]) -> list[int]:
    """The sizes, and those in the middle of two between which time jumps."""
    sizes = sorted(seconds)
    middles = [
        (one + other) // 2
        for one, other in zip(sizes, sizes[1:], strict=False)
        if other - one > 1 and seconds[other] > _JUMP * seconds[one]
    ]
    return sorted({*sizes, *middles})


def _rising(seconds: dict[int, float]) -> list[float]:
    """Seconds by rising size, none greater than one of a larger size."""
    least, rising = float("inf"), []
    for size in sorted(seconds, reverse=True):
        least = min(least, seconds[size])
        rising.append(least)
    return rising[::-1]
