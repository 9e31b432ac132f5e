"""Drafters that bring about what a trained one does only sometimes: every accepted length, any q."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from dspark_hf.modeling import Proposal
from dspark_hf.ops.candidates import Candidates


@dataclass
class FakeState:
    """Context that only remembers what it was given; features and tokens also of rows that have left."""

    context_lens: list[int]
    features: list[list[torch.Tensor]] = field(default_factory=list)
    row_ids: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)

    def select(self, rows):
        self.context_lens, self.missing, self.row_ids = (
            [values[row] for row in rows] for values in (self.context_lens, self.missing, self.row_ids)
        )

    def crop(self, lengths):
        self.context_lens = list(lengths)
        for row_id, length in zip(self.row_ids, lengths, strict=True):
            self.features[row_id] = [torch.cat(self.features[row_id])[:length]]
            self.ids[row_id] = self.ids[row_id][:length]

    def expect(self, num_tokens):
        pass

    def move_to(self, positions):
        self.missing = [place - length for place, length in zip(positions, self.context_lens, strict=True)]

    @property
    def positions(self):
        return [length + missing for length, missing in zip(self.context_lens, self.missing, strict=True)]


class FakeDrafter:
    """What the decoding loop asks of a drafter, without a model."""

    is_drafter = True
    device = torch.device("cpu")

    def __init__(self, num_slots=4, taps=(0, 2), enable_confidence_head=False):
        self.config = SimpleNamespace(
            num_slots=num_slots, target_layer_ids=list(taps), enable_confidence_head=enable_confidence_head
        )
        self.target = None
        self.last_stats = None
        self.offered = []

    def bind(self, target, check_name=True):
        self.target = target
        return self

    def is_bound_to(self, target):
        return self.target is target

    def to(self, device):
        return self

    def start(self, batch_size):
        features, ids = ([[] for _ in range(batch_size)] for _ in range(2))
        self.state = FakeState([0] * batch_size, features, list(range(batch_size)), [0] * batch_size, ids)
        return self.state

    def extend(self, state, features, counts=None, ids=None):
        counts = [features.shape[1]] * features.shape[0] if counts is None else counts
        for row, count in enumerate(counts):
            state.features[state.row_ids[row]].append(features[row, :count].clone())
            state.ids[state.row_ids[row]] += ids[row, :count].tolist()
            state.context_lens[row] += count


class OracleDrafter(FakeDrafter):
    """Knows how each row goes on, and gets `pattern[i]` drafts right in round i, or `pattern[i + row]` if uneven.

    Args:
        rows: Token ids of each row, prompt without padding and continuation.
        pattern: Right drafts per round, repeated.
        vocab_size: Vocabulary, to make wrong tokens.
        uneven: Whether rows get different numbers right.
    """

    def __init__(self, rows, pattern, vocab_size, uneven=False, **kwargs):
        super().__init__(**kwargs)
        self.uneven = uneven
        self.rows, self.pattern, self.vocab_size = rows, list(pattern), vocab_size
        self.num_rounds = 0
        self.anchors_were_right = True

    def propose(self, state, anchor_ids, pick=None, num_slots=None, num_candidates=None):
        self.offered.append(num_slots)
        ids = torch.zeros(len(state.row_ids), num_slots, dtype=torch.long)
        confidence = torch.full(ids.shape, -4.0)
        for row, row_id in enumerate(state.row_ids):
            known = self.rows[row_id]
            num_right = self.pattern[(self.num_rounds + self.uneven * row_id) % len(self.pattern)]
            confidence[row, :num_right] = 4.0
            anchor = state.positions[row]
            if anchor < len(known) and known[anchor] != anchor_ids[row]:
                self.anchors_were_right = False
            for slot in range(num_slots):
                place = anchor + 1 + slot
                token = known[place] if place < len(known) else 0
                ids[row, slot] = token if slot < num_right else (token + 1) % self.vocab_size
        self.num_rounds += 1
        return Proposal(ids, None, confidence)


class OneHotOracle(OracleDrafter):
    """An oracle for sampling: sure of each draft."""

    def propose(self, *args, **kwargs):
        proposal = super().propose(*args, **kwargs)
        proposal.candidates = Candidates.certain(proposal.ids)
        return proposal


class TableDrafter(FakeDrafter):
    """Draft logits from a fixed random table of the previous token, through the caller's `pick`.

    Args:
        vocab_size: Vocabulary.
        scale: Spread of the logits; 0 drafts uniformly.
        sway: What each number of a token before a slot adds to its confidence.
    """

    def __init__(self, vocab_size, scale=2.0, sway=0.1, **kwargs):
        super().__init__(**kwargs)
        self.sway = sway
        generator = torch.Generator().manual_seed(1)
        self.table = scale * torch.randn(vocab_size, vocab_size, generator=generator)

    def propose(self, state, anchor_ids, pick=None, num_slots=None, num_candidates=None):
        pick = pick or (lambda logits, token_ids, drafted_ids: (logits.argmax(-1), None))
        ids = torch.zeros(anchor_ids.shape[0], num_slots, dtype=torch.long)
        previous, drawn_from = anchor_ids, []
        for slot in range(num_slots):
            logits, token_ids = self.table[previous].topk(min(num_candidates or len(self.table), len(self.table)))
            places, probs = pick(logits, token_ids, ids[:, :slot])
            previous = token_ids.gather(1, places.unsqueeze(1)).squeeze(1)
            ids[:, slot] = previous
            drawn_from.append(None if probs is None else Candidates(token_ids, probs))
        confidence = torch.linspace(2.0, -2.0, num_slots).expand(ids.shape[0], -1) + self._bias(anchor_ids, ids) - 1.0
        candidates = None if drawn_from[0] is None else Candidates.stack(drawn_from)
        return Proposal(ids, candidates, confidence, None if candidates is None else candidates.max_probs)

    def _bias(self, anchor_ids, ids):
        """What tokens add to the confidence of slots: of each slot, the token before it."""
        return self.sway * torch.cat([anchor_ids.unsqueeze(1), ids[:, :-1]], 1).float()


def greedy_oracle(target, input_ids, pattern, max_new_tokens=64, attention_mask=None, **kwargs):
    """An oracle for plain greedy continuations of a batch.

    Returns:
        The drafter and plain `generate()`'s ids.
    """
    plain = target.generate(
        input_ids, attention_mask=attention_mask, max_new_tokens=max_new_tokens, do_sample=False, speculation=False
    )
    rows = []
    for row, ids in enumerate(plain.tolist()):
        mask = [1] * input_ids.shape[1] if attention_mask is None else attention_mask[row].tolist()
        rows.append([token for token, keep in zip(ids, mask, strict=False) if keep] + ids[input_ids.shape[1] :])
    return OracleDrafter(rows, pattern, target.config.vocab_size, **kwargs), plain
