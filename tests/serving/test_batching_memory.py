"""Two thousand requests leave nothing behind."""

import gc
import random

import psutil
import pytest
from knowing import knowing_drafter, small_batching
from test_batching import greedy_config
from tiny_targets import make_target


@pytest.mark.slow
def test_two_thousand_requests():
    target = make_target()
    drafter = knowing_drafter(target)
    manager = target.init_continuous_batching(
        greedy_config(target), small_batching(num_blocks=64, max_batch_tokens=128), assistant_model=drafter
    )
    rng, process, memory = random.Random(0), psutil.Process(), []
    manager.start()
    for batch in range(40):
        for number in range(50):
            prompt = [rng.randint(1, 63) for _ in range(rng.choice([2, 9, 30]))]
            manager.add_request(prompt, f"{batch}-{number}", max_new_tokens=rng.randint(1, 6))
        num_done = 0
        while num_done < 50:
            out = manager.get_result(timeout=10)
            assert out is not None and out.error is None
            num_done += 1
        gc.collect()
        memory.append(process.memory_info().rss)
    step_drafter = manager.batch_processor.drafter
    manager.stop(block=True, timeout=10)
    assert step_drafter.num_requests == 0 and manager.stats.new_tokens > 2000
    # The first thousand may warm caches up; the second adds next to nothing.
    assert max(memory[20:]) - max(memory[:20]) < 8 * 2**20
