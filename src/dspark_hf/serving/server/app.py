"""The server: transformers' routes with our handlers, errors as OpenAI writes them, and /metrics."""

from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from jinja2 import TemplateError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from transformers import ContinuousBatchingConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import CBGenerateManager, GenerateManager, GenerationState

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.serving.checks import check_batching
from dspark_hf.serving.parts import check_parts

from .generating import DraftedState, batch_config
from .handlers import DraftedChat, DraftedCompletion
from .metrics import metrics_text
from .models import DraftedModelManager

# What the subclasses in this folder rely on.
_NEEDED = {
    ModelManager: {"_load_model": {"model_id_and_revision"}, "_load_processor": {"model_id_and_revision"}},
    ChatCompletionHandler: {
        "handle_request": {"body", "request_id"}, "_build_completion": {"request_id", "content", "usage"},
        "_build_chunk_sse": {"request_id", "usage"}, "_build_generation_config": {"body", "use_cb"},
    },
    CompletionHandler: {
        "handle_request": {"body", "request_id"}, "_non_streaming": {"request_id"},
        "_build_chunk_sse": {"request_id", "usage"}, "_build_generation_config": {"body", "use_cb"},
    },
    GenerationState: {"get_manager": {"model_id", "use_cb"}},
    GenerateManager: {"generate_streaming": {"model", "request_id"},
                      "generate_non_streaming": {"model", "request_id"}},
    CBGenerateManager: {"init_cb": {"model", "gen_config"}, "generate_streaming": {"gen_config", "request_id"},
                        "generate_non_streaming": {"gen_config", "request_id"}},
}  # fmt: skip


@dataclass(frozen=True)
class Serving:
    """A server that is ready.

    Attributes:
        app (`FastAPI`): It.
        models ([`DraftedModelManager`]): What it has loaded.
        state ([`DraftedState`]): What it generates with.
    """

    app: FastAPI
    models: DraftedModelManager
    state: DraftedState

    def run(self, host: str, port: int) -> None:
        """Serve until the process is told to stop.

        Args:
            host (`str`): Address to listen at.
            port (`int`): Port.
        """
        try:
            uvicorn.run(self.app, host=host, port=port, log_level="warning")
        finally:
            self.close()

    def close(self) -> None:
        """End what runs, and let go of the models."""
        self.state.shutdown()
        self.models.shutdown()


def make_serving(
    target: str,
    drafter: str | None = None,
    *,
    is_batched: bool = False,
    batching_config: ContinuousBatchingConfig | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Serving:
    """Load a target with its drafter, and build the server.

    Args:
        target (`str`): A repository, a folder, or `embedded`; the model's name for clients.
        drafter (`str`, *optional*): The drafter's; without it `target` holds both, or is `embedded`.
        is_batched (`bool`, *optional*, defaults to `False`): Whether requests are batched, or answered one by one.
        batching_config (`ContinuousBatchingConfig`, *optional*): Sizes of the batch's cache.
        chat_template_kwargs (`dict`, *optional*): For the chat template, where a request gives no others.
        options: Of transformers' `ModelManager`: `device`, `dtype`, `trust_remote_code`, `attn_implementation`.

    Returns:
        [`Serving`].

    Raises:
        `ValueError`: If the models cannot be loaded, do not fit, or do not go with batching.
        `RuntimeError`: If this release of transformers serves in another way than is known here.
    """
    check_parts("The server", _NEEDED)
    models = DraftedModelManager(target, drafter, continuous_batching=is_batched, **options)
    if is_batched:
        check_batching(models.model, models.model.drafter, batch_config(models.model), SpeculationConfig())
    state = DraftedState(continuous_batching=is_batched, cb_config=batching_config)
    handlers = {"model_manager": models, "generation_state": state}
    chat = {"chat_template_kwargs": chat_template_kwargs or {}}
    app = build_server(
        models,
        DraftedChat(**handlers, **chat),
        completion_handler=DraftedCompletion(**handlers),
        response_handler=ResponseHandler(**handlers, **chat),
        transcription_handler=TranscriptionHandler(models, state),
        systemone_handler=SystemOneHandler(**handlers, **chat),
        generation_state=state,
    )

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(metrics_text(state), media_type=CONTENT_TYPE_LATEST)

    _tell_errors(app)
    return Serving(app, models, state)


def _tell_errors(app: FastAPI) -> None:
    """Answer errors as OpenAI does, those of a request's body with 400."""

    def told(status: int, message: str) -> JSONResponse:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return JSONResponse({"error": {"message": message, "type": kind, "code": None}}, status)

    async def bad_request(request: Request, error: Exception) -> JSONResponse:
        text = f"{error.args[0]!r} is missing." if isinstance(error, KeyError) and error.args else str(error)
        return told(400, text or type(error).__name__)

    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return told(error.status_code, str(error.detail))

    async def wrong_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return told(422, f"The body must be a JSON object: {error.errors()[0]['msg']}.")

    async def server_error(request: Request, error: Exception) -> JSONResponse:
        return told(500, f"{type(error).__name__}: {error}")

    for kind in (ValueError, TypeError, KeyError, AttributeError, RecursionError, TemplateError):
        app.add_exception_handler(kind, bad_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, wrong_body)
    # Of torch, memory that is full among them; behind others the connection is closed.
    app.add_exception_handler(RuntimeError, server_error)
    app.add_exception_handler(Exception, server_error)
