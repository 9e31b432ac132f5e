"""A drafter with a real context that knows how texts go on, and requests to try continuous batching with."""

import random

import torch
from tiny_targets import VOCAB_SIZE
from transformers import ContinuousBatchingConfig

from dspark_hf import DSparkModel
from dspark_hf.modeling import Proposal
from dspark_hf.modeling.context import DraftState
from dspark_hf.ops.candidates import Candidates


class ReadingState(DraftState):
    """A context that knows its tokens, too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._ids = [None]

    def _buffers(self):
        return *super()._buffers(), self._ids

    def read(self, ids):
        self._write(self._ids, ids[:, None, :, None], 0)

    def text(self, row):
        """Position of the first token, and the tokens."""
        length = self.context_lens[row]
        return self._first_positions[row], self._ids[0][row, 0, :length, 0].tolist()


class KnowingDrafter(DSparkModel):
    """Drafts how known texts go on, and is wrong from a random slot on.

    Attributes:
        texts (`list[list[int]]`): Prompts with their answers.
        num_lost (`int`): Rows whose context and anchor are in no text.
    """

    texts, num_lost, num_rows, random = (), 0, 0, random.Random(1)

    def _empty_context(self, batch_size):
        return ReadingState(batch_size, len(self.layers))

    def extend_projected(self, state, states, counts=None, ids=None):
        state.read(ids)
        super().extend_projected(state, states, counts, ids)

    def propose(self, state, anchor_ids, pick=None, num_slots=None, num_candidates=None):
        super().propose(state, anchor_ids, pick, num_slots, num_candidates)
        rows = [
            self._go_on_with(*state.text(row), anchor, num_slots) for row, anchor in enumerate(anchor_ids.tolist())
        ]
        ids = torch.tensor(rows)
        return Proposal(ids, None if pick is None else Candidates.certain(ids), None, torch.full(ids.shape, 0.8))

    def _go_on_with(self, first, read, anchor, num_slots):
        known = [*read, anchor]
        self.num_rows += 1
        text = next((text for text in self.texts if text[first : first + len(known)] == known), None)
        # Rows that nobody asks for have 0 there.
        self.num_lost += text is None and anchor != 0
        ahead = [] if text is None else text[first + len(known) :][:num_slots]
        ahead += [0] * (num_slots - len(ahead))
        num_right = self.random.randint(0, num_slots)
        return [token if slot < num_right else (token + 1) % VOCAB_SIZE for slot, token in enumerate(ahead)]


def knowing_drafter(target, texts=(), block_size=5):
    drafter = KnowingDrafter.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=1, markov_rank=4, block_size=block_size
    )
    drafter.texts, drafter.random = list(texts), random.Random(1)
    return drafter.eval()


def plain_answer(target, prompt, max_new_tokens, eos=None):
    """What plain `generate()` answers, up to an end token."""
    config = target.config
    key = config.model_type, tuple(getattr(config, "layer_types", None) or ()), tuple(prompt)
    if len(_answers.get(key, ())) < max_new_tokens:
        ids = torch.tensor([prompt])
        out = target.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
        _answers[key] = out[0, len(prompt) :].tolist()
    row = _answers[key][:max_new_tokens]
    return row[: row.index(eos) + 1] if eos in row else row


# Targets of a kind are alike, and tests ask the same again.
_answers = {}


def small_batching(**options):
    """A small cache, and steps of few tokens, so that prompts are split and requests preempted."""
    defaults = {"page_size": 8, "num_blocks": 96, "max_batch_tokens": 48, "max_memory_percent": 0.5}
    return ContinuousBatchingConfig(**defaults | options)
