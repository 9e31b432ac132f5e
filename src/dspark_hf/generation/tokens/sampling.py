"""Logits processors on both sides of speculation.

The target's side is exact: every processor sees what plain `generate()` shows it. The drafter's side is only a guess
of it, so there anything goes that keeps `q` the distribution that drafts are drawn from.
Shapes: B batch, n drafts, k candidates, V vocabulary, S tokens so far.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.modeling.drafting import PickFn, PlainDraw
from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.verify import Verification, accept_or_redraw, draw, verify_argmax, verify_sampled

from .processors import PREFIX_FREE, TOKEN_FREE, is_stateless, process_by_length


class TokenChooser:
    """Turns logits into tokens, for drafts and for their verification.

    If a processor is unknown (custom, or with a state, such as classifier-free guidance) and does not say that it
    keeps none ([`~generation.tokens.processors.is_stateless`]), positions are judged one after the other (`in_order`):
    it is called once per emitted token, with that token's true prefix, as in plain `generate()`, and the drafter does
    without it. Rows of a batch must then have the same length.

    Args:
        processors (`LogitsProcessorList`): The processors that `generate()` prepared.
        do_sample (`bool`): Whether tokens are drawn.
        batch_size (`int`): Rows of the batch.
        speculation ([`SpeculationConfig`]): Seed of the draws, and how sampled drafts are judged; one after the other
            in any case where they are judged `in_order`.
        agree (`Callable`, *optional*): What other processes that run the same rows take for a decision, see
            [`~generation.target.peers.Peers`].
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        do_sample: bool,
        batch_size: int,
        speculation: SpeculationConfig,
        agree: Callable[[Tensor], Tensor] | None = None,
    ):
        self.processors = processors
        self._batch_size = batch_size
        self.do_sample = do_sample
        self.in_order = not all(map(is_stateless, processors))
        self._draft_processors = [processor for processor in processors if is_stateless(processor)]
        self._reads_prefix = any(type(processor) not in PREFIX_FREE for processor in self._draft_processors)
        self._tells_tokens = any(type(processor) not in TOKEN_FREE for processor in self._draft_processors)
        self._verification: Verification = speculation.verification
        self._seed = speculation.seed
        self._agree = agree
        self._generators: dict[torch.device, torch.Generator] = {}

    def draft_picker(self, ids: Tensor, lens: list[int], row_ids: list[int], vocab_size: int) -> PickFn | None:
        """The `pick` of [`DSparkModel.propose`], or None where its default does the same.

        Args:
            ids (`torch.LongTensor` of shape `(batch, capacity)`):
                Token ids; a row's columns from its length on are free, and drafts are noted there.
            lens (`list[int]`): Tokens of each row so far, S.
            row_ids (`list[int]`): Place of each row in the batch.
            vocab_size (`int`): Tokens that processors tell apart.
        """
        if not self._draft_processors and not self.do_sample:
            return None
        if self.do_sample and all(type(processor) is TemperatureLogitsWarper for processor in self._draft_processors):
            temperature = math.prod(processor.temperature for processor in self._draft_processors)
            return PlainDraw(temperature, self._generator)

        def pick(logits: Tensor, token_ids: Tensor, drafted_ids: Tensor) -> tuple[Tensor, Tensor | None]:
            ends = [length + drafted_ids.shape[1] for length in lens]
            if self._reads_prefix and drafted_ids.shape[1] > 0:
                columns = torch.tensor(ends, device=ids.device).unsqueeze(1) - 1
                ids.scatter_(1, columns.clamp_max_(ids.shape[1] - 1), drafted_ids[:, -1:].to(ids.device))
            # Processors hold tensors on the device of `ids`.
            scores = logits.to(device=ids.device if self._draft_processors else logits.device, dtype=torch.float32)
            if self._tells_tokens:
                places = token_ids.to(scores.device)
                scores = scores.new_full((len(scores), vocab_size), -torch.inf).scatter_(1, places, scores)
            for processor in self._draft_processors:
                scores = process_by_length(
                    processor, ids, ends, scores.unsqueeze(1), row_ids, self._batch_size
                ).squeeze(1)
            if self._tells_tokens:
                scores = scores.gather(1, places)
            if not self.do_sample:
                return scores.argmax(-1).to(logits.device), None
            # Drafts are drawn from the very probabilities that verification divides by. They are all 0 where
            # processors leave none of the candidates, which ends the row's draft.
            is_empty = scores.amax(-1, keepdim=True) == -torch.inf
            probs = torch.where(is_empty, 0.0, scores.softmax(-1))
            chosen = draw(probs, self._generator(probs.device)).clamp_max_(probs.shape[-1] - 1)
            return chosen.to(logits.device), probs.to(logits.device)

        return pick

    def needs_scores(self) -> bool:
        """Whether choosing needs processed float32 scores; without processors it reads raw logits."""
        return len(self.processors) > 0

    def block_scores(self, ids: Tensor, lens: list[int], row_ids: list[int], logits: Tensor) -> Tensor:
        """Processed scores of all positions of a block. Not for `in_order`.

        Args:
            ids (`torch.LongTensor` of shape `(batch, capacity)`): Token ids, with the drafts behind them.
            lens (`list[int]`): Tokens of each row before the first position, S.
            row_ids (`list[int]`): Place of each row in the batch.
            logits (`torch.Tensor` of shape `(batch, positions, vocab)`): The target's logits.

        Returns:
            `torch.FloatTensor` of shape `(batch, positions, vocab)`, on the device of `ids`.
        """
        scores = logits.to(device=ids.device, dtype=torch.float32)
        for processor in self.processors:
            scores = process_by_length(processor, ids, lens, scores, row_ids, self._batch_size)
        return scores

    def verify_block(
        self, draft_ids: Tensor, candidates: Candidates | None, scores: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Judge a block of drafts.

        Args:
            draft_ids (`torch.LongTensor` of shape `(batch, n)`): The drafts.
            candidates ([`Candidates`] of shape `(batch, n, k)` or `None`): What they were drawn from.
            scores (`torch.Tensor` of shape `(batch, n + 1, vocab)`): Processed scores, or raw logits, see
                [`needs_scores`].
            lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): Drafts to judge of each row; all, if not
                given.

        Returns:
            Two `torch.LongTensor` of shape `(batch,)`: `accepted_len`, and `next_ids` behind them.
        """
        if not self.do_sample:
            device, lengths = scores.device, None if lengths is None else lengths.to(scores.device)
            verdict = verify_argmax(draft_ids.to(device), scores, lengths)
            return self._agreed(*(part.to(draft_ids.device) for part in verdict))
        scores = scores.to(draft_ids.device)
        if candidates is not None:
            candidates = candidates.to(scores.device)
        generator = self._generator(scores.device)
        return self._agreed(*verify_sampled(draft_ids, candidates, scores, lengths, generator, self._verification))

    def next_scores(self, prefix_ids: Tensor, logits: Tensor) -> Tensor:
        """Processed scores of one position, as plain `generate()` computes them.

        Args:
            prefix_ids (`torch.LongTensor` of shape `(batch, tokens)`): The tokens before it.
            logits (`torch.Tensor` of shape `(batch, vocab)`): The target's; they are not changed.

        Returns:
            `torch.FloatTensor` of shape `(batch, vocab)`.
        """
        return self.processors(prefix_ids, logits.to(device=prefix_ids.device, dtype=torch.float32, copy=True))

    def judge(self, draft_ids: Tensor | None, candidates: Candidates | None, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Choose each row's token at one position.

        Args:
            draft_ids (`torch.LongTensor` of shape `(batch,)` or `None`): The drafts of it, if there are any.
            candidates ([`Candidates`] of shape `(batch, k)` or `None`): What they were drawn from.
            scores (`torch.Tensor` of shape `(batch, vocab)`): Processed scores.

        Returns:
            `torch.LongTensor` and `torch.BoolTensor` of shape `(batch,)`: Tokens, and whether each is the draft;
            without
            drafts none is.
        """
        tokens, accepted = self._agreed(*self._judge(draft_ids, candidates, scores))
        return tokens, accepted.bool()

    def _judge(self, draft_ids: Tensor | None, candidates: Candidates | None, scores: Tensor) -> tuple[Tensor, Tensor]:
        if not self.do_sample:
            tokens = scores.argmax(-1)
            return tokens, torch.zeros_like(tokens, dtype=torch.bool) if draft_ids is None else tokens == draft_ids
        generator = self._generator(scores.device)
        if draft_ids is None:
            tokens = draw(scores.softmax(-1), generator)
            return tokens, torch.zeros_like(tokens, dtype=torch.bool)
        return accept_or_redraw(draft_ids, candidates.to(scores.device), scores, generator)

    def _agreed(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if self._agree is None:
            return first, second
        return tuple(self._agree(torch.stack([first, second.to(first)])).unbind())

    def _generator(self, device: torch.device) -> torch.Generator | None:
        if self._seed is None:
            return None
        if device not in self._generators:
            # Two devices must not draw the same numbers, or drafts and verification would not be independent.
            generator = torch.Generator(device=device).manual_seed(self._seed + len(self._generators))
            self._generators[device] = generator
        return self._generators[device]
