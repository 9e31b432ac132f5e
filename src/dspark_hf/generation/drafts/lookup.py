"""Prompt lookup: drafts copied from where the row's latest tokens occurred before.

No model makes them, so they cost next to nothing. They follow from the row's own tokens, which makes q one-hot: a
draft is accepted with the target's probability of it.
"""

from collections.abc import Iterable
from itertools import takewhile

from torch import Tensor

from dspark_hf.generation.lengths.track_record import TrackRecord
from dspark_hf.generation.prompt_lookup import PromptLookup
from dspark_hf.generation.tokens.transcript import Transcript


class NgramIndex:
    """Where each short sequence of one row's tokens occurred last.

    Args:
        lookup ([`PromptLookup`]): Which lengths to look up.
        ids (`Iterable[int]`): The first tokens.
    """

    def __init__(self, lookup: PromptLookup, ids: Iterable[int]):
        self._sizes = range(lookup.min_ngram, lookup.max_ngram + 1)
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Append tokens, by their `ids`."""
        known, places = self._ids, self._places
        for token in ids:
            # What ends here has something to copy only now that a token follows it.
            place = len(known)
            for size in self._sizes:
                if size > place:
                    break
                places[tuple(known[place - size :])] = place
            known.append(token)

    def draft(self, num_drafts: int) -> list[int]:
        """`num_drafts` tokens as they followed the latest earlier place of the longest suffix that has one; empty
        without.
        """
        known = self._ids
        for size in reversed(self._sizes):
            place = self._places.get(tuple(known[-size:])) if size <= len(known) else None
            if place is not None:
                # Past the end the copy goes on with itself, as a text that repeats does.
                period = len(known) - place
                return [known[place + slot % period] for slot in range(num_drafts)]
        return []


class LookupSource:
    """Lookup drafts of one generation.

    Args:
        lookup ([`PromptLookup`]): What to look up.
        num_rows (`int`): Rows of the batch.

    Attributes:
        record ([`TrackRecord`]): What its drafts were worth.
    """

    def __init__(self, lookup: PromptLookup, num_rows: int):
        self.record = TrackRecord(lookup.num_slots, num_rows)
        self._lookup = lookup
        self._indexes: list[NgramIndex] = []
        self._num_read: list[int] = []
        self._vocab_size = 0

    def read_prompt(self, ids: Tensor, mask: Tensor | None, vocab_size: int) -> None:
        """Index each row's prompt, without padding.

        Args:
            ids (`torch.LongTensor` of shape `(rows, prompt)`): The prompt.
            mask (`torch.Tensor` of shape `(rows, columns)`, *optional*): Its attention mask, the last columns of which
                are the ids'.
            vocab_size (`int`): Tokens that the target can make; a prompt may hold others, as for the places of images.
        """
        self._vocab_size = vocab_size
        rows, num_ids = ids.tolist(), ids.shape[1]
        if mask is not None and mask.shape[1] >= num_ids:
            kept = mask[:, mask.shape[1] - num_ids :].tolist()
            rows = [
                [token for token, keep in zip(*pair, strict=True) if keep] for pair in zip(rows, kept, strict=True)
            ]
        self._indexes = [NgramIndex(self._lookup, row) for row in rows]
        self._num_read = [0] * len(rows)

    def select(self, rows: list[int]) -> None:
        """Go on with these `rows` only, numbers from 0."""
        self._indexes = [self._indexes[row] for row in rows]
        self._num_read = [self._num_read[row] for row in rows]

    def draft(self, transcript: Transcript, limits: list[int]) -> list[list[int]]:
        """At most `limits[row]` drafts of each row of a `transcript`; none where its latest tokens are new."""
        found = []
        for row, (index, limit) in enumerate(zip(self._indexes, limits, strict=True)):
            new_ids = transcript.new_ids[row]
            index.extend(new_ids[self._num_read[row] :])
            self._num_read[row] = len(new_ids)
            drafts = index.draft(limit) if limit > 0 else []
            found.append(list(takewhile(lambda token: 0 <= token < self._vocab_size, drafts)))
        return found
