"""What the server did, as Prometheus reads it."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .generating import DraftedState

_COUNTERS = {
    "new_tokens": ("dspark_generated_tokens", "Tokens made."),
    "rounds": ("dspark_rounds", "Passes of the target that made tokens."),
    "verifications": ("dspark_verifications", "Verifications: one pass of one request behind its prompt."),
    "emitted_tokens": ("dspark_emitted_tokens", "Tokens that verifications made; by dspark_verifications it is tau."),
    "drafted_tokens": ("dspark_drafted_tokens", "Drafts that were made."),
    "verified_tokens": ("dspark_verified_tokens", "Drafts that the target looked at."),
    "accepted_tokens": ("dspark_accepted_tokens", "Drafts that became output."),
    "paused_rounds": ("dspark_paused_rounds", "Passes without drafts, because those did not pay."),
    "failed_requests": ("dspark_failed_requests", "Requests whose step failed."),
}


class _Collector:
    def __init__(self, state: DraftedState):
        self._state = state

    def collect(self) -> Iterator[Any]:
        stats, scheduler = self._state.stats, self._state.scheduler
        for field, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, value=getattr(stats, field))
        yield GaugeMetricFamily("dspark_tau", "Mean tokens per verification since the start.", value=stats.tau)
        if scheduler is not None:
            yield GaugeMetricFamily(
                "dspark_running_requests", "Requests in the batch.", value=len(scheduler.active_requests)
            )
            yield GaugeMetricFamily(
                "dspark_waiting_requests", "Requests that wait.", value=len(scheduler.waiting_requests)
            )


def metrics_text(state: DraftedState) -> bytes:
    """The text that `/metrics` answers with.

    Args:
        state ([`DraftedState`]): What the server generates with.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(state))
    return generate_latest(registry)
