"""What stands of a verified block: judging drafts, and writing down the tokens.

Shapes: B rows at work, n drafts of a round, V vocabulary.
"""

import time

import torch
from torch import Tensor

from dspark_hf.ops.candidates import Candidates

from .sampling import TokenChooser
from .transcript import Transcript


class Settler:
    """Judges blocks for a transcript.

    Args:
        chooser ([`TokenChooser`]): Turns logits into tokens.
        transcript ([`Transcript`]): Takes the tokens.

    Attributes:
        host_reads (`int`): Times that it waited for the device.
        judged_at (`float` or `None`): Time at which the latest round's verdict was known, before anyone was told; None
            where the two cannot be told apart.
    """

    def __init__(self, chooser: TokenChooser, transcript: Transcript):
        self._chooser = chooser
        self.host_reads = 0
        self._transcript = transcript
        self.judged_at: float | None = None

    def settle(
        self, logits: Tensor, draft_ids: Tensor, candidates: Candidates | None, draft_lens: list[int]
    ) -> tuple[list[int], list[int]]:
        """Judge the drafts and take the tokens that stand.

        Args:
            logits (`torch.Tensor` of shape `(batch, drafts + 1, vocab)`): The target's logits.
            draft_ids (`torch.LongTensor` of shape `(batch, drafts)`): The drafts, noted in the transcript already.
            candidates ([`Candidates`] of shape `(batch, drafts, k)`, *optional*): What they were drawn from.
            draft_lens (`list[int]`): Drafts offered per row.

        Returns:
            `tuple(list[int], list[int])`: Tokens taken, and drafts accepted, of each row.
        """
        if self._chooser.in_order:
            return self._settle_in_order(logits, draft_ids, candidates)
        transcript = self._transcript
        scores = self.block_scores(logits) if self._chooser.needs_scores() else None
        is_even = min(draft_lens) == draft_ids.shape[1]
        accepted_len, next_ids = self._chooser.verify_block(
            draft_ids,
            candidates,
            logits if scores is None else scores,
            None if is_even else torch.tensor(draft_lens, device=draft_ids.device),
        )
        accepted_len, tokens = accepted_len.unsqueeze(1), next_ids.unsqueeze(1)
        if draft_ids.shape[1] > 0:
            tokens = torch.cat([draft_ids, tokens], 1).scatter_(1, accepted_len, tokens)  # [B, n + 1]
        transcript.note_drafts(tokens)
        # The round's one wait for the device.
        self.host_reads += 1
        return self.take(torch.cat([tokens, accepted_len], 1).cpu(), scores, logits)

    def take(self, verdict: Tensor, scores: Tensor | None, logits: Tensor) -> tuple[list[int], list[int]]:
        """Take the tokens that stand, which are noted in the transcript already.

        Args:
            verdict (`torch.LongTensor` of shape `(batch, drafts + 2)`): Tokens, and in the last column how many drafts
                were accepted; on the host.
            scores (`torch.FloatTensor` of shape `(batch, drafts + 1, vocab)`, *optional*): Processed scores.
            logits (`torch.Tensor` of shape `(batch, drafts + 1, vocab)`): Raw logits.

        Returns:
            `tuple(list[int], list[int])`: As of [`settle`].
        """
        transcript = self._transcript
        live = transcript.live
        *columns, accepted_lens = verdict.T.tolist()
        self.judged_at = time.perf_counter()
        counts = [length + 1 if is_live else 0 for length, is_live in zip(accepted_lens, live, strict=True)]
        if transcript.in_step:
            counts = [min(count for count in counts if count > 0)] * len(counts)
        return transcript.take(columns, counts, scores, logits), accepted_lens

    def _settle_in_order(
        self, logits: Tensor, draft_ids: Tensor, candidates: Candidates | None
    ) -> tuple[list[int], list[int]]:
        """As [`settle`], one position after the other, with processors that must see nothing but emitted tokens."""
        transcript, num_drafts = self._transcript, draft_ids.shape[1]
        num_rows = draft_ids.shape[0]
        accepted_lens = [0] * num_rows
        for index in range(num_drafts + 1):
            live = transcript.live
            scores = self._chooser.next_scores(transcript.prefix, logits[:, index])
            if index < num_drafts:
                drawn_from = None if candidates is None else candidates[:, index]
                tokens, accepted = self._chooser.judge(draft_ids[:, index], drawn_from, scores)
            else:
                tokens, accepted = self._chooser.judge(None, None, scores)
            transcript.note_drafts(tokens.unsqueeze(1))
            self.host_reads += 1
            host_tokens, host_accepted = torch.stack([tokens, accepted.long()]).tolist()
            transcript.take([host_tokens], [1] * num_rows, scores.unsqueeze(1), logits[:, index : index + 1])
            for row, was_accepted in enumerate(host_accepted):
                accepted_lens[row] += was_accepted
            stands = all(ok for ok, is_live in zip(host_accepted, live, strict=True) if is_live)
            if not stands or transcript.is_over or transcript.live != live:
                break
        return [index + 1] * num_rows, accepted_lens

    def block_scores(self, logits: Tensor) -> Tensor:
        """Processed scores behind the tokens so far. Not for `in_order`.

        Args:
            logits (`torch.Tensor` of shape `(batch, positions, vocab)`): The target's.

        Returns:
            `torch.FloatTensor` of that shape.
        """
        transcript = self._transcript
        return self._chooser.block_scores(transcript.ids, transcript.lens, transcript.row_ids, logits)
