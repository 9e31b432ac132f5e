"""transformers' handlers of requests: bad ones get a clear 4xx, and usage tells what became of drafts."""

import json
from contextvars import ContextVar
from typing import Any

from fastapi.responses import JSONResponse
from openai.types.completion_usage import CompletionTokensDetails, CompletionUsage
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler

from dspark_hf.serving.stop_texts import cut_at

from .generating import SEED
from .requests import check_body, check_messages, check_prompt
from .stopping import stops_of

# Texts that end the answer to the request at hand.
_stops: ContextVar[tuple[str, ...]] = ContextVar("dspark_stops", default=())


class _Drafted:
    """What both handlers do beyond transformers' own."""

    generation_state: Any

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """Answer a request; `ValueError` where it asks for what cannot be done."""
        check_body(body, self.generation_state.is_batching)
        self._check_text(body)
        return await super().handle_request(body, request_id)

    def _build_generation_config(self, body: dict, model_generation_config: Any, use_cb: bool = False) -> Any:
        # A seed is for this request alone, and not for torch's generator, from which all others draw.
        config = super()._build_generation_config({**body, "seed": None}, model_generation_config, use_cb)
        setattr(config, SEED, body.get("seed"))
        _stops.set(stops_of(config))
        # As OpenAI has it: whoever names a temperature or a share wants tokens drawn.
        if body.get("temperature") or (body.get("top_p") is not None and body.get("temperature") is None):
            config.do_sample = True
        return config

    def _tell(self, request_id: str, usage: CompletionUsage | None) -> None:
        if usage is not None:
            accepted, rejected = self.generation_state.stats.answers.take(request_id)
            usage.completion_tokens_details = CompletionTokensDetails(
                accepted_prediction_tokens=accepted, rejected_prediction_tokens=rejected
            )


class DraftedChat(_Drafted, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    _check_text = staticmethod(check_messages)

    def _build_completion(self, request_id: str, content: str, *args: Any, usage: Any = None, **kwargs: Any) -> dict:
        self._tell(request_id, usage)
        # Where a template parses answers, this is what it found.
        content = cut_at(_stops.get(), content or "")
        return super()._build_completion(request_id, content, *args, usage=usage, **kwargs)

    def _build_chunk_sse(self, request_id: str = "", *args: Any, usage: Any = None, **kwargs: Any) -> str:
        self._tell(request_id, usage)
        return super()._build_chunk_sse(request_id, *args, usage=usage, **kwargs)


class DraftedCompletion(_Drafted, CompletionHandler):
    """`/v1/completions`."""

    _check_text = staticmethod(check_prompt)

    async def _non_streaming(self, request_id: str, *args: Any, **kwargs: Any) -> JSONResponse:
        answer = await super()._non_streaming(request_id, *args, **kwargs)
        body = json.loads(answer.body)
        usage = CompletionUsage(**body["usage"])
        self._tell(request_id, usage)
        return JSONResponse({**body, "usage": usage.model_dump(exclude_none=True)})

    def _build_chunk_sse(self, request_id: str, *args: Any, usage: Any = None, **kwargs: Any) -> str:
        self._tell(request_id, usage)
        return super()._build_chunk_sse(request_id, *args, usage=usage, **kwargs)
