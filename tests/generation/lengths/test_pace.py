"""The clock's part in drafting: what rounds cost, how many drafts pay, and never much slower than plain decoding."""

import random
import time

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt

from dspark_hf import SpeculationConfig
from dspark_hf.generation.lengths.cost import RoundCost
from dspark_hf.generation.lengths.pace import Pace, round_cost
from dspark_hf.generation.lengths.safety import SafetyNet
from dspark_hf.generation.target.flat import FlatRunner

pytestmark = pytest.mark.cost

CPU = torch.device("cpu")


def timed(plain=1.0, drafted=(), num_rows=1):
    """A pace that has seen a plain step and drafted rounds, `(drafts, seconds)` each."""
    pace = Pace(CPU)
    pace.note([3] * num_rows, 100.0)
    for num_drafts, seconds in [(0, plain), *drafted]:
        pace.note([num_drafts] * num_rows, seconds)
    return pace


class TestPace:
    def test_costs_are_ratios_to_a_plain_step(self):
        pace = timed(plain=2.0, drafted=[(2, 3.0), (4, 5.0)])
        assert [pace.cost(count) for count in range(6)] == [1.0, 1.25, 1.5, 2.0, 2.5, 2.6875]

    def test_the_first_round_does_not_count(self):
        pace = Pace(CPU)
        pace.note([0], 9.0)
        pace.note([1], 2.0)
        assert pace.cost(1) is None
        pace.note([0], 1.0)
        assert pace.cost(1) == 2.0

    def test_of_several_times_the_shortest_counts(self):
        assert timed(plain=3.0, drafted=[(0, 1.0), (5, 2.0), (5, 1.5), (5, 9.0)]).cost(5) == 1.5
        # But not for ever.
        assert timed(drafted=[(5, 1.5)] + 4 * [(5, 2.0)]).cost(5) == 2.0
        # A drafted round never takes less than a plain one.
        assert timed(drafted=[(5, 0.5)]).cost(5) == 1.0

    def test_fewer_rows_are_timed_anew(self):
        pace = timed(drafted=[(2, 3.0)], num_rows=10)
        pace.note([2] * 8, 3.0)
        assert pace.cost(2) == 3.0
        pace.note([2] * 6, 1.2)
        assert pace.cost(2) is None
        pace.note([0] * 6, 0.6)
        assert pace.cost(2) == 2.0

    def test_it_drafts_what_makes_most_tokens_in_a_step(self):
        # Next to nothing for another draft, a whole step for another draft, and a drafter that takes a step itself.
        for costs, expected in (([1.2, 1.21, 1.22, 1.23], 4), ([1.3, 2.3, 3.3, 4.3], 1), ([2.0, 2.1, 2.2, 2.3], 4)):
            pace = timed(drafted=list(enumerate(costs, 1)))
            pace.learn([4] * 20, [1, 4] * 10)
            assert pace.limit(4, 1, 100) == expected

    def test_what_pays_depends_on_how_much_stands(self):
        pace = timed(drafted=[(1, 1.3), (4, 1.6)])
        assert pace.pays(4)
        for _ in range(60):
            pace.learn([4], [0])
        assert not pace.pays(4)
        for _ in range(30):
            pace.learn([4], [1])
        assert pace.pays(4)

    def test_it_measures_plain_steps_early_and_rarely(self):
        pace, limits = Pace(CPU), []
        for left in range(600, 300, -1):
            limits.append(pace.limit(5, 1, left))
            pace.note([limits[-1]], 1.2 if limits[-1] else 1.0)
            pace.learn([5], [5])
        assert [place for place, limit in enumerate(limits) if limit == 0] == [2, 11, 140, 269]

    def test_nothing_is_measured_where_little_is_left(self):
        pace = Pace(CPU)
        for _ in range(20):
            assert pace.limit(5, 1, 20) == 5
            pace.note([5], 1.0)

    def test_a_batch_starts_with_few_drafts(self):
        assert [Pace(CPU).limit(5, num_rows, 100) for num_rows in (1, 2, 4, 32)] == [5, 2, 1, 1]

    def test_what_is_not_known_is_estimated(self):
        pace = Pace(CPU)
        assert pace.extra([3, 1], True) == RoundCost(CPU).extra([3, 1], True) > 0
        pace = timed(drafted=[(1, 1.2), (3, 1.5)])
        assert pace.extra([3, 1], True) == 0.5
        # All drafts were dropped, and the drafter has run.
        assert pace.extra([0, 0], True) == pytest.approx(0.2) and pace.extra([0, 0], False) == 0


def ratio_to_plain(fixed, drafter, rate, num_rows, num_tokens, num_slots=5, seed=0):
    """Speed of a made-up generation, where a plain step of all rows takes 1.

    Args:
        fixed: Part of that which does not depend on the number of tokens.
        drafter: What the drafter takes for all rows.
        rate: Chance that a draft stands.
    """
    rng, net, pace = random.Random(seed), SafetyNet(), Pace(CPU)
    left, total = [num_tokens] * num_rows, 0.0
    while left:
        limit = net.limit(num_slots)
        limit = pace.limit(limit, len(left), max(left)) if limit else 0
        lens = [min(limit, count - 1) for count in left]
        gains = [next((n for n in range(count) if rng.random() >= rate), count) for count in lens]
        share = len(left) / num_rows
        seconds = fixed + share * ((1 - fixed) * (max(lens) + 1) + drafter * (limit > 0))
        total += seconds
        pace.note(lens, seconds)
        extra = pace.extra(lens, limit > 0)
        if limit:
            pace.learn(lens, gains)
        net.learn(gains if limit else [], extra, pace.pays(num_slots))
        left = [count - gain - 1 for count, gain in zip(left, gains, strict=True) if count > gain + 1]
    return num_tokens / total


@pytest.mark.parametrize("num_rows", [1, 4, 16, 32])
@pytest.mark.parametrize("fixed", [1.0, 0.9, 0.75, 0.5])
@pytest.mark.parametrize("drafter", [0.05, 0.2, 0.5])
def test_plain_decoding_is_never_much_faster(num_rows, fixed, drafter):
    """From memory-bound to half compute-bound: five drafts make a round cost 1.05 to 4 plain steps."""
    for rate in (0.0, 0.3, 0.5, 0.8):
        ratios = [ratio_to_plain(fixed, drafter, rate, num_rows, 256, seed=seed) for seed in range(5)]
        assert sum(ratios) / 5 > 0.95 and min(ratios) > 0.9


def test_what_pays_is_drafted():
    assert ratio_to_plain(1.0, 0.2, 0.8, 1, 256) > 2.4
    assert ratio_to_plain(0.9, 0.2, 0.8, 16, 256) > 1.6
    # Three drafts make 2.35 tokens in 1.8 steps here, five 2.64 in 2.4.
    assert ratio_to_plain(0.8, 0.2, 0.65, 1, 256) > 1.15


class Clock:
    """A clock that only passes move on."""

    def __init__(self, monkeypatch, cost):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        verify = FlatRunner.verify

        def timed_verify(runner, ids, lens, draft_lens):
            self.now += cost(max(draft_lens))
            return verify(runner, ids, lens, draft_lens)

        monkeypatch.setattr(FlatRunner, "verify", timed_verify)


@pytest.mark.parametrize("options", [{}, {"cost_aware": True}])
def test_rounds_that_do_not_pay_are_left_out(target, monkeypatch, options):
    ids = make_prompt(6)
    drafter, plain = greedy_oracle(target, ids, [0, 1], max_new_tokens=120)
    clock = Clock(monkeypatch, lambda num_drafts: 1.0 + 0.9 * num_drafts)
    speculation = SpeculationConfig(**options)
    out = target.generate(ids, assistant_model=drafter, speculation=speculation, max_new_tokens=120, do_sample=False)
    assert out.tolist() == plain.tolist() and drafter.anchors_were_right
    stats = drafter.last_stats
    if not options:
        assert stats.paused_rounds == 0 and clock.now > 300
    else:
        assert stats.paused_rounds > 50 and clock.now < 135
        # Where it is measured, nothing is paused.
        assert stats.rounds > stats.paused_rounds + len(drafter.offered)


def test_cheap_rounds_are_drafted(target, monkeypatch):
    ids = make_prompt(6, batch_size=3)
    drafter, plain = greedy_oracle(target, ids, [1, 3, 2], max_new_tokens=120, uneven=True)
    Clock(monkeypatch, lambda num_drafts: 1.0 + 0.05 * num_drafts)
    speculation = SpeculationConfig(cost_aware=True)
    out = target.generate(ids, assistant_model=drafter, speculation=speculation, max_new_tokens=120, do_sample=False)
    assert out.tolist() == plain.tolist() and drafter.anchors_were_right
    assert drafter.last_stats.paused_rounds == 0 and drafter.last_stats.tau > 2.5


def test_sampled_runs_repeat_whatever_the_time(target, monkeypatch):
    ids = make_prompt(6)
    runs = []
    for seconds in (0.1, 3.0):
        with monkeypatch.context() as patch:
            Clock(patch, lambda num_drafts, seconds=seconds: 1.0 + seconds * num_drafts)
            torch.manual_seed(5)
            drafter = TableDrafter(64)
            runs.append(target.generate(ids, assistant_model=drafter, max_new_tokens=60, do_sample=True).tolist())
    assert runs[0] == runs[1]


def test_without_a_net_there_is_no_clock():
    assert type(round_cost(SpeculationConfig(), CPU)) is RoundCost
    assert type(round_cost(SpeculationConfig(cost_aware=True), CPU)) is Pace
    with pytest.raises(ValueError, match="cost_aware=True .* safety_net=False takes the net away"):
        SpeculationConfig(safety_net=False, cost_aware=True)


def test_processes_that_share_a_target_have_no_clock(target, monkeypatch):
    monkeypatch.setattr("dspark_hf.generation.checks._num_processes", lambda: 2)
    ids = make_prompt(4)
    drafter, _ = greedy_oracle(target, ids, [1], max_new_tokens=4)
    with pytest.raises(ValueError, match="cost_aware=True lets the clock decide .* the 2 processes"):
        target.generate(ids, assistant_model=drafter, speculation=SpeculationConfig(cost_aware=True))
