"""One round on the device: verify, accept, read features, draft. Nothing in it waits for the device.

Shapes: R rows of a bucket, C columns, w tokens of a row's pass, G slots, V vocabulary, L taps, E hidden size.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark_hf.generation.target.row_attention import FixedPass, attention_of
from dspark_hf.generation.tokens.sampling import TokenChooser
from dspark_hf.modeling.cache_name import CACHE_NAME
from dspark_hf.modeling.drafting import Proposal
from dspark_hf.modeling.taps import Taps

from .buffers import Bucket, View
from .layers import CompiledLayers, compilable_layers


class StaticRound:
    """A round of one target and one drafter.

    Args:
        model (`PreTrainedModel`): The target.
        drafter ([`DraftModel`], *optional*): The drafter, bound to it; without it all drafts come from the host.
        chooser ([`TokenChooser`]): Turns logits into tokens, with processors that look at scores alone.
        num_candidates (`int`, *optional*): As of [`DSparkModel.propose`].
        vocab_size (`int`): Tokens that the target tells apart.
        compiles (`bool`, *optional*, defaults to `False`): Whether layers go through `torch.compile`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        drafter: Any,
        chooser: TokenChooser,
        num_candidates: int | None,
        vocab_size: int,
        compiles: bool = False,
    ):
        self._model, self._drafter, self._chooser = model, drafter, chooser
        self._taps = Taps(model, [] if drafter is None else drafter.config.target_layer_ids)
        self._num_candidates, self._vocab_size = num_candidates, vocab_size
        self._compiled: list[CompiledLayers] | None = None
        if compiles:
            self._compiled = [CompiledLayers(model, compilable_layers(model))]
            self._compiled += [] if drafter is None else [CompiledLayers(drafter, drafter.layers)]

    def run(self, view: View, bucket: Bucket) -> None:
        """Verify the block's first tokens, and draft the next block, as the bucket says.

        Args:
            view ([`View`]): The buffers, changed in place.
            bucket ([`Bucket`]): Shapes.
        """
        if bucket.width == 0:
            self.step(view, bucket)
            return
        # `step` alone moves the lengths, when the pass is over.
        rows = FixedPass(view.lens, bucket.width, view.visible)
        with attention_of(self._model, rows), self._taps.in_pass() as self._seen:
            self.step(view, bucket)

    def step(self, view: View, bucket: Bucket) -> None:
        """The round itself, of which all is done on the device; `run` makes the target ready for it.

        Args: as of [`run`].
        """
        if bucket.width > 0:
            self._verify(view, bucket)
        if bucket.drafts:
            self._draft(view, bucket)

    def _verify(self, view: View, bucket: Bucket) -> None:
        width = bucket.width
        block, num_slots = view.block[:, :width], view.block.shape[1] - 1
        logits, features = self._read(view, bucket, block)
        num_rows, draft_ids = len(block), block[:, 1:]
        scores = logits
        if self._chooser.needs_scores():
            scores = self._chooser.block_scores(block[:, :0], [0] * num_rows, list(range(num_rows)), logits)
        drawn_from = None if view.candidates is None else view.candidates[:, : width - 1]
        accepted_len, next_ids = self._chooser.verify_block(draft_ids, drawn_from, scores, view.offered.clamp_min(0))
        accepted_len, next_ids = accepted_len.unsqueeze(1), next_ids.unsqueeze(1)
        tokens = torch.cat([draft_ids, next_ids], 1).scatter(1, accepted_len, next_ids)  # [R, w]
        view.report[:, :width] = tokens
        view.report[:, 1 + num_slots] = accepted_len.squeeze(1)
        if features is not None:
            self._drafter.append(view.context.at(view.lens + view.context_shift), features, block)
        is_live = view.offered >= 0
        view.lens.copy_(torch.where(is_live, view.lens + accepted_len.squeeze(1) + 1, 0))
        # A token that is none, as where no probability is finite, is found by the host.
        view.block[:, :1] = next_ids.clamp_max(self._vocab_size - 1)

    def _read(self, view: View, bucket: Bucket, block: Tensor) -> tuple[Tensor, Tensor | None]:
        """The target's logits `(R, w, V)` and features `(R, w, L * E)` of the anchor and the drafts behind it."""
        columns = view.lens.unsqueeze(1) + torch.arange(block.shape[1], device=block.device)  # [R, w]
        # A draft that a row has no room for is given the last place; rows that have ended may stand anywhere.
        positions = (columns + view.shift.unsqueeze(1)).clamp_min(0).minimum(view.last_position.unsqueeze(1))
        view.cache.begin(columns)
        layers = nullcontext() if self._compiled is None else self._compiled[0].in_use(view.cache, bucket[:3])
        with layers:
            outputs = self._model(
                input_ids=block,
                position_ids=positions,
                **{CACHE_NAME: view.cache},
                use_cache=True,
                output_hidden_states=self._taps.entries or False,
                return_dict=True,
            )
        taps = self._taps.read(self._seen, outputs.hidden_states)
        return outputs.logits, torch.cat(taps, -1) if taps else None

    def _draft(self, view: View, bucket: Bucket) -> None:
        num_rows, num_slots = view.block.shape[0], view.block.shape[1] - 1
        anchor_ids = view.block[:, 0].clone()
        pick = self._chooser.draft_picker(view.block[:, :0], [0] * num_rows, list(range(num_rows)), self._vocab_size)
        context = view.context.at(view.lens + view.context_shift)
        shape = bucket.rows, bucket.columns
        with nullcontext() if self._compiled is None else self._compiled[1].in_use(context, shape):
            proposal = self._drafter.propose(context, anchor_ids, pick, None, self._num_candidates)
        view.block[:, 1:] = proposal.ids
        if view.candidates is not None:
            view.candidates.ids.copy_(proposal.candidates.ids)
            view.candidates.probs.copy_(proposal.candidates.probs)
        places = 2 + num_slots
        for values in (proposal.ids, proposal.confidence_logits, proposal.max_probs):
            if values is not None:
                view.report[:, places : places + num_slots] = values
            places += num_slots


class Report:
    """What a round told the host, of the rows at work.

    Args:
        values (`torch.DoubleTensor` of shape `(rows, 2 + 4 * slots)`): On the host.
        num_slots (`int`): Slots.
        has_confidence (`bool`): Whether the drafter has a confidence head.
    """

    def __init__(self, values: Tensor, num_slots: int, has_confidence: bool):
        self._values, self._num_slots, self._has_confidence = values, num_slots, has_confidence

    def tokens(self, width: int) -> tuple[Tensor, Tensor]:
        """Tokens `(rows, width)`, of which accepted drafts and one more stand, and accepted drafts `(rows, 1)`."""
        accepted = self._values[:, 1 + self._num_slots : 2 + self._num_slots]
        return self._values[:, :width].long(), accepted.long()

    def proposal(self, num_slots: int) -> Proposal:
        """The next block's first `num_slots` drafts, and what was said of them."""
        start = 2 + self._num_slots
        ids, confidence, max_probs = (
            self._values[:, start + part * self._num_slots :][:, :num_slots] for part in range(3)
        )
        return Proposal(ids.long(), None, confidence.float() if self._has_confidence else None, max_probs.float())

    def keep(self, rows: list[int]) -> None:
        """Go on with these `rows` only, numbers from 0."""
        self._values = self._values[rows]
