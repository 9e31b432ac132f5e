"""Whether this release of transformers batches requests as is known here."""

from transformers.generation.continuous_batching import continuous_api as api
from transformers.generation.continuous_batching.cache_allocators.sliding_attention import (
    SlidingAttentionCacheAllocator,
)
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import Scheduler

from dspark_hf.serving.parts import check_parts

# What the subclasses rely on, with the parameters that they pass on or read.
_NEEDED = {
    api.ContinuousBatchingManager: {
        "_create_batch_processor": set(), "_generation_loop_body": {"batch_processor", "bootstrapping"},
        "add_request": {"input_ids", "request_id", "streaming"}, "register_result_handler": {"request_id", "callback"},
    },
    api.ContinuousBatchProcessor: {
        "prepare_next_batch": set(), "update_batch": set(), "reset": set(),
        "_handle_request_error": {"error", "state"},
    },
    ContinuousBatchingIOs: {
        "prepare_batch_tensors": {"requests_in_batch"}, "get_model_kwargs": {"use_padding"},
        "prepare_batch_update": set(),
    },
    ModelRunner: {"_forward_process_and_sample": {"model", "batch_data"}, "_sample": {"scores", "output_ids"}},
    Scheduler: {
        "schedule_batch": {"token_budget", "cache_budget"}, "finish_request": {"request_id"},
        "add_waiting_request": {"state"}, "_cleanup_waiting_queue": {"request_ids_to_remove_from_waiting"},
        "_infer_request_tokens": {"state", "request_ids_to_remove_from_waiting"},
        "_schedule_request": {"state", "request_tokens", "token_budget", "request_ids_to_remove_from_waiting"},
    },
    SlidingAttentionCacheAllocator: {
        "_compute_blocks_needed": {"allocated_blocks", "past_length", "query_length"},
        "get_read_indices": {"request_id", "past_length", "query_length"},
        "get_write_indices": {"request_id", "past_length", "query_length"},
    },
    RequestState: {"create_equivalent_initial_request": set(), "update_and_check_completion": {"token_id", "logprob"}},
}  # fmt: skip


def check_release() -> None:
    """Raise `RuntimeError` if this release of transformers batches requests in another way than is known here."""
    check_parts("Continuous batching", _NEEDED)
