"""Comparisons and their summary, on real tiny models."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter, SpeculationStats
from dspark_hf.evaluation import (
    BenchmarkSettings,
    Comparison,
    DecodingSettings,
    Run,
    compare,
    encode_prompts,
    generate_plain,
    run_benchmark,
    summarize,
    tau_of,
)
from dspark_hf.evaluation.summary import seconds_in_parts, time_share

PROMPTS = ["Name three colours.", "Say hello.", "Count."]


@pytest.fixture(scope="module")
def pair(tiny_target_dir, tiny_drafter_dir):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir, dtype=torch.float32).eval()
    return target, AutoDrafter.from_pretrained(tiny_drafter_dir).eval().bind(target)


def made_up_run(ids: list[int], seconds: float, rounds: list[tuple[int, int]]) -> Run:
    """A run whose rounds are (accepted, emitted) pairs of two verified slots each."""
    stats = SpeculationStats(rounds=len(rounds), target_seconds=3.0, drafter_seconds=1.0, prefill_seconds=0.5)
    stats.total_seconds = 5.0
    for accepted_len, emitted_len in rounds:
        stats.record(0, 2, accepted_len, emitted_len)
    return Run([ids], seconds, stats)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 .*got -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0 .*got nan"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_dtype_prompts": -1}, "num_dtype_prompts must be 0 .*got -1"),
        ({"rival_lookup": -1}, "rival_lookup must be 0 .*got -1"),
        ({"rival_lookup": 5, "batch_size": 2}, "takes one prompt at a time, got batch_size 2"),
        ({"tau_only": True, "lookup": True}, "tau_only measures the drafter alone"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkSettings(**fields)


def test_lookup_before_the_drafter_and_as_a_rival(pair, tiny_target_dir, monkeypatch):
    # On a busy machine a clock gives any ratio.
    monkeypatch.setattr(Run, "tokens_per_second", property(lambda run: 1.0 if run.stats is None else 3.0))
    tokenizer = AutoTokenizer.from_pretrained(tiny_target_dir)
    settings = BenchmarkSettings(max_new_tokens=12, num_dtype_prompts=0, lookup=True, rival_lookup=3)
    result = run_benchmark(*pair, tokenizer, PROMPTS[:2], settings)
    assert result["identical"]["fraction"] == 1.0
    assert result["rival_lookup"]["tokens"] == result["plain"]["tokens"]
    assert result["rival_lookup"]["tokens_per_second"] > 0 and result["rival_lookup"]["median_ratio"] == 3.0


@pytest.mark.parametrize(
    ("fields", "looks_up"),
    [({}, True), ({"batch_size": 8}, False), ({"lookup": False}, False), ({"tau_only": True}, False),
     ({"batch_size": 8, "lookup": True}, True)],
)  # fmt: skip
def test_the_drafter_alone_where_that_is_asked_for(pair, tiny_target_dir, fields, looks_up):
    tokenizer = AutoTokenizer.from_pretrained(tiny_target_dir)
    settings = BenchmarkSettings(max_new_tokens=12, num_dtype_prompts=0, **fields)
    # Prompts that say the same again and again, and others that fill a batch of eight.
    prompts = ["abcabcabcabcabcabcabc"] * 2 + PROMPTS[:1] * 6
    result = run_benchmark(*pair, tokenizer, prompts, settings)
    assert (result["lookup_share"] > 0) == looks_up
    assert ("efficiency" in result) == (fields == {"lookup": False})


def test_compiled_rounds_are_asked_for(pair, tiny_target_dir, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    tokenizer = AutoTokenizer.from_pretrained(tiny_target_dir)
    with pytest.raises(ValueError, match=r"compile=True needs a C\+\+ compiler"):
        run_benchmark(*pair, tokenizer, PROMPTS[:1], BenchmarkSettings(max_new_tokens=4, compile=True))


def test_figures_of_two_calls(pair):
    target, _ = pair
    plain = Run([[1, 2, 3, 4]], 4.0)
    slow = Comparison([[9]], made_up_run([1, 2, 3, 4], 4.0, [(0, 1), (1, 2)]), plain)
    fast = Comparison([[9]], made_up_run([1, 2, 3, 4], 1.0, [(2, 3)]), plain)
    result = summarize(target, [slow, fast], greedy=True)
    assert result["tau"] == pytest.approx((1 + 2 + 3) / 3)
    assert result["num_rounds"] == 3
    assert result["accepted_per_slot"] == pytest.approx([2 / 3, 1 / 3])
    assert result["accepted_per_slot_given_previous"] == pytest.approx([2 / 3, 1 / 2])
    assert result["ratio"] == pytest.approx({"median": (1.0 + 4.0) / 2, "total": (8 / 5) / (8 / 8)})
    assert result["time_share"] == pytest.approx({"target": 6 / 9, "drafter": 2 / 9, "rest": 1 / 9})
    assert result["seconds_in"]["outside"] == pytest.approx(5.0 - 10.0)
    assert result["identical"]["fraction"] == 1.0
    assert [call["ratio"] for call in result["calls"]] == [1.0, 4.0]


def test_different_ids_are_counted_and_examined(pair):
    target, _ = pair
    same = Comparison([[9]], made_up_run([1, 2], 1.0, [(1, 2)]), Run([[1, 2]], 1.0))
    other = Comparison([[9, 8]], made_up_run([1, 3], 1.0, [(1, 2)]), Run([[1, 2]], 1.0))
    identical = summarize(target, [same, other], greedy=True)["identical"]
    assert (identical["num_identical"], identical["num_prompts"], identical["fraction"]) == (1, 2, 0.5)
    (difference,) = identical["differences"]
    with torch.no_grad():
        best, second = target(torch.tensor([[9, 8, 1]])).logits[0, -1].topk(2).values.tolist()
    assert (difference["prompt"], difference["position"]) == (1, 1)
    assert difference["gap"] == pytest.approx(best - second, abs=1e-5)


def test_time_that_was_not_measured_is_not_invented():
    run = Run([[1]], 1.0, SpeculationStats())
    assert seconds_in_parts([run]) is None
    assert time_share(None) is None


def test_both_runs_agree_whichever_goes_first(pair, tiny_tokenizer):
    inputs = encode_prompts(PROMPTS[:1], tiny_tokenizer)
    first, second = (compare(*pair, inputs, DecodingSettings(12), plain_first=order) for order in (True, False))
    assert first.speculative.ids == first.plain.ids == second.speculative.ids == second.plain.ids
    assert first.prompt_ids == [tiny_tokenizer("u:Name three colours.\na:")["input_ids"]]
    assert first.ratio > 0


def test_plain_rows_end_at_eos(pair, tiny_tokenizer, monkeypatch):
    target, _ = pair
    inputs = encode_prompts(PROMPTS, tiny_tokenizer)
    free = generate_plain(target, inputs, DecodingSettings(12))
    stop = free.ids[0][3]
    monkeypatch.setattr(target.generation_config, "eos_token_id", [stop])
    stopped = generate_plain(target, inputs, DecodingSettings(12))
    assert stopped.ids == [row[: row.index(stop) + 1] if stop in row else row for row in free.ids]
    assert stopped.num_tokens == sum(map(len, stopped.ids))


def test_benchmark_reports_progress_and_alternates(pair, tiny_tokenizer, monkeypatch):
    order = []
    target, drafter = pair
    generate = type(target).generate

    def watched(self, *args, **kwargs):
        order.append("plain" if kwargs.get("assistant_model") is None else "speculative")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(target), "generate", watched)
    seen = []
    settings = BenchmarkSettings(max_new_tokens=8, num_dtype_prompts=0)
    result = run_benchmark(target, drafter, tiny_tokenizer, PROMPTS, settings, lambda *done: seen.append(done))
    assert [(num_done, len(comparisons)) for num_done, comparisons in seen] == [(1, 1), (2, 2), (3, 3)]
    assert tau_of(seen[-1][1]) == pytest.approx(result["tau"])
    assert order[2:] == ["speculative", "plain", "plain", "speculative", "speculative", "plain"]


def test_faster_plain_dtype_restates_the_ratio(pair, tiny_tokenizer, monkeypatch):
    timing = {"float32": {"tokens_per_second": 10.0}, "bfloat16": {"tokens_per_second": 40.0}}
    monkeypatch.setattr("dspark_hf.evaluation.benchmark.time_plain_dtypes", lambda *_: timing)
    result = run_benchmark(*pair, tiny_tokenizer, PROMPTS[:1], BenchmarkSettings(max_new_tokens=4))
    assert result["plain_dtypes"] == timing
    assert result["ratio"]["fastest_plain_dtype"] == "bfloat16"
    assert result["ratio"]["total_to_fastest_plain"] == pytest.approx(result["ratio"]["total"] / 4)
    assert result["ratio"]["median_to_fastest_plain"] == pytest.approx(result["ratio"]["median"] / 4)


def test_every_slot_is_verified_where_quality_is_measured():
    assert BenchmarkSettings().decoding().policy == "auto"
    assert BenchmarkSettings(tau_only=True).decoding().policy == "fixed"
    assert BenchmarkSettings(policy="lagged").decoding().policy == "lagged"
