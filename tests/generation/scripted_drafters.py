"""A DSpark drafter whose drafts are right as far as a script says, made of tensors as in any static round."""

import torch

from dspark_hf import DSparkModel


class ScriptedDrafter(DSparkModel):
    """Knows how rows go on, and gets `pattern[i + row]` drafts right in round i.

    Rows are known by where they stand and by their anchor, since static rounds move them.
    """

    def script(self, rows, pattern):
        """Follow token ids of each row, without padding, through a pattern of right drafts, repeated."""
        longest = max(map(len, rows)) + self.config.num_slots + 1
        self.register_buffer("truth", torch.tensor([row + [0] * (longest - len(row)) for row in rows]))
        self.register_buffer("pattern", torch.tensor(pattern))
        self.register_buffer("num_rounds", torch.tensor(0))
        return self

    def propose(self, state, anchor_ids, pick=None, num_slots=None, num_candidates=None):
        proposal = super().propose(state, anchor_ids, pick, num_slots, num_candidates)
        slots = torch.arange(proposal.ids.shape[1], device=anchor_ids.device)
        starts = state.positions(1, anchor_ids.device)[:, :1].expand(len(anchor_ids), 1)  # [B, 1]
        starts = starts.clamp(0, self.truth.shape[1] - len(slots) - 1)
        rows = (self.truth[:, starts[:, 0]] == anchor_ids).int().argmax(0)  # [B]
        right = self.truth[rows.unsqueeze(1), starts + 1 + slots]
        num_right = self.pattern[(self.num_rounds + rows) % len(self.pattern)].unsqueeze(1)
        wrong = (right + 1) % self.config.vocab_size
        proposal.ids = torch.where(slots < num_right, right, wrong)
        self.num_rounds.add_(1)
        return proposal


def scripted(target, ids, pattern, max_new_tokens, mask=None, **fields):
    """A drafter that knows the target's greedy continuations of a batch, and those."""
    plain = target.generate(
        ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, speculation=False
    )
    masks = torch.ones_like(ids) if mask is None else mask
    rows = [
        [token for token, keep in zip(row, kept, strict=False) if keep] + row[ids.shape[1] :]
        for row, kept in zip(plain.tolist(), masks.tolist(), strict=True)
    ]
    fields = {"target_layer_ids": [0, 2], "mask_token_id": 63, "markov_rank": 8, "block_size": 5} | fields
    torch.manual_seed(3)
    drafter = ScriptedDrafter.from_target(target, **fields)
    return drafter.script(rows, list(pattern)).to(target.device), plain
