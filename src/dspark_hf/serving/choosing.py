"""From the logits of many requests to their tokens: each request by its own options.

Shapes: N positions of a step, B requests, n drafts, k candidates, V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.generation.tokens.processors import PREFIX_FREE
from dspark_hf.generation.tokens.sampling import TokenChooser
from dspark_hf.modeling.drafting import PickFn
from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.verify import verify_greedy

from .options import RequestOptions
from .seeded import Place, SeededDraws

# Sets of options whose processors are kept.
_MOST_CHOOSERS = 256


@dataclass(frozen=True)
class Asked:
    """A request whose next tokens are asked for.

    Attributes:
        options ([`RequestOptions`]): Its own options.
        row (`int`): Its row of the proposal; of no meaning without drafts.
        num_drafts (`int`): Its drafts that are verified. Its positions of the step are one more.
        position (`int`): Where the first of its next tokens will stand.
    """

    options: RequestOptions
    row: int
    num_drafts: int
    position: int = 0


# Those whose tokens are chosen alike, and whether they have seeds of their own.
_Group = tuple[TokenChooser, bool]


class RequestChoosers:
    """Chooses tokens by the options of each request.

    Args:
        generation_config (`GenerationConfig`): The options of those that ask for nothing.
        make_processors (`Callable`): From such a config to its logits processors.
        speculation ([`SpeculationConfig`]): Seed of the draws, and how drafts are judged.
        vocab_size (`int`): Tokens that the target tells apart.
    """

    def __init__(
        self,
        generation_config: GenerationConfig,
        make_processors: Callable[[GenerationConfig], LogitsProcessorList],
        speculation: SpeculationConfig,
        vocab_size: int,
    ):
        self._config, self._make_processors = generation_config, make_processors
        self._speculation, self._vocab_size = speculation, vocab_size
        self._choosers: dict[tuple, TokenChooser] = {}
        self._seeded = SeededDraws(vocab_size)
        self._num_made = 0

    def of(self, options: RequestOptions) -> TokenChooser:
        """The chooser of a request.

        Args:
            options ([`RequestOptions`]): Its own options.

        Raises:
            `ValueError`: If an option is out of range, or needs the text so far.
        """
        key = options.sampling
        if key not in self._choosers:
            if len(self._choosers) >= _MOST_CHOOSERS:
                self._choosers.pop(next(iter(self._choosers)))
            self._choosers[key] = self._make(dict(key))
        return self._choosers[key]

    def _make(self, options: dict[str, Any]) -> TokenChooser:
        config = copy.copy(self._config)
        for name, value in options.items():
            setattr(config, name, value)
        processors = self._make_processors(config)
        check_processors(processors)
        speculation = self._speculation
        if speculation.seed is not None:
            # No two sets of options draw the same numbers.
            speculation = replace(speculation, seed=(speculation.seed + 2 * self._num_made) % 2**63)
        self._num_made += 1
        return TokenChooser(processors, bool(config.do_sample), 1, speculation)

    def draft_picker(
        self, rows: Sequence[RequestOptions], positions: Sequence[int], device: torch.device
    ) -> PickFn | None:
        """The `pick` of [`DSparkModel.propose`].

        Args:
            rows (`Sequence[RequestOptions]`): The options of each row.
            positions (`Sequence[int]`): Where each row's first draft stands.
            device (`torch.device`): Where drafts are picked.
        """
        pickers: dict[_Group, PickFn | None] = {}
        groups = self._grouped(rows)
        for (chooser, is_seeded), members in groups.items():
            text, ones = _no_text(len(members), device), [1] * len(members)
            pick = chooser.draft_picker(text, ones, list(range(len(members))), self._vocab_size)
            if is_seeded:
                places = [(rows[row].seed, positions[row]) for row in members]
                pick = _SeededPick(pick, self._seeded, places)
            pickers[chooser, is_seeded] = pick
        if len(pickers) <= 1:
            return next(iter(pickers.values()), None)

        def pick_all(logits: Tensor, token_ids: Tensor, drafted_ids: Tensor) -> tuple[Tensor, Tensor]:
            places = torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device)
            probs = torch.zeros(logits.shape, device=logits.device)
            for group, members in groups.items():
                rows = torch.tensor(members, device=logits.device)
                one = pickers[group]
                if one is None:
                    chosen, drawn_from = logits[rows].max(-1).indices, None
                else:
                    chosen, drawn_from = one(logits[rows], token_ids[rows], drafted_ids[rows])
                if drawn_from is None:
                    drawn_from = torch.zeros_like(probs[rows]).scatter_(1, chosen.unsqueeze(1), 1.0)
                places[rows], probs[rows] = chosen, drawn_from
            return places, probs

        return pick_all

    def judge(
        self, logits: Tensor, asked: Sequence[Asked], draft_ids: Tensor | None, candidates: Candidates | None
    ) -> tuple[list[int], list[int]]:
        """Which drafts stand, and the token behind them, of each request.

        Args:
            logits (`torch.FloatTensor` of shape `(positions, vocab)`): The target's, of each request's last known
                token and its drafts, one request after the other.
            asked (`Sequence[Asked]`): The requests.
            draft_ids (`torch.LongTensor` of shape `(rows, drafts)`, *optional*): The proposal.
            candidates ([`Candidates`] of shape `(rows, drafts, k)`, *optional*): What it was drawn from.

        Returns:
            `tuple(list[int], list[int])`: Drafts accepted, and next tokens: the size of the vocabulary where the
            target has no distribution.
        """
        groups = self._grouped([one.options for one in asked])
        if len(logits) == len(asked) and all(map(_takes_best, groups)):
            # Without drafts a step ends as transformers ends it.
            return [0] * len(asked), logits.max(-1).indices.tolist()
        begins = [0]
        for one in asked:
            begins.append(begins[-1] + one.num_drafts + 1)
        order, verdicts = [], []
        for group, members in groups.items():
            # Positions that were not asked for cost those who draw, and not those who take the best.
            parts = [members] if _takes_best(group) else [
                [index for index in members if (asked[index].num_drafts > 0) == has_drafts]
                for has_drafts in (False, True)
            ]  # fmt: skip
            for part in parts:
                if part:
                    of_part = [asked[index] for index in part]
                    starts = torch.tensor([begins[index] for index in part], device=logits.device)
                    verdicts.append(self._judge(group, logits, of_part, starts, draft_ids, candidates))
                    order += part
        # The step's one wait for the device.
        accepted, tokens = torch.cat(verdicts, 1).tolist()
        self._seeded.forget()
        if order == list(range(len(order))):
            return accepted, tokens
        places = sorted(range(len(order)), key=order.__getitem__)
        return [accepted[place] for place in places], [tokens[place] for place in places]

    def _judge(
        self,
        group: _Group,
        logits: Tensor,
        asked: list[Asked],
        starts: Tensor,
        draft_ids: Tensor | None,
        candidates: Candidates | None,
    ) -> Tensor:
        """Accepted lengths and next tokens `(2, batch)` of requests of a group."""
        chooser, is_seeded = group
        lens = torch.tensor([one.num_drafts for one in asked], device=logits.device)
        num_drafts = max(one.num_drafts for one in asked)
        ids, drawn_from = torch.zeros(len(asked), 0, dtype=torch.int64, device=logits.device), None
        if num_drafts > 0:
            rows = torch.tensor([one.row for one in asked], device=draft_ids.device)
            ids = draft_ids[rows, :num_drafts].to(logits.device)
            drawn_from = None if candidates is None else candidates[rows, :num_drafts].to(logits.device)
        # Behind a row's drafts stands its last position again.
        steps = torch.arange(num_drafts + 1, device=logits.device).clamp_max(lens.unsqueeze(1))
        places = starts.unsqueeze(1) + steps  # [B, n + 1]
        if _takes_best(group):
            return torch.stack(verify_greedy(ids, logits.max(-1).indices[places], lens))
        scores = logits[places]
        if chooser.needs_scores():
            scores = chooser.block_scores(
                _no_text(len(asked), logits.device), [1] * len(asked), list(range(len(asked))), scores
            )
        if is_seeded:
            at = [(one.options.seed, one.position + step) for one in asked for step in range(num_drafts + 1)]
            probs = scores.softmax(-1).flatten(0, 1)
            tokens = self._seeded.draw(probs, at)
            # As of verify_sampled, where there is no distribution.
            tokens = torch.where(probs.sum(-1).isfinite(), tokens, probs.shape[-1])
            return torch.stack(verify_greedy(ids, tokens.view(places.shape), lens))
        return torch.stack(chooser.verify_block(ids, drawn_from, scores, lens))

    def _grouped(self, rows: Sequence[RequestOptions]) -> dict[_Group, list[int]]:
        groups: dict[_Group, list[int]] = {}
        for row, options in enumerate(rows):
            chooser = self.of(options)
            groups.setdefault((chooser, chooser.do_sample and options.seed is not None), []).append(row)
        return groups


@dataclass(frozen=True)
class _SeededPick:
    """A `pick` that draws from what another draws from, by seeds."""

    pick: PickFn
    draws: SeededDraws
    places: list[Place]

    def __call__(self, logits: Tensor, token_ids: Tensor, drafted_ids: Tensor) -> tuple[Tensor, Tensor]:
        _, probs = self.pick(logits, token_ids, drafted_ids)
        slot = drafted_ids.shape[1]
        return self.draws.draw(probs, [(seed, position + slot) for seed, position in self.places], token_ids), probs


def _takes_best(group: _Group) -> bool:
    """Whether the next token of requests of a group is that of the highest logit."""
    chooser, _ = group
    return not (chooser.do_sample or chooser.needs_scores())


def _no_text(num_rows: int, device: torch.device) -> Tensor:
    """What processors get as the text so far, which they do not look at."""
    return torch.zeros(num_rows, 1, dtype=torch.int64, device=device)


def check_processors(processors: LogitsProcessorList) -> None:
    """Look whether processors can do without the text so far.

    Args:
        processors (`LogitsProcessorList`): They.

    Raises:
        `ValueError`: If one looks at it, or nothing is known of one.
    """
    names = [type(processor).__name__ for processor in processors if type(processor) not in PREFIX_FREE]
    if names:
        raise ValueError(
            f"{', '.join(names)} may look at the text so far, which continuous batching does not show to processors. "
            "Leave out the option that it belongs to, or use generate(), which takes them all."
        )
