"""The scheduler of a batch goes by what its steps take, unless it is told what they cost, or must repeat."""

import pytest
from knowing import knowing_drafter, plain_answer, small_batching
from test_batching import greedy_config
from tiny_targets import make_target

from dspark_hf import PrefixScheduler, SpeculationConfig, StepCost
from dspark_hf.generation.lengths.cost_log import CostLog
from dspark_hf.serving.step_costs import BatchCosts

GIVEN = StepCost([1, 64], [1], [[1.0, 1.1]], [1, 64], [0.1, 0.1])


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Logs of this test's own, which count as outside of tests."""
    monkeypatch.setattr(CostLog, "_logs", {})
    monkeypatch.setattr("dspark_hf.generation.lengths.cost_log._LEAST_LEFT", 48)
    monkeypatch.setattr("dspark_hf.generation.lengths.cost_log._MIN_TIMES", 3)


@pytest.fixture(scope="module")
def pair():
    target = make_target()
    return target, knowing_drafter(target)


def note(costs, num_steps, seconds):
    """Steps of four requests, some of them plain ones."""
    changed = []
    for number in range(num_steps):
        num_drafts = 0 if costs.wants_plain(4, 100) else 8 + number % 2
        changed.append(costs.note(4, 4 + num_drafts, 50, seconds * (1 + num_drafts), 0.01 if num_drafts else None))
    return changed


def test_steps_correct_the_table(pair):
    costs = BatchCosts(*pair, SpeculationConfig())
    changed = note(costs, 64, 0.1)
    assert [place for place, one in enumerate(changed) if one] == [31, 63]
    # A pass over a token more takes as long as a whole pass over four.
    verify = costs.table.verify(13, 50)
    assert verify[12] / verify[4] == pytest.approx(9.0, rel=0.01) and verify[13] / verify[4] == pytest.approx(10.0)
    # Others of the process know it from the start.
    assert BatchCosts(*pair, SpeculationConfig()).table == costs.table


def test_plain_steps_are_few(pair):
    costs = BatchCosts(*pair, SpeculationConfig())
    plain = []
    for number in range(1000):
        # Requests come and go.
        num_rows = 5 + number % 4
        is_plain = costs.wants_plain(num_rows, 100)
        costs.note(num_rows, num_rows * (1 if is_plain else 3), 50, 0.1, None if is_plain else 0.01)
        plain.append(is_plain)
    assert 3 <= sum(plain) < 15


@pytest.mark.parametrize(
    "speculation",
    [SpeculationConfig(policy=PrefixScheduler(step_cost=GIVEN)), SpeculationConfig(seed=1),
     SpeculationConfig(policy="lagged")],
    ids=["a table", "a seed", "a policy"],
)  # fmt: skip
def test_nothing_looks_at_the_clock(pair, speculation):
    costs = BatchCosts(*pair, speculation)
    table = costs.table
    assert not any(note(costs, 64, 0.1)) and costs.table is table


def test_a_table_of_another_place_is_refused(pair):
    cost = StepCost([1], [1], [[1.0]], [1], [0.1], {"device": "cuda"})
    with pytest.raises(ValueError, match="This step cost holds for something else"):
        BatchCosts(*pair, SpeculationConfig(policy=PrefixScheduler(step_cost=cost)))


@pytest.mark.cost
def test_drafting_pauses_where_steps_are_dear(monkeypatch):
    """By the clock, whatever the table says."""
    target = make_target()
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    answers = [plain_answer(target, prompt, 80) for prompt in prompts]
    drafter = knowing_drafter(target, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    whole = BatchCosts.note

    def dear(self, num_rows, num_tokens, context_len, seconds, draft):
        return whole(self, num_rows, num_tokens, context_len, 0.001 * num_tokens**2, draft)

    monkeypatch.setattr(BatchCosts, "note", dear)
    paused = []
    for _ in range(2):
        out = target.generate_batch(
            prompts, greedy_config(target, max_new_tokens=80), small_batching(num_blocks=200), assistant_model=drafter
        )
        assert [one.generated_tokens for one in out.values()] == answers
        paused.append(drafter.last_stats.paused_rounds / drafter.last_stats.rounds)
    assert paused[0] < paused[1] and paused[1] > 0.5
