"""The target in the decoding loop: prefill with taps, verification of a block, commit of what was accepted.

Shapes: B batch, T prompt, w tokens of one forward pass, L taps, E hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel


class TargetRunner:
    """Runs a target on the cache that `generate()` prepared.

    Args:
        model (`PreTrainedModel`): The target.
        tap_layer_ids (`list[int]`): Layers to tap; the tap of layer i is `hidden_states[i + 1]`.
        model_kwargs (`dict`): What `generate()` prepared for the forward passes.
        prompt_len (`int`): Tokens of the prompt.
        max_length (`int`): Most tokens, prompt included.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tap_layer_ids: list[int],
        model_kwargs: dict[str, Any],
        prompt_len: int,
        max_length: int,
    ):
        self._model = model
        self._taps = [layer_id + 1 for layer_id in tap_layer_ids]
        self.cache: Cache = model_kwargs["past_key_values"]
        self._kwargs = dict(model_kwargs)
        self._prompt_len = prompt_len
        self._num_new = max_length - prompt_len
        self._taps_of_pass: list[Tensor] = []
        # What grows with every token is laid out once, up to the end.
        self._mask = self._kwargs.pop("attention_mask", None)
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(self._mask.shape[0], self._num_new)], 1)
        self._by_column = {
            name: self._lay_out(name, self._kwargs.pop(name))
            for name in ("position_ids", "token_type_ids", "mm_token_type_ids")
            if self._kwargs.get(name) is not None
        }

    def _lay_out(self, name: str, prompt_values: Tensor) -> Tensor:
        """Values of all columns, the prompt's followed by those that plain `generate()` appends token by token."""
        last = prompt_values[..., -1:]
        shape = (*last.shape[:-1], self._num_new)
        if name == "position_ids":
            appended = last + torch.arange(1, self._num_new + 1, device=last.device)
        elif name == "token_type_ids":
            appended = last.expand(shape)
        else:
            appended = last.new_zeros(shape)
        return torch.cat([prompt_values, appended], -1)

    @torch.no_grad()
    def prefill(self, input_ids: Tensor) -> Tensor:
        """Process the prompt `(batch, prompt)`; returns the logits `(batch, 1, vocab)` of the first new token.

        Raises:
            `ValueError`: If the target does not return hidden states.
        """
        logits = self._forward(input_ids, input_ids.shape[1], num_logits=1, is_first=True)
        # From here on rejected tokens must be taken back; before, it would only keep what a sliding window drops.
        self.cache.activate_past_recording()
        return logits

    @torch.no_grad()
    def verify(self, ids: Tensor, num_block: int) -> Tensor:
        """Process the last `num_block` tokens of `ids` `(batch, tokens)`; logits `(batch, num_block, vocab)`."""
        return self._forward(ids, num_block, num_logits=num_block, is_first=False)

    def take_features(self, num_tokens: int | None = None) -> Tensor:
        """Features `(batch, num_tokens, taps * hidden)` of the latest pass's first tokens; to be taken once."""
        taps, self._taps_of_pass = self._taps_of_pass, []
        device = taps[0].device
        return torch.cat([tap[:, :num_tokens].to(device) for tap in taps], -1)

    def commit(self, num_rejected: int) -> None:
        """Take the last `num_rejected` tokens out of the cache."""
        # Also where nothing was rejected: sliding windows are trimmed here.
        self.cache.crop(-num_rejected)

    def close(self) -> None:
        """Leave the cache as plain `generate()` would, for whoever goes on with it."""
        for layer in self.cache.layers:
            if getattr(layer, "record_past", False):
                layer.record_past = False

    def prompt_mask(self) -> Tensor | None:
        """Attention mask of the prompt, `(batch, prompt)` bool; None where nothing is padded."""
        return None if self._mask is None else self._mask[:, : self._prompt_len].bool()

    def _forward(self, ids: Tensor, num_inputs: int, num_logits: int, is_first: bool) -> Tensor:
        end = ids.shape[1]
        kwargs = {name: values[..., end - num_inputs : end] for name, values in self._by_column.items()}
        if self._mask is not None:
            kwargs["attention_mask"] = self._mask[:, :end]
        # About 20 microseconds, and some models need it.
        inputs = self._model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=None if is_first else num_inputs,
            is_first_iteration=is_first,
            **self._kwargs,
            **kwargs,
        )
        if inputs.get("past_key_values") is not self.cache:
            raise ValueError(
                f"{type(self._model).__name__} dropped its cache at {end} tokens to compute all of them anew, as "
                "models with two rope scalings do. Speculative decoding cannot cross that length: generate up to "
                "it, or generate without a drafter."
            )
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = num_logits
        outputs = self._model(**inputs, output_hidden_states=self._taps, return_dict=True)
        if outputs.hidden_states is None:
            raise ValueError(
                f"{type(self._model).__name__} returns no hidden states, so a drafter cannot read it. Generate "
                "without a drafter."
            )
        self._taps_of_pass = [outputs.hidden_states[tap] for tap in self._taps]
        logits = outputs.logits
        # A view would keep the logits of the whole prompt alive.
        return logits if logits.shape[1] == num_logits else logits[:, -num_logits:].clone()
