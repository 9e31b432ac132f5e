"""Features of the frozen target: computed as batches come, or once and held in memory.

Shapes: B batch, S sequence, L taps, E hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dspark_hf.modeling.borrowing import output_head
from dspark_hf.modeling.plain_head import is_quantised
from dspark_hf.modeling.taps import Taps, stacks_streams
from dspark_hf.modeling.wrappers import unwrap
from dspark_hf.ops.distill_loss import streamed_log_norm


class TargetFeatures:
    """Runs the frozen target and returns what a drafter learns from.

    Args:
        target (`PreTrainedModel`): The target; it is put in eval mode.
        target_layer_ids (`list[int]`): Tapped layers, 0-based.

    Raises:
        `ValueError`: At its first call: if the target's logits are not what its output head makes of the last hidden
            states, which training takes for them.
    """

    def __init__(self, target: PreTrainedModel, target_layer_ids: Sequence[int]):
        self.target = unwrap(target).eval()
        self._is_checked = False
        self._taps = Taps(self.target, target_layer_ids)
        self.target_layer_ids = list(target_layer_ids)
        # The last entry of hidden_states is post-norm: the output head applies to it directly.
        self.last = target.config.get_text_config().num_hidden_layers

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`): Token ids, padded on the right.
            attention_mask (`torch.Tensor` of shape `(batch, sequence)`, *optional*): 0 marks padding.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` in the target's dtype: features `(batch, sequence, taps * hidden)` and
            last hidden states after the final norm `(batch, sequence, hidden)`.
        """
        device = self.target.device
        # A trainer's autocast is not for the target: features are those that generation and a cache have.
        plain = torch.autocast(device.type, enabled=False)
        with plain, self._taps.in_pass() as seen, self._last_states() as last_states:
            outputs = self.target(
                input_ids=input_ids.to(device),
                attention_mask=None if attention_mask is None else attention_mask.to(device),
                output_hidden_states=[*self._taps.entries, self.last],
                use_cache=False,
                # An index, not a count: a slice of the last position is not contiguous, and some backends then copy
                # the output head once per row to multiply it.
                logits_to_keep=torch.zeros(1, dtype=torch.int64, device=device),
            )
        states = outputs.hidden_states
        last = last_states[0] if last_states else states[self.last]
        if not self._is_checked:
            self._check_head(last[:, 0], outputs.logits[:, 0])
            self._is_checked = True
        return torch.cat(self._taps.read(seen, states), -1), last

    @contextmanager
    def _last_states(self) -> Iterator[list[Tensor]]:
        """Around a pass: gets the decoder's states behind the final norm, where `hidden_states` ends in streams."""
        last_states: list[Tensor] = []
        if not stacks_streams(self.target):
            yield last_states
            return
        decoder = self.target.get_decoder()
        hook = decoder.register_forward_hook(lambda module, inputs, output: last_states.append(output[0]))
        try:
            yield last_states
        finally:
            hook.remove()

    def _check_head(self, hidden: Tensor, logits: Tensor) -> None:
        head = self.target.get_output_embeddings()
        weight = getattr(head, "weight", None)
        # Of a matrix that is quantised, sharded or elsewhere, training and decoding say themselves what they can do.
        if weight is None or is_quantised(weight) or isinstance(weight, DTensor) or weight.device.type == "meta":
            return
        if weight.shape != (logits.shape[-1], hidden.shape[-1]) or not torch.isfinite(hidden).all():
            return
        expected = output_head(self.target).logits(hidden.to(weight)).float().to(logits.device)
        # Other shapes round otherwise, by far less than a forgotten factor or bias.
        if float((expected - logits.float()).abs().max()) > 0.05 * float(logits.float().abs().max()) + 0.05:
            raise ValueError(
                f"The logits of {type(self.target).__name__} are not what its output head makes of its last hidden "
                "states: something stands between or behind them that is not known, and a drafter would learn another "
                "distribution. Such a target can be decoded with a drafter, but none can be trained for it."
            )

    def log_norm(self, last_hidden_states: Tensor, mask: Tensor) -> Tensor:
        """`logsumexp` of the target's logits where it is wanted.

        Args:
            last_hidden_states (`torch.Tensor` of shape `(batch, sequence, hidden)`): States behind the final norm.
            mask (`torch.BoolTensor` of shape `(batch, sequence)`): Where it is wanted.

        Returns:
            `torch.FloatTensor` of shape `(batch, sequence)` on the CPU; 0 elsewhere.
        """
        norms = torch.zeros(mask.shape)
        learned = last_hidden_states[mask.to(last_hidden_states.device)]
        norms[mask] = streamed_log_norm(learned, output_head(self.target), 256).cpu()
        return norms


def learned_positions(loss_mask: Sequence[bool] | Tensor) -> Tensor:
    """Where the next token is supervised: the target's distribution is learned there alone.

    Args:
        loss_mask (`Sequence[bool]` or `torch.Tensor` of shape `(sequence,)`): Which tokens are supervised.

    Returns:
        `torch.BoolTensor` of shape `(sequence,)`.
    """
    mask = torch.as_tensor(loss_mask).bool()
    return F.pad(mask[1:], (0, 1))


def hold_features(
    source: TargetFeatures,
    rows: Sequence[Mapping[str, Any]],
    *,
    log_norm: bool = False,
    batch_size: int = 16,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Compute every row's features once and keep them in memory, in the target's dtype.

    A row takes `(taps + 1) * hidden * itemsize` bytes per token.

    Args:
        source ([`TargetFeatures`]): The frozen target.
        rows (`Sequence[Mapping]`): Rows of `input_ids` and `loss_mask`.
        log_norm (`bool`, *optional*, defaults to `False`): Whether to keep `log_norm` `(sequence,)` float32 too, the
            `logsumexp` of the target's logits, which training a reduced draft vocabulary reads; 0 where the next token
            is not supervised.
        batch_size (`int`, *optional*, defaults to 16): Rows per forward pass; rows of similar length go together.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `list[dict]`: The rows, in order, each with `features` and `last_hidden_states` added.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]), reverse=True)
    held: list[dict[str, Any] | None] = [None] * len(rows)
    with tqdm(total=len(rows), desc="Target features", unit="row", disable=None if progress else True) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids = [torch.as_tensor(rows[index]["input_ids"], dtype=torch.int64) for index in chosen]
            mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
            features, last_hidden_states = source(pad_sequence(ids, batch_first=True), mask)
            norms = None
            if log_norm:
                learned = pad_sequence([learned_positions(rows[index]["loss_mask"]) for index in chosen], True)
                norms = source.log_norm(last_hidden_states, learned)
            for row, index in enumerate(chosen):
                num_tokens = len(ids[row])
                held[index] = {
                    **rows[index],
                    "features": features[row, :num_tokens].cpu().clone(),
                    "last_hidden_states": last_hidden_states[row, :num_tokens].cpu().clone(),
                }
                if norms is not None:
                    held[index]["log_norm"] = norms[row, :num_tokens].cpu().clone()
            bar.update(len(chosen))
    return held
