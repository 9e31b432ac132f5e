"""A conversation of several turns over one cache, with the drafter's context beside it.

Shapes: S tokens so far.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, DynamicLayer

from dspark_hf.generation.stats import SpeculationStats
from dspark_hf.modeling.cache_name import CACHE_NAME


class Conversation:
    """Messages of a user and a target, and the cache of what was said.

    Each turn processes what is new. Where a chat template writes earlier turns in another way than the target did (as
    those that leave out its thinking), the cache goes back to where the two part.

    Args:
        target (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`]): Its drafter.
        encode (`Callable`): From messages to token ids that end with the opening of an answer.
        decode (`Callable`): From token ids to text, without special tokens.
        system (`str`, *optional*): The system's message.

    Attributes:
        messages (`list[dict]`): What was said.
        stats ([`SpeculationStats`]): Of all turns.
    """

    def __init__(
        self,
        target: Any,
        drafter: Any,
        encode: Callable[[list[dict[str, str]]], list[int]],
        decode: Callable[[list[int]], str],
        system: str | None = None,
    ):
        self._target, self._drafter, self._encode, self._decode = target, drafter, encode, decode
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.forget()

    def forget(self) -> None:
        """Begin again."""
        self.messages = list(self._opening)
        self.stats = SpeculationStats()
        self._cache: DynamicCache | None = None
        self._cached: list[int] = []

    def say(self, text: str, streamer: Any = None, **options: Any) -> str:
        """Let the target answer.

        Args:
            text (`str`): The user's message.
            streamer (`BaseStreamer`, *optional*): Gets the answer's tokens. If it raises, as where someone breaks the
                answer off, the message is taken back.
            options: Of `generate()`.

        Returns:
            `str`: The answer.

        Raises:
            `ValueError`: If the chat template refuses the messages.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._encode(messages)
        cache = self._begin(ids)
        try:
            out = self._target.generate(
                torch.tensor([ids], device=self._target.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=self._target.device),
                assistant_model=self._drafter,
                streamer=streamer,
                **{CACHE_NAME: cache},
                **options,
            )
        except BaseException:
            self._cache, self._cached = None, []
            raise
        made = out[0].tolist()
        # The last token is not processed yet.
        self._cache, self._cached = cache, made[:-1]
        answer = self._decode(made[len(ids) :])
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        self.stats.add(self._drafter.last_stats)
        return answer

    def _begin(self, ids: list[int]) -> DynamicCache:
        """A cache that holds a prefix of `ids`, and not all of them."""
        pairs = zip(self._cached, ids[:-1], strict=False)
        num_kept = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(self._cached), len(ids) - 1))
        too_many = len(self._cached) - num_kept
        # Windows and recurrent states do not hold what a shorter text would need.
        is_plain = self._cache is not None and all(type(layer) is DynamicLayer for layer in self._cache.layers)
        if self._cache is None or num_kept == 0 or (too_many > 0 and not is_plain):
            return DynamicCache(config=self._target.config.get_text_config(decoder=True))
        if too_many > 0:
            self._cache.crop(-too_many)
        return self._cache
