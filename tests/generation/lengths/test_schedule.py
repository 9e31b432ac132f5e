"""Decisions of a generation: what pays is drafted, what does not is left out, and options are kept to."""

import numpy as np
import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt

from dspark_hf import PrefixScheduler, PromptLookup, SpeculationConfig, StepCost
from dspark_hf.generation.lengths.schedule import Drafted, Schedule
from dspark_hf.generation.lengths.track_record import TrackRecord

pytestmark = pytest.mark.cost

FLAT = StepCost([1, 512], [1], [[1.0, 1.0001]], [1], [0.1])
DEAR = StepCost([*range(1, 513)], [1], [[1.0 * count for count in range(1, 513)]], [1], [0.1])
GREEDY = {"max_new_tokens": 120, "do_sample": False}


def generated(target, ids, drafter, scheduler, **options):
    speculation = SpeculationConfig(policy=scheduler, prompt_lookup=False)
    out = target.generate(ids, assistant_model=drafter, speculation=speculation, **{**GREEDY, **options})
    return out.tolist(), drafter.last_stats


@pytest.mark.parametrize("batch_size", [1, 3])
def test_drafts_that_cost_nothing_are_all_verified(target, batch_size):
    ids = make_prompt(6, batch_size=batch_size)
    drafter, plain = greedy_oracle(target, ids, [4, 2, 3], max_new_tokens=120)
    out, stats = generated(target, ids, drafter, PrefixScheduler(step_cost=FLAT))
    assert out == plain.tolist() and stats.paused_rounds == 0
    assert [n for n in stats.verified_lens[: 3 * batch_size] if n != 4] == []


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_drafts_that_cannot_pay_are_not_made(target, batch_size):
    """A pass that takes as long for each token: even drafts that all stand win nothing."""
    ids = make_prompt(6, batch_size=batch_size)
    drafter, plain = greedy_oracle(target, ids, [4], max_new_tokens=120)
    out, stats = generated(target, ids, drafter, PrefixScheduler(step_cost=DEAR))
    assert out == plain.tolist() and drafter.offered == []
    # There is no room for drafts in the last round.
    assert stats.paused_rounds == stats.rounds - 1 == 118


def test_another_table_judges_anew(target):
    ids = make_prompt(6)
    drafter, plain = greedy_oracle(target, ids, [4], max_new_tokens=120)
    paused = []
    for cost in (FLAT, DEAR, FLAT, DEAR):
        out, stats = generated(target, ids, drafter, PrefixScheduler(step_cost=cost))
        assert out == plain.tolist()
        paused.append(stats.paused_rounds)
        assert stats.costs == "given"
    assert paused == [0, 118, 0, 118]


def test_slots_that_never_pay_are_not_picked_for_long(target):
    ids = make_prompt(6)
    drafter, plain = greedy_oracle(target, ids, [1], max_new_tokens=120)
    steep = StepCost([1, 2, 3, 64], [1], [[1.0, 1.1, 2.5, 9.0]], [1], [0.05])
    out, stats = generated(target, ids, drafter, PrefixScheduler(step_cost=steep))
    assert out == plain.tolist()
    assert stats.verified_lens[20:50] == [1] * 30 and drafter.offered[30:50] == [2] * 20


def test_whole_blocks_are_tried_at_fixed_intervals(target):
    ids = make_prompt(6)
    drafter, _ = greedy_oracle(target, ids, [1], max_new_tokens=120)
    steep = StepCost([1, 2, 3, 64], [1], [[1.0, 1.1, 2.5, 9.0]], [1], [0.05])
    _, stats = generated(target, ids, drafter, PrefixScheduler(step_cost=steep, probe_interval=10))
    # What a try costs may be followed by a pause.
    drafted = [n for n in stats.verified_lens if n]
    assert [place for place, n in enumerate(drafted[:45]) if n == 4 and place > 8] == [9, 19, 29, 39]


def test_many_rows_get_fewer_drafts(target):
    lens = {}
    linear = StepCost([*range(1, 129)], [1], [[1.0 + 0.05 * count for count in range(128)]], [1], [0.05])
    for batch_size in (1, 12):
        ids = make_prompt(6, batch_size=batch_size)
        drafter, plain = greedy_oracle(target, ids, [4, 0, 2, 1], max_new_tokens=60, uneven=True)
        out, stats = generated(target, ids, drafter, PrefixScheduler(step_cost=linear), max_new_tokens=60)
        assert out == plain.tolist()
        lens[batch_size] = stats.verified_tokens / len(stats.verified_lens)
    assert lens[12] < 0.8 * lens[1]


def test_a_batch_waits_for_its_last_row():
    """Rows that have more to make get drafts before rows that are ahead."""
    schedule, record = Schedule(PrefixScheduler(step_cost=DEAR), DEAR, 4), TrackRecord(4, 3)
    for left, expected in (((100, 60, 60), 0), ((60, 100, 60), 1)):
        schedule.begin(left, 10)
        lens = schedule.cut([Drafted(record, [0, 1, 2], np.full((3, 4), 0.5))], [1, 1, 1])
        assert [row for row, n in enumerate(lens) if n] == [expected]


def test_what_won_at_other_costs_is_asked_again():
    """Of each source on its own: another that was settled at the new costs says nothing of it."""
    record, other = TrackRecord(4, 1), TrackRecord(4, 1)
    schedule, survival = Schedule(PrefixScheduler(), FLAT, 4), np.full((1, 4), 0.9)

    def draft(source, stood):
        schedule.begin([100], 10)
        schedule.learn([Drafted(source, [0], survival)], [4], [4], [stood], [stood])

    for _ in range(8):
        draft(record, 2)
    assert record.account.is_winning and schedule.slots(record, 1) > 0
    schedule.reprice(DEAR)
    draft(other, 0)
    assert record.account.is_winning and schedule.slots(record, 1) == 0


def test_a_batch_that_is_nearly_done_says_nothing_of_the_drafter():
    """Rows that move apart make drafts not worth it with few tokens left; the next call is not to pay for that."""
    cost = StepCost([1, 16, 512], [1], [[1.0, 1.0, 40.0]], [1, 64], [0.2, 0.2])
    record, survival = TrackRecord(2, 8), np.full((8, 2), 0.7)

    def drafts(left, num_rounds):
        schedule, drafted = Schedule(PrefixScheduler(), cost, 2), []
        for _ in range(num_rounds):
            schedule.begin([left] * 8, 10)
            drafted.append(schedule.slots(record, 8) > 0)
            if drafted[-1]:
                schedule.learn([Drafted(record, list(range(8)), survival)], [1] * 8, [1] * 8, [1] * 8, [1] * 8)
        return drafted

    record.settle(0.3, 0.0)
    assert all(drafts(200, 4))
    record.account.settle(-0.5, 0.0)  # Unlucky, and no longer winning.
    assert not any(drafts(2, 3)) and not record.account.has_paused
    assert all(drafts(200, 4))
    record.account.settle(-0.5, 0.0)
    # One round of as many as a pause takes is drafted all the same.
    assert any(drafts(2, 64))


def test_what_a_round_takes_can_be_won_ahead_however_much_it_is():
    dear = StepCost([1, 512], [1], [[1.0, 1.0001]], [1, 64], [2.2, 2.2])
    schedule, record, num_drafted = Schedule(PrefixScheduler(), dear, 4), TrackRecord(4, 16), 0
    for _ in range(200):
        schedule.begin([200] * 16, 10)
        if schedule.slots(record, 16):
            num_drafted += 1
            part = Drafted(record, list(range(16)), np.full((16, 4), 0.9))
            schedule.learn([part], [4] * 16, [4] * 16, [4] * 16, [4] * 16)
    # Behind a pause, since that is more than drafts are taken to win at first.
    assert num_drafted == 200 - 64


def test_rows_in_step_are_decided_together(target):
    ids = make_prompt(6, batch_size=3)
    drafter, plain = greedy_oracle(target, ids, [3, 1, 4], max_new_tokens=60, uneven=True)

    def criterion(input_ids, scores):
        return torch.zeros(len(input_ids), dtype=torch.bool)

    out, stats = generated(
        target, ids, drafter, PrefixScheduler(step_cost=FLAT), max_new_tokens=60, stopping_criteria=[criterion]
    )
    assert out == plain.tolist()
    rounds = np.array(stats.verified_lens).reshape(-1, 3)
    assert (rounds == rounds[:, :1]).all() and rounds.max() > 1


def test_the_other_policies_are_what_they_are_called(target):
    ids, made = make_prompt(6), {}
    for name, scheduler in {
        "fixed": PrefixScheduler("fixed", step_cost=DEAR),
        "early_stop": PrefixScheduler("early_stop", step_cost=DEAR),
        "lagged": PrefixScheduler("lagged", step_cost=DEAR),
        "threshold": PrefixScheduler("threshold", threshold=0.5),
    }.items():
        drafter, plain = greedy_oracle(target, ids, [2], max_new_tokens=40)
        out, stats = generated(target, ids, drafter, scheduler, max_new_tokens=40)
        assert out == plain.tolist() and stats.paused_rounds == 0
        made[name] = stats.verified_lens[:8]
    # The oracle's head is sure of two slots, and a round that was drafted for has paid for its drafts already.
    assert made == {"fixed": [4] * 8, "early_stop": [0] * 8, "lagged": [4, 4, *[2] * 6], "threshold": [2] * 8}


def test_a_sampled_run_of_many_rows_repeats(target, monkeypatch):
    # By the rule of thumb eight rows do not draft on each processor.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
    ids, runs = make_prompt(6, batch_size=8), []
    for _ in range(2):
        torch.manual_seed(5)
        drafter = TableDrafter(64)
        runs.append(target.generate(ids, assistant_model=drafter, max_new_tokens=40, do_sample=True).tolist())
    assert runs[0] == runs[1] and max(drafter.last_stats.verified_lens) > 0


def test_lookup_that_does_not_pay_leaves_rows_to_the_drafter(target):
    ids = make_prompt(6)
    plain = target.generate(ids, **GREEDY)
    lookup = PromptLookup(num_slots=4, min_ngram=1)
    speculation = SpeculationConfig(policy=PrefixScheduler(step_cost=DEAR), prompt_lookup=lookup)
    drafter, _ = greedy_oracle(target, ids, [4], max_new_tokens=120)
    out = target.generate(ids, assistant_model=drafter, speculation=speculation, **GREEDY)
    assert out.tolist() == plain.tolist() and drafter.last_stats.lookup_verifications == 0


def test_no_more_than_asked_for(target):
    ids = make_prompt(6)
    drafter, _ = greedy_oracle(target, ids, [4], max_new_tokens=60)
    speculation = SpeculationConfig(policy=PrefixScheduler(step_cost=FLAT), max_draft_len=2, prompt_lookup=False)
    target.generate(ids, assistant_model=drafter, speculation=speculation, max_new_tokens=60, do_sample=False)
    assert set(drafter.last_stats.verified_lens[:-1]) == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"policy": "clever"},
            "policy must be one of auto, lagged, early_stop, threshold, fixed, or a PrefixScheduler .*, got 'clever'",
        ),
        ({"policy": "threshold"}, 'policy="threshold" needs a threshold above 0'),
        ({"policy": "threshold", "threshold": 1.0}, "threshold must be a number from 0 up to .* 1, got 1.0"),
        ({"min_gain": -0.1}, "min_gain must be a number from 0 up to"),
        ({"probe_interval": 0}, "probe_interval must be a positive int, got 0"),
        (
            {"step_cost": {"tokens": []}},
            "step_cost must be a StepCost, or None, got {'tokens'.* `dspark_hf.*load_cost` reads a file",
        ),
        ({"calibration": [1.0]}, r"calibration must be a Calibration, or None, got \[1.0\]. `Calibration.load` reads"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PrefixScheduler(**options)


def test_a_config_takes_a_name_or_a_scheduler():
    assert SpeculationConfig().scheduler == PrefixScheduler()
    assert SpeculationConfig(policy="lagged").scheduler.policy == "lagged"
    scheduler = PrefixScheduler("threshold", threshold=0.2)
    assert SpeculationConfig(confidence_threshold=0.2).scheduler == scheduler
    assert SpeculationConfig(policy=scheduler).scheduler is scheduler
    with pytest.raises(ValueError, match="policy must be one of .*, got 3"):
        SpeculationConfig(policy=3)
    with pytest.raises(ValueError, match="confidence_threshold=0.2 verifies by a threshold, and policy='fixed' does"):
        SpeculationConfig(policy="fixed", confidence_threshold=0.2)


def test_prompts_in_a_pass_make_drafts_dearer_where_it_is_full():
    """Eight tokens go at once: alone two rows have room for unlikely drafts, beside a prompt they do not."""
    tokens = list(range(1, 65))
    cost = StepCost(tokens, [1], [[1.0 if count <= 8 else 1.0 + count for count in tokens]], [1], [0.0])
    schedule, record = Schedule(PrefixScheduler("auto"), cost, 3), TrackRecord(3, 1)
    survival = np.full((2, 3), 0.05)
    schedule.begin([1, 1], 10)
    assert schedule.cut([Drafted(record, [0, 1], survival)], [3, 3]) == [3, 3]
    schedule.begin([1, 1], 10, num_prompt_tokens=7)
    assert schedule.cut([Drafted(record, [0, 1], survival)], [3, 3]) == [0, 0]


@pytest.mark.parametrize("policy", ["auto", "early_stop", "lagged", "threshold", "fixed"])
def test_where_room_is_short_no_draft_decides_on_itself(policy):
    """What survives behind a slot may be anything: whether it is verified stays, beside other rows too."""
    rng, num_short = np.random.default_rng(0), 0
    # A walk that climbs a second stair for what stands behind row 1's first draft, and is cut down by rank then, would
    # take the third row's in its place.
    stairs = [1.0] * 5 + [1.497] * 5 + [1.975] * 2
    chances, slot, room = np.array([[0.05, 0.6, 0.3], [0.6, 0.3, 0.6], [0.95, 0.95, 0.6]]), 0, 2
    for _ in range(300):
        cost = StepCost(list(range(1, 13)), [1], [list(stairs)], [1], [0.0])
        options = PrefixScheduler(policy, threshold=0.3 * (policy == "threshold"), step_cost=cost)
        likely, found = chances.copy(), []
        likely[1, slot + 1 :] = 0.95
        for survival in (chances.cumprod(1), likely.cumprod(1)):
            schedule = Schedule(options, cost, 3)
            schedule.begin([50] * 3, 10)
            parts = [Drafted(TrackRecord(3, 3), [0, 1, 2], survival)]
            found.append(schedule.cut(parts, [3] * 3, room=room))
        assert (found[0][1] > slot) == (found[1][1] > slot)
        assert max(map(sum, found)) <= room
        num_short += sum(found[0]) == room
        stairs = 1 + np.where(rng.random(12) < 0.35, 0.6 * rng.random(12), 0.0).cumsum()
        chances, slot, room = rng.random((3, 3)) ** 0.5, int(rng.integers(2)), int(rng.integers(1, 9))
    assert num_short > 50
