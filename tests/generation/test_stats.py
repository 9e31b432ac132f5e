"""Statistics of a generation."""

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt

import dspark_hf.generation.stopwatch as stopwatch
from dspark_hf import DSparkModel, SpeculationConfig, SpeculationStats
from dspark_hf.generation.stopwatch import Stopwatch


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


def test_the_drafters_slots_are_told_from_lookups():
    stats = SpeculationStats(rounds=3, new_tokens=7, confidences=[[0.9, 0.2], [], [0.3]])
    for verified_len, accepted_len, emitted_len, looked_up in ((2, 1, 2, False), (4, 4, 5, True), (1, 0, 1, False)):
        stats.record(0, verified_len, accepted_len, emitted_len, looked_up)
    drafted = stats.without_lookup()
    assert drafted.slot_rates == [1 / 2, 0 / 1] and drafted.confidences == [[0.9, 0.2], [0.3]]
    assert (drafted.rounds, drafted.new_tokens, stats.lookup_verifications) == (3, 7, 1)
    assert "all before accepted: 0.50 0.00\nlooked up: 4 drafts in 1 of 3" in stats.summary()
    # Lookup alone has no other slots to tell.
    alone = SpeculationStats(rounds=1, new_tokens=3)
    alone.record(0, 2, 2, 3, from_lookup=True)
    assert "all before accepted: 1.00 1.00" in alone.summary()


def test_reliability():
    stats = SpeculationStats(confidences=[[0.95, 0.85, 0.25], [0.91, 0.05], [0.35, 0.2, 0.1], [], [0.9]])
    for verified_len, accepted_len, emitted_len in ((3, 2, 3), (1, 1, 2), (3, 1, 1), (0, 0, 1), (1, 0, 1)):
        stats.record(0, verified_len, accepted_len, emitted_len)
    # Slots that were judged: the accepted ones and the one after, unless it was not verified or the output ended.
    assert stats.reliability() == [
        {"confidence": 0.25, "accepted": 0.0, "count": 1},
        {"confidence": 0.35, "accepted": 1.0, "count": 1},
        {"confidence": 0.85, "accepted": 1.0, "count": 1},
        {"confidence": pytest.approx((0.95 + 0.91 + 0.9) / 3), "accepted": 2 / 3, "count": 3},
    ]
    assert [one["count"] for one in stats.reliability(num_bins=1)] == [6]
    assert SpeculationStats().reliability() == []


def test_generations_add_up():
    asked = SpeculationStats(rounds=1, new_tokens=3, paused_rounds=1, confidences=[[0.9, 0.2]])
    asked.record(0, 2, 1, 2)
    not_asked = SpeculationStats(rounds=2, new_tokens=5)
    for accepted_len in (2, 0):
        not_asked.record(0, 2, accepted_len, accepted_len + 1, from_lookup=True)
    total = SpeculationStats()
    for part in (not_asked, asked, not_asked):
        total.add(part)
    assert (total.rounds, total.new_tokens, total.paused_rounds) == (5, 13, 1)
    assert total.accepted_lens == [2, 0, 1, 2, 0] and total.tau == 10 / 5
    assert total.from_lookup == [True, True, False, True, True]
    # A generation without a confidence does not move the others' to its own verifications.
    assert total.confidences == [[], [], [0.9, 0.2], [], []]
    assert total.reliability() == asked.reliability() != []
    assert not_asked.confidences == [] and len(asked.verified_lens) == 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_confidences_belong_to_their_verifications(target, batch_size):
    drafter = DSparkModel.from_target(target, target_layer_ids=[0, 2], markov_rank=4, block_size=3)
    seen = []
    drafter.confidence_head.register_forward_hook(lambda module, inputs, output: seen.append(output.sigmoid()))
    ids = make_prompt(9).repeat(batch_size, 1)
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=14, do_sample=True, eos_token_id=[3, 5, 7])
    stats = drafter.last_stats
    assert len(stats.confidences) == len(stats.verified_lens) and out.shape[0] == batch_size
    assert all(len(one) >= verified for one, verified in zip(stats.confidences, stats.verified_lens, strict=True))
    assert stats.confidences[0] == pytest.approx(seen[0][0].tolist())
    assert sum(one["count"] for one in stats.reliability()) <= stats.verified_tokens


def test_no_confidence_head_no_confidences(target):
    drafter, _ = greedy_oracle(target, make_prompt(9), range(5))
    bare = DSparkModel.from_target(target, target_layer_ids=[0], markov_rank=0, enable_confidence_head=False)
    for one in (bare, drafter):
        target.generate(make_prompt(9), assistant_model=one, max_new_tokens=6, do_sample=False)
    assert bare.last_stats.confidences == [] == bare.last_stats.reliability()
    assert drafter.last_stats.confidences


def test_seconds_add_up(target, monkeypatch):
    class Clock:
        """A second passes whenever it is read, and a hundred in each proposal."""

        now = 0.0

        def perf_counter(self):
            self.now += 1
            return self.now

    ids = make_prompt(9)
    drafter, _ = greedy_oracle(target, ids, range(5))
    clock, propose = Clock(), drafter.propose

    def slow(*args, **kwargs):
        clock.now += 100
        return propose(*args, **kwargs)

    monkeypatch.setattr(drafter, "propose", slow)
    monkeypatch.setattr(stopwatch, "time", clock)
    target.generate(ids, assistant_model=drafter, max_new_tokens=40, do_sample=False)
    stats = drafter.last_stats
    assert (stats.prefill_seconds, stats.target_seconds) == (1, stats.rounds)
    assert 100 * len(drafter.offered) < stats.drafter_seconds < 110 * len(drafter.offered)
    parts = stats.prefill_seconds + stats.target_seconds + stats.drafter_seconds + stats.rest_seconds
    assert parts == stats.total_seconds < clock.now and stats.rest_seconds > 0
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
