"""Answers without the text that ended them, as OpenAI gives them."""

import asyncio
from collections import deque
from typing import Any

from transformers import GenerationConfig

from dspark_hf.serving.stop_texts import TextCutter


def stops_of(gen_config: GenerationConfig) -> tuple[str, ...]:
    """The texts that end an answer.

    Args:
        gen_config (`GenerationConfig`): The request's.
    """
    stops = gen_config.stop_strings
    return (stops,) if isinstance(stops, str) else tuple(stops or ())


def without_stops(gen_config: GenerationConfig, queue: asyncio.Queue, streamer: Any) -> tuple[Any, Any]:
    """A stream without what stands from a stop text on.

    Args:
        gen_config (`GenerationConfig`): The request's.
        queue (`asyncio.Queue`): Pieces of the answer; None ends it.
        streamer: What fills it.

    Returns:
        What stands for the two.
    """
    stops = stops_of(gen_config)
    return (_CutQueue(queue, TextCutter(stops)) if stops else queue), streamer


class _CutQueue:
    """A queue whose pieces of text go through a [`TextCutter`]; all else, as calls of tools, passes."""

    def __init__(self, queue: asyncio.Queue, cutter: TextCutter):
        self._queue, self._cutter = queue, cutter
        self._ready: deque[Any] = deque()

    async def get(self) -> Any:
        while not self._ready:
            self._take(await self._queue.get())
        return self._ready.popleft()

    def get_nowait(self) -> Any:
        while not self._ready:
            self._take(self._queue.get_nowait())
        return self._ready.popleft()

    def _take(self, item: Any) -> None:
        # Reasoning is text of a class of its own.
        text = self._cutter.feed(item) if type(item) is str else self._cutter.rest()
        if text:
            self._ready.append(text)
        if type(item) is not str:
            self._ready.append(item)
