"""The tokens made so far, and everyone who watches them: stopping rules, streamer, recorded scores."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from .stopping import StopRules


class Transcript:
    """Token ids of a batch whose rows grow in step, in a buffer allocated once.

    Columns from `num_tokens` on are free: drafts are written there before they are judged.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, prompt)`): The prompt.
        rules ([`StopRules`]): When to stop.
        generation_config (`GenerationConfig`): Tells what to record, and the padding token.
        streamer (`BaseStreamer`, *optional*):
            Gets one `put` per token, then `end`, as from plain `generate()`. If it has a method
            `put_speculative(ids, accepted_len)`, that is called instead of `put`, once per round at batch 1, with the
            round's ids `(num,)` on the CPU, of which the first `accepted_len` were drafted.

    Attributes:
        ids (`torch.LongTensor` of shape `(batch, capacity)`): The buffer.
        num_tokens (`int`): Tokens so far, prompt included.
        num_made (`int`): New tokens of all rows, padding left out.
        finished (`list[bool]`): Rows that have ended.
        scores, logits (`tuple[torch.FloatTensor]` or `None`): One `(batch, vocab)` per new token, if asked for.
    """

    def __init__(self, input_ids: Tensor, rules: StopRules, generation_config: GenerationConfig, streamer: Any = None):
        batch_size, self.num_tokens = input_ids.shape
        self.ids = input_ids.new_empty(batch_size, rules.max_length)
        self.ids[:, : self.num_tokens] = input_ids
        self.num_made = 0
        self.finished = [False] * batch_size
        self._rules = rules
        self._streamer = streamer
        self._round_ids: list[int] = []
        self._streams_rounds = batch_size == 1 and hasattr(streamer, "put_speculative")
        pad_token = getattr(generation_config, "_pad_token_tensor", None)
        self._pad_id = 0 if pad_token is None else int(pad_token)
        is_recorded = generation_config.return_dict_in_generate
        self.scores = () if is_recorded and generation_config.output_scores else None
        self.logits = () if is_recorded and generation_config.output_logits else None

    @property
    def num_left(self) -> int:
        """Tokens that may still be made per row."""
        return self._rules.max_length - self.num_tokens

    @property
    def is_over(self) -> bool:
        return self.num_left <= 0 or all(self.finished)

    @property
    def live(self) -> list[bool]:
        """Rows whose next token matters; without an eos token, plain `generate()` does not pad finished rows."""
        return [not (done and self._rules.pads) for done in self.finished]

    @property
    def prefix(self) -> Tensor:
        """All tokens so far, `(batch, num_tokens)`."""
        return self.ids[:, : self.num_tokens]

    @property
    def anchor_ids(self) -> Tensor:
        """The last token of each row, `(batch,)`."""
        return self.ids[:, self.num_tokens - 1]

    def note_drafts(self, draft_ids: Tensor) -> None:
        """Write drafts behind the tokens so far, without counting them."""
        self.ids[:, self.num_tokens : self.num_tokens + draft_ids.shape[1]] = draft_ids

    def step(self, tokens: list[int], scores: Tensor | None = None, logits: Tensor | None = None) -> bool:
        """Take the next token of each row, which stands in the buffer already.

        Args:
            tokens (`list[int]`): The same tokens, on the host.
            scores (`torch.FloatTensor` of shape `(batch, vocab)`, *optional*): Processed scores, if recorded.
            logits (`torch.FloatTensor` of shape `(batch, vocab)`, *optional*): Raw logits, if recorded.

        Returns:
            `bool`: Whether generation is over.
        """
        live = self.live
        for row, is_live in enumerate(live):
            if not is_live:
                self.ids[row, self.num_tokens] = tokens[row] = self._pad_id
        self.num_tokens += 1
        self.num_made += sum(live)
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (logits,)
        eos_ids = self._rules.eos_ids
        stops = [token in eos_ids for token in tokens]
        if self._rules.others:
            called = self._rules.others(self.prefix, self.scores).tolist()
            stops = [stop or other for stop, other in zip(stops, called, strict=True)]
        self.finished = [done or stop for done, stop in zip(self.finished, stops, strict=True)]
        if self._streams_rounds:
            self._round_ids += tokens
        elif self._streamer is not None:
            self._streamer.put(torch.tensor(tokens))
        return self.is_over

    def end_round(self, accepted_len: int) -> None:
        """Hand the round's tokens to a streamer that wants whole rounds."""
        if self._streams_rounds and self._round_ids:
            ids, self._round_ids = self._round_ids, []
            self._streamer.put_speculative(torch.tensor(ids), accepted_len)

    def end(self) -> None:
        """Tell the streamer that nothing follows."""
        if self._streamer is not None:
            self._streamer.end()
