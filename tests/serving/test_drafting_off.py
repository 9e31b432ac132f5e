"""A step without drafts is transformers' own, with next to nothing beside it."""

import sys
from contextlib import contextmanager

import pytest
import torch
from knowing import knowing_drafter, small_batching
from test_batching import greedy_config
from tiny_targets import make_target
from torch.utils._python_dispatch import TorchDispatchMode

from dspark_hf import PrefixScheduler, SpeculationConfig, StepCost

# Drafts that cost more than they can win.
NEVER = PrefixScheduler("auto", step_cost=StepCost([1, 64], [1], [[1.0, 2.0]], [1, 64], [1e6, 1e6]))
NUM_STEPS = 40
# Of Python, beyond those of a stock step, which makes some 50 for each request beside those of the model.
MOST_CALLS, MOST_CALLS_OF_REQUEST = 240, 35


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def calls(count):
    """Counts calls of Python functions into `count[0]`."""

    def note(frame, event, arg):
        count[0] += event == "call"

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def cost_of_steps(target, num_requests, **options):
    """Operations of torch and calls of functions of a step behind the prompts, in the mean, and the manager."""
    manager = target.init_continuous_batching(
        greedy_config(target), small_batching(num_blocks=200, max_batch_tokens=200), **options
    )
    with torch.inference_mode():
        manager.batch_processor = processor = manager._create_batch_processor()
        manager.current_batch = 0
        for number in range(num_requests):
            manager.add_request([5 + number, 6, 7], f"r{number}", max_new_tokens=NUM_STEPS + 8)
        for _ in range(3):
            manager._generation_loop_body(processor, False)
        count = [0]
        with Operations() as operations:
            for _ in range(NUM_STEPS // 2):
                manager._generation_loop_body(processor, False)
        with calls(count):
            for _ in range(NUM_STEPS // 2):
                manager._generation_loop_body(processor, False)
        assert len(processor.scheduler.active_requests) == num_requests
    manager.stop(block=True)
    return 2 * operations.num / NUM_STEPS, 2 * count[0] / NUM_STEPS, manager


def test_a_step_without_drafts_costs_what_a_stock_one_costs(monkeypatch):
    target = make_target()
    drafter = knowing_drafter(target)
    options = {"assistant_model": drafter, "speculation": SpeculationConfig(policy=NEVER)}
    monkeypatch.setattr(drafter, "propose", lambda *args, **kwargs: pytest.fail("asked for drafts"))
    num_read, project = [], drafter.project
    monkeypatch.setattr(drafter, "project", lambda features: num_read.append(1) or project(features))
    for num_requests in (2, 12):
        stock = cost_of_steps(target, num_requests, speculation=False)
        own = cost_of_steps(target, num_requests, **options)
        # What a drafter reads is noted in each step, and read once for many tokens.
        assert own[0] - stock[0] < 0.05 * stock[0]
        assert own[1] - stock[1] < MOST_CALLS + MOST_CALLS_OF_REQUEST * num_requests
        assert own[2].stats.drafted_tokens == own[2].stats.verified_tokens == 0
        assert own[2].stats.paused_rounds > 0.9 * own[2].stats.rounds
    assert 0 < sum(num_read) <= -(-14 * (NUM_STEPS + 3) // 64)
