"""A server of this test's own on loopback, and the real client of it."""

import threading
import time
from contextlib import contextmanager

import openai
import pytest
import uvicorn
from transformers import ContinuousBatchingConfig

from dspark_hf.serving.server.app import make_serving


@contextmanager
def running(serving):
    """Its address while it runs in a thread."""
    server = uvicorn.Server(uvicorn.Config(serving.app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        serving.state.shutdown()
        server.should_exit = True
        thread.join(timeout=10)


BATCHING = {"page_size": 16, "num_blocks": 64, "max_batch_tokens": 64, "max_memory_percent": 0.5}


@pytest.fixture(scope="module", params=["one by one", "batched"])
def server(request, tiny_target_dir, tiny_drafter_dir):
    """Address, model's name, what serves, and whether it batches."""
    is_batched = request.param == "batched"
    serving = make_serving(
        tiny_target_dir, tiny_drafter_dir, device="cpu", dtype="float32", is_batched=is_batched,
        batching_config=ContinuousBatchingConfig(**BATCHING) if is_batched else None,
    )  # fmt: skip
    with running(serving) as address:
        yield address, tiny_target_dir, serving, is_batched


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
