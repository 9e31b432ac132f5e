"""The tokens made so far, and everyone who watches them: stopping rules, streamer, recorded scores.

Shapes: B rows at work, n drafts of a round, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig

from .stopping import StopRules


class Transcript:
    """Token ids of a batch, each row with its own length, in a buffer that grows now and then.

    Columns from a row's length on are free: drafts are written there before they are judged.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, prompt)`): The prompt.
        rules ([`StopRules`]): When to stop.
        generation_config (`GenerationConfig`): Tells what to record, and the padding token.
        keeps_rows (`bool`): Whether rows that have ended stay until all have the same length, because what belongs to
            them (cache, scores) is returned; otherwise they may leave.
        streamer (`BaseStreamer`, *optional*):
            Gets one `put` per token, then `end`, as from plain `generate()`. If it has a method
            `put_speculative(ids, accepted_len)`, that is called instead of `put`, once per round at batch 1, with the
            round's ids `(num,)` on the CPU, of which the first `accepted_len` were drafted.

    Attributes:
        ids (`torch.LongTensor` of shape `(rows, capacity)`): The buffer of the rows at work.
        lens (`list[int]`): Tokens of each row so far, prompt and its padding included.
        row_ids (`list[int]`): Place of each row in the batch.
        finished (`list[bool]`): Rows that a stopping rule has ended.
        new_ids (`list[list[int]]`): New tokens of each row, on the host.
        in_step (`bool`): Whether all rows must have the same length after every token.
        num_made (`int`): New tokens of all rows, padding left out.
        scores, logits (`list[torch.FloatTensor]` or `None`): One `(batch, vocab)` per new token, if asked for.
    """

    def __init__(
        self,
        input_ids: Tensor,
        rules: StopRules,
        generation_config: GenerationConfig,
        keeps_rows: bool,
        streamer: Any = None,
    ):
        self._batch_size, self._prompt_len = batch_size, prompt_len = input_ids.shape
        self._device = input_ids.device
        self.ids = input_ids.long()
        self.lens = [prompt_len] * batch_size
        self._unpadded_lens = list(self.lens)
        self.row_ids = list(range(batch_size))
        self.finished = [False] * batch_size
        self.new_ids: list[list[int]] = [[] for _ in range(batch_size)]
        self.in_step = False
        self.num_made = 0
        self.keeps_rows = keeps_rows
        self._ended: dict[int, Tensor] = {}
        self._rules = rules
        self.reserve(1)
        self._streamer = streamer
        self._round_ids: list[int] = []
        self._streams_rounds = batch_size == 1 and hasattr(streamer, "put_speculative")
        pad_token = getattr(generation_config, "_pad_token_tensor", None)
        self.pad_id = 0 if pad_token is None else int(pad_token)
        is_recorded = generation_config.return_dict_in_generate
        self.scores = [] if is_recorded and generation_config.output_scores else None
        self.logits = [] if is_recorded and generation_config.output_logits else None

    def to_host(self) -> None:
        """Keep the tokens on the host from now on: rounds have them on the device themselves."""
        self.ids = self.ids.cpu()

    @property
    def num_left(self) -> list[int]:
        """Tokens that may still be made, per row."""
        return [self._rules.max_length - length for length in self.lens]

    @property
    def is_level(self) -> bool:
        """Whether all rows have the same length."""
        return min(self.lens) == max(self.lens)

    @property
    def live(self) -> list[bool]:
        """Rows whose next token matters; without an eos token, plain `generate()` does not pad finished rows."""
        return [
            left > 0 and not (done and self._rules.pads)
            for done, left in zip(self.finished, self.num_left, strict=True)
        ]

    @property
    def is_over(self) -> bool:
        """Whether every row has ended, and what belongs to them is whole."""
        return all(map(self._has_ended, range(len(self.lens)))) and (not self.keeps_rows or self.is_level)

    def _has_ended(self, row: int) -> bool:
        return self.finished[row] or self.lens[row] >= self._rules.max_length

    @property
    def prefix(self) -> Tensor:
        """All tokens so far, `(rows, tokens)`, of rows of the same length."""
        return self.ids[:, : self.lens[0]]

    @property
    def anchor_ids(self) -> Tensor:
        """The last token of each row, `(rows,)`."""
        if self.is_level:
            return self.ids[:, self.lens[0] - 1]
        return self.ids.gather(1, torch.tensor(self.lens, device=self.ids.device).unsqueeze(1) - 1).squeeze(1)

    def count_unpadded(self, counts: list[int]) -> list[int]:
        """How many of the latest `counts[row]` tokens that the target has processed are no padding, per row.

        It has processed all but the last token of a row. Padding of the prompt counts as tokens.
        """
        ends = zip(self.lens, self._unpadded_lens, counts, strict=True)
        return [min(end - 1, last) - min(end - 1 - count, last) for end, last, count in ends]

    def ids_before_anchors(self, counts: list[int]) -> Tensor:
        """Tokens `(rows, max(counts))` of which the first `counts[row]` stand right before a row's last one."""
        if self.is_level and min(counts) == max(counts):
            return self.ids[:, self.lens[0] - 1 - counts[0] : self.lens[0] - 1]
        starts = [length - 1 - count for length, count in zip(self.lens, counts, strict=True)]
        starts = torch.tensor(starts, device=self.ids.device).unsqueeze(1)
        columns = starts + torch.arange(max(counts), device=self.ids.device)
        return self.ids.gather(1, columns.clamp_max_(self.ids.shape[1] - 1))

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` drafts behind every row."""
        # One column more than can be output: drafts that a row has no room for end up there.
        most = self._rules.max_length + 1
        num_columns = min(max(self.lens) + num_tokens, most)
        if num_columns > self.ids.shape[1]:
            # The limit may be far away, or none at all.
            num_columns = min(2 * num_columns + 64, most)
            self.ids = pad(self.ids, (0, num_columns - self.ids.shape[1]))

    def note_drafts(self, draft_ids: Tensor) -> None:
        """Write `draft_ids` `(batch, n)` behind the tokens so far, without counting them."""
        num_drafts = draft_ids.shape[1]
        # The prefix behind the last draft is asked for, too.
        self.reserve(num_drafts + 1)
        if self.is_level:
            self.ids[:, self.lens[0] : self.lens[0] + num_drafts] = draft_ids
            return
        starts = torch.tensor(self.lens, device=self.ids.device).unsqueeze(1)
        columns = starts + torch.arange(num_drafts, device=self.ids.device)
        self.ids.scatter_(1, columns.clamp_max_(self.ids.shape[1] - 1), draft_ids)

    def take(
        self, tokens: list[list[int]], counts: list[int], scores: Tensor | None = None, logits: Tensor | None = None
    ) -> list[int]:
        """Take the next tokens of the rows, which stand in the buffer already, until the rows end.

        Args:
            tokens (`list[list[int]]`): The same tokens on the host, position by position.
            counts (`list[int]`): How many of them each row takes, unless it ends before.
            scores (`torch.FloatTensor` of shape `(rows, positions, vocab)`, *optional*): Processed scores.
            logits (`torch.Tensor` of shape `(rows, positions, vocab)`): Raw logits.

        Returns:
            `list[int]`: How many each row took.

        Raises:
            `ValueError`: If a token is none, because the target's probabilities were not finite.
        """
        before, live = list(self.lens), self.live
        growing = [row for row, count in enumerate(counts) if count > 0]
        index = 0
        while growing:
            _check_drawn([tokens[index][row] for row in growing], logits.shape[-1])
            self._step(growing, tokens[index])
            self._record(growing, index, logits if scores is None else scores, logits)
            self._judge(growing, tokens[index])
            index += 1
            if self.in_step:
                # What a row drafted behind its end must not stay in the cache, so the round ends with it.
                goes_on = index < counts[0] and self.live == live and not self.is_over
                growing = growing if goes_on else []
            else:
                growing = [row for row in growing if index < counts[row] and not self._has_ended(row)]
        return [after - start for after, start in zip(self.lens, before, strict=True)]

    def fill(self, counts: list[int], scores: Tensor | None, logits: Tensor) -> None:
        """Append padding, which stands in the buffer already, to rows that have ended; arguments as of [`take`]."""
        for index in range(max(counts)):
            rows = [row for row, count in enumerate(counts) if index < count]
            for row in rows:
                self.lens[row] += 1
            self._record(rows, index, logits if scores is None else scores, logits)

    def _step(self, rows: list[int], tokens: list[int]) -> None:
        """Count one more token of `rows`; those that are not live get padding."""
        live = self.live
        for row in rows:
            if not live[row]:
                self.ids[row, self.lens[row]] = tokens[row] = self.pad_id
            self.lens[row] += 1
            self.new_ids[row].append(tokens[row])
            if live[row]:
                self._unpadded_lens[row] = self.lens[row]
                self.num_made += 1

    def _record(self, rows: list[int], index: int, scores: Tensor, logits: Tensor) -> None:
        for store, values in ((self.scores, scores), (self.logits, logits)):
            if store is None:
                continue
            values = values[:, index].to(device=self.ids.device, dtype=torch.float32, copy=True)
            if len(rows) == self._batch_size and self.is_level:
                store.append(values)
                continue
            for row in rows:
                place = self.lens[row] - self._prompt_len - 1
                if place == len(store):
                    store.append(torch.zeros_like(values))
                store[place][row] = values[row]

    def _judge(self, rows: list[int], tokens: list[int]) -> None:
        """Ask the stopping rules about the latest token of `rows`, and tell the streamer."""
        eos_ids = self._rules.eos_ids
        for row in rows:
            self.finished[row] |= tokens[row] in eos_ids
        if self._rules.others:
            for length in sorted({self.lens[row] for row in rows}):
                self._ask_others([row for row in rows if self.lens[row] == length], length)
        if self._streams_rounds:
            self._round_ids += tokens
        elif self._streamer is not None:
            self._streamer.put(torch.tensor(tokens, device="cpu"))

    def _ask_others(self, rows: list[int], length: int) -> None:
        """Call the criteria with rows of one length, as plain `generate()` would with a batch of them."""
        if len(rows) == len(self.lens):
            ids, scores = self.ids[:, :length], self.scores
        else:
            ids = self.ids[rows, :length]
            scores = self.scores and [values[rows] for values in self.scores[: length - self._prompt_len]]
        stops = self._rules.others(ids.to(self._device), None if scores is None else tuple(scores)).tolist()
        for row, stop in zip(rows, stops, strict=True):
            self.finished[row] |= stop

    def keep(self, rows: list[int]) -> None:
        """Go on with these `rows` only, numbers from 0; the others have their last token."""
        for row in set(range(len(self.lens))) - set(rows):
            self._ended[self.row_ids[row]] = self.ids[row, : self.lens[row]].clone()
        self.ids = self.ids[rows]
        for name in ("lens", "_unpadded_lens", "row_ids", "finished", "new_ids"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])

    def end_round(self, accepted_len: int) -> None:
        """Hand the round's tokens, of which `accepted_len` are drafts, to a streamer that wants whole rounds."""
        if self._streams_rounds and self._round_ids:
            ids, self._round_ids = self._round_ids, []
            self._streamer.put_speculative(torch.tensor(ids, device="cpu"), accepted_len)

    def end(self) -> None:
        """Tell the streamer that nothing follows."""
        if self._streamer is not None:
            self._streamer.end()

    def sequences(self) -> Tensor:
        """All rows in order, `(batch, tokens)`, padded on the right."""
        if not self._ended and self.is_level:
            return self.prefix.clone().to(self._device)
        self.keep([])
        num_tokens = max(row.shape[0] for row in self._ended.values())
        sequences = self.ids.new_full((self._batch_size, num_tokens), self.pad_id)
        for row_id, row in self._ended.items():
            sequences[row_id, : row.shape[0]] = row
        return sequences.to(self._device)


def _check_drawn(tokens: list[int], vocab_size: int) -> None:
    if max(tokens) >= vocab_size:
        raise ValueError(
            "The target's probabilities are not finite, so no token can be drawn: its logits hold inf or nan, or "
            "processors ban every token. Load it in bfloat16 or float32, pass remove_invalid_values=True, or loosen "
            "the processors."
        )
