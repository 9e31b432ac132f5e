"""What a drafter is tried on: answers of the target, and the features of every layer behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dspark_hf.data.features import TargetFeatures
from dspark_hf.evaluation.diagnosis.adapters import adapter_off
from dspark_hf.evaluation.running.checks import check_length, length_of_table
from dspark_hf.evaluation.running.runs import DecodingSettings, generate_plain
from dspark_hf.evaluation.tasks.prompts import pad_prompts, prompt_rows

PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Write a Python function that checks whether a number is prime.",
    "Explain in simple words why the sky is blue.",
    "Write a short email that thanks a colleague for their help.",
    "Natalia sold 48 clips in April and half as many in May. How many did she sell altogether?",
    "Give three tips for staying healthy.",
    "Summarize the plot of Romeo and Juliet in a few sentences.",
    "Translate into German: The weather is nice today, so we are going for a walk.",
)
_MAX_NEW_TOKENS, _ANCHORS_OF_TEXT = 64, 64


@dataclass(frozen=True)
class Text:
    """A prompt with the target's greedy answer.

    Args:
        ids (`torch.LongTensor` of shape `(1, tokens)`): Both.
        anchors (`list[int]`): Places in the answer where blocks are drafted.
    """

    ids: Tensor
    anchors: list[int]


class Texts:
    """Answers to prompts in one form, with or without the target's adapter.

    Args:
        target (`PreTrainedModel`): The target, perhaps in a `PeftModel`.
        rows (`Sequence[Sequence[int]]`): Prompts as token ids.
        tokenizer (`Any`, *optional*): Names the padding.
        adapter (`bool`, *optional*, defaults to `True`): Whether the target's adapter is on.

    Raises:
        `ValueError`: If a prompt is longer than a target with a table of positions can take.
    """

    def __init__(self, target: Any, rows: Sequence[Sequence[int]], tokenizer: Any = None, adapter: bool = True):
        self._target, self._adapter = target, adapter
        longest = length_of_table(target)
        for row in rows:
            check_length(len(row), _MAX_NEW_TOKENS, longest)
        with self._setting():
            inputs = pad_prompts(rows, tokenizer) if tokenizer is not None else _stacked(rows)
            answers = generate_plain(target, inputs, DecodingSettings(_MAX_NEW_TOKENS)).ids
        self.texts = [_text(list(row), answer) for row, answer in zip(rows, answers, strict=True) if len(answer) > 2]
        self._taps: dict[int, list[Tensor]] = {}  # of a layer, each text's

    def features(self, layer_ids: Sequence[int]) -> list[Tensor]:
        """Features `(1, tokens, taps * hidden)` of each text, tapped at `layer_ids`, numbers from 0."""
        # Layers are tapped once, in whatever company they are asked for.
        new = [layer for layer in layer_ids if layer not in self._taps]
        if new:
            with self._setting():
                source = TargetFeatures(self._target, new)
                taps = [source(text.ids)[0].chunk(len(new), -1) for text in self.texts]
            self._taps |= dict(zip(new, map(list, zip(*taps, strict=True)), strict=True))
        of_texts = zip(*(self._taps[layer] for layer in layer_ids), strict=True)
        return [torch.cat(taps, -1) for taps in of_texts]

    def _setting(self) -> Any:
        return adapter_off(self._target, not self._adapter)


def encode(prompts: Sequence[Any], tokenizer: Any, *, template: bool, **form: Any) -> list[list[int]]:
    """Prompts as token ids.

    Args:
        prompts (`Sequence`): Prompts, or conversations.
        tokenizer (`Any`): The target's.
        template (`bool`): Whether they go through the chat template; otherwise they are raw text.
        form: Options of the template.

    Returns:
        `list[list[int]]`: Ids of each.
    """
    return prompt_rows(prompts, tokenizer, template=template, **(form if template else {}))


def _text(prompt: list[int], answer: list[int]) -> Text:
    first, last = len(prompt), len(prompt) + len(answer) - 1
    places = torch.linspace(first, last - 1, min(_ANCHORS_OF_TEXT, last - first)).round().long().tolist()
    return Text(torch.tensor([prompt + answer]), sorted(set(places)))


def _stacked(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    ids = torch.tensor([list(row) for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
