"""What rounds are taken to cost without a clock: few drafts for each of many rows, and a net that knows the price."""

import random

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt

from dspark_hf import PromptLookup, SpeculationConfig
from dspark_hf.generation.lengths.cost import RoundCost
from dspark_hf.generation.lengths.pace import round_cost
from dspark_hf.generation.lengths.safety import SafetyNet

pytestmark = pytest.mark.cost

CPU, OTHER = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.usefixtures("two_threads")
class TestRoundCost:
    def test_many_rows_get_fewer_drafts(self):
        assert [RoundCost(CPU).limit(6, rows, 100) for rows in (1, 2, 4, 8, 16, 64)] == [6, 6, 4, 2, 1, 1]
        assert [RoundCost(OTHER).limit(6, rows, 100) for rows in (1, 32, 64, 128, 512)] == [6, 6, 4, 2, 1]
        assert RoundCost(CPU, limits_drafts=False).limit(6, 64, 100) == 6

    def test_more_threads_bear_more(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
        assert [RoundCost(CPU).limit(6, rows, 100) for rows in (16, 32, 64)] == [6, 4, 2]

    def test_one_thread_bears_what_two_do(self, monkeypatch):
        # It takes longer for a plain step as well.
        two = [RoundCost(CPU).extra([num_drafts], True) for num_drafts in range(6)]
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert [RoundCost(CPU).extra([num_drafts], True) for num_drafts in range(6)] == two

    def test_rounds_cost_by_their_drafts(self):
        cost = RoundCost(CPU)
        extra = [
            cost.extra([num_drafts] * rows, True) for rows, num_drafts in ((1, 0), (1, 1), (1, 6), (8, 2), (16, 6))
        ]
        assert extra == pytest.approx([0.2, 0.271875, 0.38125, 0.6, 0.6])
        # Without the drafter's pass.
        assert [cost.extra(lens, False) for lens in ([0, 0], [8, 0])] == pytest.approx([0, 0.225])
        assert cost.pays(5)


@pytest.mark.usefixtures("two_threads")
def test_options_that_say_how_many_are_kept_to():
    limits = {}
    for options in ({"max_draft_len": 5}, {"confidence_threshold": 0.1}, {"safety_net": False}, {}):
        limits[*options] = round_cost(SpeculationConfig(**options), CPU).limit(5, 16, 100)
    assert limits == {("max_draft_len",): 5, ("confidence_threshold",): 5, ("safety_net",): 5, (): 1}


def test_rows_that_leave_let_the_others_draft_more(target, two_threads):
    ids, options = make_prompt(6, batch_size=8), {"max_new_tokens": 60, "do_sample": False}
    plain = target.generate(ids, **options)
    # A token that some rows come to, and none at once.
    made = plain[:, 6:]
    num_ends = {token: (made == token).any(1).sum().item() for token in range(64) if token not in made[:, :4]}
    options["eos_token_id"] = next(token for token, num in num_ends.items() if 4 <= num < 8)
    drafter, _ = greedy_oracle(target, ids, [6], max_new_tokens=60, num_slots=6)
    expected = target.generate(ids, **options, pad_token_id=0)
    out = target.generate(ids, assistant_model=drafter, **options, pad_token_id=0)
    assert out.tolist() == expected.tolist()
    assert drafter.offered[0] == 2 and max(drafter.offered) > 2


def test_rows_that_look_up_share_too(target, two_threads):
    # Tiny targets soon repeat themselves.
    lens = {}
    for batch_size in (1, 8):
        lookup = PromptLookup(num_slots=8, min_ngram=1)
        ids = make_prompt(6, batch_size=batch_size)
        target.generate(ids, assistant_model=lookup, max_new_tokens=80, do_sample=False)
        lens[batch_size] = lookup.last_stats.verified_lens
    assert max(lens[1]) == 8
    # No row ends within so many rounds.
    rounds = [lens[8][start : start + 8] for start in range(0, 8 * 8, 8)]
    assert all(sum(drafts) <= 16 for drafts in rounds) and any(sum(drafts) > 4 for drafts in rounds)


def test_a_sampled_run_of_many_rows_repeats(target, two_threads):
    ids, runs = make_prompt(6, batch_size=8), []
    for _ in range(2):
        torch.manual_seed(5)
        drafter = TableDrafter(64)
        runs.append(target.generate(ids, assistant_model=drafter, max_new_tokens=40, do_sample=True).tolist())
    assert runs[0] == runs[1] and max(drafter.last_stats.verified_lens) == 2


def speed(rate, cost_of_pass, cost_of_drafter, num_rows, num_slots=6, num_tokens=256, seed=0):
    """Speed of a made-up generation against plain decoding, where a draft stands with a chance of `rate`.

    Args:
        cost_of_pass: Plain steps that a pass takes, given the drafts of all rows.
        cost_of_drafter: Plain steps that the drafter takes for a block.
    """
    rng, net, cost = random.Random(seed), SafetyNet(), RoundCost(CPU)
    left, total = [num_tokens] * num_rows, 0.0
    while left:
        limit = net.limit(num_slots)
        limit = cost.limit(limit, len(left), max(left)) if limit else 0
        lens = [min(limit, count - 1) for count in left]
        gains = [next((n for n in range(count) if rng.random() >= rate), count) for count in lens]
        total += cost_of_pass(sum(lens)) + cost_of_drafter * (limit > 0)
        net.learn(gains if limit else [], cost.extra(lens, limit > 0))
        left = [count - gain - 1 for count, gain in zip(left, gains, strict=True) if count > gain + 1]
    return num_tokens / total


@pytest.mark.parametrize("num_rows", [1, 4, 16])
@pytest.mark.parametrize("full", [0.1, 0.4, 1.0])
def test_no_drafter_makes_it_much_slower(num_rows, full, two_threads):
    """A pass with 16 drafts takes 1.1 to 2 plain steps."""

    def of_pass(num_drafts):
        return 1 + full * num_drafts / 16

    for drafter in (0.1, 0.25):
        useless = [speed(0.0, of_pass, drafter, num_rows, seed=seed) for seed in range(10)]
        assert min(useless) > 0.95
        if full <= 0.4:
            for rate in (0.1, 0.2, 0.3, 0.4, 0.5):
                speeds = [speed(rate, of_pass, drafter, num_rows, seed=seed) for seed in range(10)]
                assert sum(speeds) / 10 > 0.94


def test_what_pays_is_drafted(two_threads):
    assert speed(0.8, lambda num_drafts: 1 + 0.3 * num_drafts / 16, 0.15, 1) > 2.3
    assert speed(0.6, lambda num_drafts: 1 + 0.3 * num_drafts / 16, 0.15, 16) > 1.05
