"""The size, before any work: what a build then takes."""

import pytest

from dspark_hf.data.cache import estimate_target_cache


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int8", "int4"])
def test_estimate_is_what_the_build_takes(build, rows, target, dtype):
    estimate = estimate_target_cache(target.config, rows, num_taps=2, log_norm=True)
    cache = build(rows, dtype=dtype, log_norm=True, shard_bytes=2**20)
    assert estimate.num_tokens == cache.num_tokens and estimate.num_rows == estimate.num_sampled == 20
    headers = sum(shard.num_bytes for shard in cache.shards) - estimate.num_bytes(dtype)
    assert 0 < headers < 1200 * len(cache.shards)


def test_a_sample_is_scaled_up(rows, target):
    estimate = estimate_target_cache(target.config, rows * 50, num_taps=2, num_sampled=200)
    exact = estimate_target_cache(target.config, rows * 50, num_taps=2)
    assert estimate.num_sampled == 200 and exact.num_sampled == 1000
    assert abs(estimate.num_tokens / exact.num_tokens - 1) < 0.2


def test_int4_is_what_it_promises(target):
    # Taps, hidden size: of the embedded target's drafter, and of the paper's for Qwen3-4B.
    for num_taps, hidden_size in ((4, 576), (5, 2560)):
        config = type(target.config)(hidden_size=hidden_size)
        sizes = estimate_target_cache(config, [], num_taps=num_taps, log_norm=True).bytes_per_token
        assert sizes["bf16"] / sizes["int4"] >= 3.5
        assert sizes["bf16"] / sizes["int8"] > sizes["bf16"] / sizes["fp8"] * 0.9 > 1.7
