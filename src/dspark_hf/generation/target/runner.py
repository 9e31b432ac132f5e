"""The target in the decoding loop: prefill with taps, verification of a block, commit of what was accepted.

Rows of different lengths all end at the cache's last column: column c of a row holds its token c - (longest - length).
Shapes: B batch, w tokens of one forward pass, L taps, E hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from dspark_hf.generation.rollback.compaction import compact, is_compactable
from dspark_hf.generation.rollback.interruption import Interruption
from dspark_hf.generation.rollback.rewinding import MAX_REPLAYED, Rewinder
from dspark_hf.modeling.cache_name import CACHE_NAME
from dspark_hf.modeling.taps import Taps

from .columns import ColumnInputs, reads_columns
from .layout import PromptLayout
from .peft_hooks import hook_arguments
from .recording import StateRecorder
from .rotary import RotaryStepper
from .switch import RopeSwitch

# Most tokens of a prompt whose features are handed over at once.
PIECE_LEN = 1024


class TargetRunner:
    """Runs a target on the cache that `generate()` prepared.

    Args:
        model (`PreTrainedModel`): The target.
        tap_layer_ids (`list[int]`): Layers to tap, see [`Taps`].
        model_kwargs (`dict`): What `generate()` prepared for the forward passes.
        layout ([`PromptLayout`]): Where the prompt stands.
        max_length (`int`): Most token ids of a row, those of the prompt included.
        recorder ([`StateRecorder`], *optional*): Gets hidden states and attentions of the prompt.

    Attributes:
        recorder ([`StateRecorder`] or `None`): The one that was given, if it has something to record.
        outputs (`ModelOutput` or `None`): Those of the latest pass, if there is something to record.
        is_anew (`bool`): Whether the latest pass processed all tokens anew, see [`RopeSwitch`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tap_layer_ids: list[int],
        model_kwargs: dict[str, Any],
        layout: PromptLayout,
        max_length: int,
        recorder: StateRecorder | None = None,
    ):
        self._model = model
        self._taps = Taps(model, tap_layer_ids)
        self.cache: Cache = model_kwargs[CACHE_NAME]
        self._kwargs = dict(model_kwargs)
        self._embeds = self._kwargs.pop("inputs_embeds", None)
        self._layout = layout
        self.recorder = recorder if recorder is not None and recorder.is_on else None
        self.outputs: Any = None
        # Asked for with each pass, where they are recorded or tapped.
        self._kwargs.pop("output_hidden_states", None)
        self._kwargs.pop("output_attentions", None)
        self._columns = ColumnInputs(self._kwargs, layout, max_length)
        self._rotary = RotaryStepper(model, self._columns)
        self._switch = RopeSwitch(model, layout, max_length, is_on=self._rotary.is_on)
        self._reads_columns = self._rotary.is_on or reads_columns(model)
        self.is_anew = False
        self._num_columns = layout.num_cached
        self._taps_of_pass: list[Tensor] = []
        self._rewinder = Rewinder(self.cache)
        self._interruption = Interruption(self.cache, self._rewinder, layout.num_cached)

    @property
    def takes_uneven_rows(self) -> bool:
        """Whether rows of the batch may differ in length; known after the prefill."""
        # Without position ids, positions are cache columns.
        has_positions = self._columns.position_ids is not None
        return has_positions and is_compactable(self.cache) and not self._reads_columns

    @property
    def can_drop_rows(self) -> bool:
        """Whether rows may leave; not where other inputs may have a part for every row, or PEFT an adapter."""
        others = [value for name, value in self._kwargs.items() if name != CACHE_NAME]
        has_parts = any(isinstance(value, (Tensor, list, tuple, dict)) for value in others)
        return not has_parts and "adapter_names" not in hook_arguments(self._model)

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, chunk_size: int | None = None) -> Iterator[Tensor]:
        """Process what is not cached of the prompt, in chunks; features are to be taken after each.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, ids)`): The ids.
            chunk_size (`int`, *optional*): Most tokens of one forward pass; all, if not given.

        Yields:
            `torch.Tensor` of shape `(batch, 1, vocab)`: Logits behind the chunk; in the end, of the first new token.

        Raises:
            `ValueError`: If the target does not return hidden states, or does not use its cache.
        """
        start, end = self._layout.num_cached, self._layout.num_columns
        for begin in range(start, end, chunk_size or end):
            stop = min(begin + (chunk_size or end), end)
            # In plain `generate()` a chunk does not know of the ids before it, nor Phi-3 that it is past its switch.
            ids = input_ids[:, : stop - self._layout.shift]
            ids = ids if chunk_size is None else ids[:, begin - stop :]
            logits = self._prefill_pass(ids, begin, stop)
            if self.cache.get_seq_length() != stop:
                raise ValueError(
                    f"{type(self._model).__name__} does not keep the prompt in the cache that it is given, so drafts "
                    f"cannot be verified behind it{self._why_uncached()}"
                )
            yield logits
        self._rewinder.start()
        self._interruption.note_prompt(self._layout.num_rows, end)

    def _why_uncached(self) -> str:
        # Some models and releases drop the cache in this mode even where there are no gradients.
        modules = self._model.modules()
        if any(module.training and getattr(module, "gradient_checkpointing", False) for module in modules):
            return (
                ": it is in training mode with gradient checkpointing. Call model.eval() or "
                "model.activation_checkpointing_disable() before generating."
            )
        return "; generate without a drafter."

    def _prefill_pass(self, ids: Tensor, begin: int, stop: int) -> Tensor:
        """Process columns `begin` to `stop` of the prompt."""
        self._num_columns = stop
        kwargs = self._columns.of_prompt(begin, stop)
        if self._embeds is not None:
            kwargs["inputs_embeds"] = self._embeds[:, :stop]
        options = {"next_sequence_length": stop - begin, "is_first_iteration": True}
        logits = self._forward(ids, kwargs, num_logits=1, **options)
        if self.recorder is not None:
            self.recorder.note_prompt(self.outputs)
        return logits

    def most_drafts(self, lens: list[int]) -> int | None:
        """Drafts that the next pass may have at most, behind rows of `lens` tokens; None where there is no limit."""
        return self._switch.most_drafts(max(lens))

    @torch.no_grad()
    def verify(self, ids: Tensor, lens: list[int], draft_lens: list[int]) -> Tensor:
        """Process each row's last token and the drafts behind it.

        Args:
            ids (`torch.LongTensor` of shape `(batch, capacity)`): Token ids, drafts behind them.
            lens (`list[int]`): Tokens of each row, without drafts.
            draft_lens (`list[int]`): Drafts of each row.

        Returns:
            `torch.Tensor` of shape `(batch, max(draft_lens) + 1, vocab)`: Logits; what is past a row's drafts means
            nothing.
        """
        if self._rewinder.num_replayed > MAX_REPLAYED:
            self.replay(ids, lens)
        num_block = max(draft_lens) + 1
        num_replayed = self._rewinder.num_replayed
        num_inputs = num_replayed + num_block
        self._rewinder.begin(num_inputs)
        ids, kwargs = self._inputs(ids, [length - 1 + num_block for length in lens], num_inputs)
        logits = self._forward(ids, kwargs, num_logits=num_block, next_sequence_length=num_inputs)
        self._interruption.note_block(num_block)
        self._taps_of_pass = [tap[:, num_replayed:] for tap in self._taps_of_pass]
        return logits

    @property
    def num_replayed(self) -> int:
        """Tokens that the latest pass processed again, before its block."""
        return self._rewinder.num_replayed

    @torch.no_grad()
    def replay(self, ids: Tensor, lens: list[int]) -> None:
        """Bring the cache to all tokens but the last, if it stands back; arguments as of [`verify`]."""
        num_inputs = self._rewinder.num_replayed
        if num_inputs > 0:
            ids, kwargs = self._inputs(ids, [length - 1 for length in lens], num_inputs)
            self._forward(ids, kwargs, num_logits=1, next_sequence_length=num_inputs)
            self._rewinder.take_back(0)

    def take_prompt(self) -> Iterator[Tensor]:
        """Features `(batch, tokens, taps * hidden)` of the latest pass, in pieces, so that no copy of all is made."""
        taps, self._taps_of_pass = self._taps_of_pass, []
        if not taps:
            return
        for begin in range(0, taps[0].shape[1], PIECE_LEN):
            yield torch.cat([tap[:, begin : begin + PIECE_LEN].to(taps[0].device) for tap in taps], -1)

    def take_features(self, num_tokens: int | None = None, rows: list[int] | None = None) -> Tensor | None:
        """Features of the latest pass's first tokens; to be taken once.

        Args:
            num_tokens (`int`, *optional*): Tokens of each row; all, if not given.
            rows (`list[int]`, *optional*): Rows as left in the batch; all, if not given.

        Returns:
            `torch.Tensor` of shape `(batch, num_tokens, taps * hidden)`; None without taps.
        """
        taps, self._taps_of_pass = self._taps_of_pass, []
        if not taps:
            return None
        features = torch.cat([tap.to(taps[0].device) for tap in taps], -1)
        taken = self._of_rows(features, num_tokens, rows)
        # A view would keep the whole block alive, rejected drafts included.
        return taken.clone() if taken.numel() < features.numel() else taken

    def _of_rows(self, features: Tensor, num_tokens: int | None, rows: list[int] | None) -> Tensor:
        return features[:, :num_tokens] if rows is None else features[rows, :num_tokens]

    def commit(self, num_rejected: list[int], lens: list[int], rows: list[int] | None = None) -> None:
        """Take the last tokens out of the cache, and rows that leave.

        Args:
            num_rejected (`list[int]`): Tokens to take out, of each row that stays.
            lens (`list[int]`): Tokens of each of these rows, the last of which is not in the cache.
            rows (`list[int]`, *optional*): Rows that stay; all, if not given.
        """
        width = max(lens) - 1 + self._layout.shift
        if rows is None and min(num_rejected) == max(num_rejected) == self._num_columns - width:
            # Also where nothing was rejected: sliding windows are trimmed here.
            self._rewinder.take_back(num_rejected[0])
            self._rotary.commit(num_rejected[0])
        else:
            compact(self.cache, num_rejected, width, rows)
        self._num_columns = width
        self._interruption.note_commit([length - 1 + self._layout.shift for length in lens])
        if rows is not None:
            self._columns.keep_rows(rows)

    def restore(self, lens: list[int]) -> bool:
        """Leave in the cache what stands of all rows, because something raised; `lens` as of [`commit`].

        False where that cannot be done, and the cache was emptied.
        """
        return self._interruption.restore(min(lens) - 1 + self._layout.shift)

    def close(self) -> None:
        """Leave the cache as plain `generate()` would, for whoever goes on with it."""
        self._rewinder.stop()
        self._rotary.close()

    def _inputs(self, ids: Tensor, ends: list[int], num_inputs: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Token ids `(batch, columns)` as they stand in the cache, mask and what else belongs to columns."""
        end = max(ends)
        num_columns = self._num_columns = end + self._layout.shift
        if min(ends) == end:
            return ids[:, :end], self._columns.of_block(num_columns, num_inputs)
        shifts = torch.tensor([end - row_end for row_end in ends], device=ids.device)
        places = torch.arange(num_columns, device=ids.device) - shifts.unsqueeze(1)  # [B, columns]
        kwargs = self._columns.of_shifted_block(places, num_inputs)
        # Drafts that a row has no room for may be any token: they are never taken.
        id_places = (places[:, -end:] - self._layout.shift).clamp(0, ids.shape[1] - 1)
        return ids.gather(1, id_places), kwargs

    def _forward(self, ids: Tensor, kwargs: dict[str, Any], num_logits: int, **options: Any) -> Tensor:
        # About 20 microseconds, and some models need it.
        inputs = self._model.prepare_inputs_for_generation(ids, **options, **self._kwargs, **kwargs)
        self.is_anew = False
        if inputs.get(CACHE_NAME) is not self.cache:
            inputs = self._with_cache(inputs, ids, options)
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = num_logits
        # The prompt, and what is processed anew, is one pass in plain `generate()`, too.
        is_whole = self.is_anew or options.get("is_first_iteration", False)
        self._interruption.is_in_pass = True
        with self._taps.in_pass() as seen, nullcontext() if is_whole else self._rotary.in_steps():
            if self.recorder is None:
                outputs = self._model(**inputs, output_hidden_states=self._taps.entries or False, return_dict=True)
            else:
                records = {"output_attentions": True} if self.recorder.attentions is not None else {}
                outputs = self._model(**inputs, **records, output_hidden_states=True, return_dict=True)
                self.outputs = outputs
        self._interruption.is_in_pass = False
        self._taps_of_pass = self._taps.read(seen, outputs.hidden_states)
        if self.is_anew:
            num_inputs = options["next_sequence_length"]
            self._taps_of_pass = [tap[:, -num_inputs:] for tap in self._taps_of_pass]
        logits = outputs.logits
        # A view would keep the logits of the whole prompt alive.
        return logits if logits.shape[1] == num_logits else logits[:, -num_logits:].clone()

    def _with_cache(self, inputs: dict[str, Any], ids: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        """Inputs of a model that dropped its cache to compute all tokens anew, as models with two rope scalings do."""
        if self.cache.get_seq_length() == 0:
            # Of a long prompt, which is no loss.
            return {**inputs, CACHE_NAME: self.cache}
        given = inputs.get("input_ids")
        if given is not None and not self._rotary.is_on:
            # Nor would anything else be computed.
            return {**inputs, CACHE_NAME: self.cache, "input_ids": given[:, -options["next_sequence_length"] :]}
        if given is None or given.shape[1] != self._num_columns:
            raise ValueError(
                f"{type(self._model).__name__} dropped its cache at {self._num_columns} tokens, but does not compute "
                "all of them anew. Generate up to that length, or without a drafter."
            )
        self.is_anew = True
        self._rotary.forget()
        self._interruption.is_anew = True
        self.cache.reset()
        kwargs = {**self._kwargs, **self._columns.of_prompt(0, self._num_columns)}
        del kwargs[CACHE_NAME]
        inputs = self._model.prepare_inputs_for_generation(ids, **{**options, "next_sequence_length": None}, **kwargs)
        return {**inputs, CACHE_NAME: self.cache}
