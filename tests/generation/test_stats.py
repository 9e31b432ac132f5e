"""Statistics of a generation."""

import time

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt

from dspark_hf import SpeculationConfig, SpeculationStats
from dspark_hf.generation.stats import Stopwatch


def test_empty():
    stats = SpeculationStats()
    assert stats.tau == 0.0 and stats.slot_rates == [] and stats.rest_seconds is None
    assert repr(stats) == "SpeculationStats(tau=0.00, new_tokens=0, rounds=0)"


def test_rates():
    stats = SpeculationStats(rounds=4, new_tokens=10)
    for verified_len, accepted_len, emitted_len in ((3, 0, 1), (3, 2, 3), (3, 3, 4), (1, 1, 2)):
        stats.record(0, verified_len, accepted_len, emitted_len)
    assert stats.tau == 2.5 and stats.verified_tokens == 10
    assert stats.slot_rates == [3 / 4, 2 / 2, 1 / 2]
    assert stats.slot_survival == [3 / 4, 2 / 3, 1 / 3]
    # A round that ended on a draft says nothing about the slots behind it.
    stats.record(0, 3, 1, 1)
    assert stats.slot_rates == [4 / 5, 2 / 2, 1 / 2]
    assert stats.slot_survival == [4 / 5, 2 / 3, 1 / 3]
    assert "tau 2.20 (10 tokens, 4 rounds, 13 drafts verified, 7 accepted)" in stats.summary()
    assert "0.80 1.00 0.50" in stats.summary()


def test_seconds_add_up(target):
    ids = make_prompt(9)
    drafter, _ = greedy_oracle(target, ids, range(5))
    started = time.perf_counter()
    target.generate(ids, assistant_model=drafter, max_new_tokens=40, do_sample=False)
    stats = drafter.last_stats
    assert 0 < stats.prefill_seconds and 0 < stats.drafter_seconds < stats.target_seconds
    parts = stats.prefill_seconds + stats.target_seconds + stats.drafter_seconds + stats.rest_seconds
    assert parts == pytest.approx(stats.total_seconds) and parts < time.perf_counter() - started
    assert "rest" in stats.summary()
    target.generate(
        ids,
        assistant_model=drafter,
        speculation=SpeculationConfig(measure_time=False),
        max_new_tokens=9,
        do_sample=False,
    )
    stats = drafter.last_stats
    assert stats.total_seconds > 0 and stats.target_seconds is None and "rest" not in stats.summary()


def test_device_is_waited_for_only_when_asked(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    for enabled in (False, True):
        stats = SpeculationStats()
        watch = Stopwatch(stats, torch.device("cuda", 0), enabled)
        with watch.part("target"):
            pass
        assert bool(waits) is enabled and (stats.target_seconds is not None) is enabled


def test_rows_of_a_batch(target):
    ids = make_prompt(6, batch_size=3)
    drafter = TableDrafter(64)
    plain = target.generate(ids, max_new_tokens=20, do_sample=False)
    eos = int(plain[1, 6 + 8])
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=20, do_sample=False, eos_token_id=eos)
    assert out.tolist() == target.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=eos).tolist()
    stats = drafter.last_stats
    lengths = [row.index(eos) + 1 if eos in row else len(row) for row in out[:, 6:].tolist()]
    assert stats.new_tokens == sum(lengths)
    for row in range(3):
        assert 1 + sum(n for r, n in zip(stats.row_ids, stats.emitted_lens, strict=True) if r == row) >= lengths[row]
