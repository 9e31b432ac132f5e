"""A replay decides as generate() does, and its sums are those of the table."""

import pytest
import torch
from transformers import LlamaForCausalLM

from dspark_hf import AutoDrafter, PrefixScheduler, SpeculationConfig, StepCost
from dspark_hf.evaluation.lengths.block_records import BlockRecord, record_blocks
from dspark_hf.evaluation.lengths.replay import replay

pytestmark = pytest.mark.cost

COST = StepCost([1, 2, 4, 64], [1], [[1.0, 1.1, 1.3, 9.0]], [1], [0.2])


@pytest.mark.parametrize("policy", ["auto", "early_stop", "lagged", "fixed"])
def test_a_replay_is_what_generate_does(policy, tiny_target_dir, tiny_drafter_dir):
    target = LlamaForCausalLM.from_pretrained(tiny_target_dir).eval()
    drafter = AutoDrafter.from_pretrained(tiny_drafter_dir).bind(target)
    options = {"do_sample": False, "pad_token_id": 256, "max_new_tokens": 60, "min_new_tokens": 60}
    scheduler = PrefixScheduler(policy, step_cost=COST)
    for prompt in ([10, 20, 30], [7, 77, 7]):
        ids = torch.tensor([prompt])
        answer = target.generate(ids, **options, speculation=False)[0, 3:].tolist()
        # A seed lets the call start anew.
        speculation = SpeculationConfig(policy=scheduler, prompt_lookup=False, seed=1)
        target.generate(ids, assistant_model=drafter, speculation=speculation, **options)
        stats = drafter.last_stats
        run = replay([record_blocks(target, drafter, prompt, answer, 0.0)], 1, scheduler, COST)
        assert (run.rounds, run.verified_tokens, run.emitted_tokens) == (stats.rounds, stats.verified_tokens, 59)
        assert run.accepted_tokens == sum(stats.accepted_lens)


def test_sums_are_those_of_the_table():
    # Every block stands whole: four drafts and the target's own token, twice.
    record = BlockRecord([4] * 10, [4] * 10, [[0.9] * 4] * 10)
    run = replay([record], 1, PrefixScheduler("fixed"), COST)
    assert (run.rounds, run.emitted_tokens, run.verified_tokens, run.tau) == (2, 10, 8, 5.0)
    assert run.plain_seconds == pytest.approx(10.0) and run.seconds == pytest.approx(2 * (9.0 + 0.2))
    # Two rows share a pass.
    run = replay([record, record], 2, PrefixScheduler("fixed"), COST, 1)
    assert (run.rounds, run.verifications, run.verified_tokens) == (5, 10, 10)
    assert run.plain_seconds == pytest.approx(10 * 1.1) and run.seconds == pytest.approx(5 * (1.3 + 0.4))


def test_answers_are_repeated_where_a_batch_has_more_rows():
    record = BlockRecord([0] * 3, [2] * 3, [[0.5] * 2] * 3)
    run = replay([record], 4, PrefixScheduler("fixed"), COST)
    assert run.verifications == 12 and run.speed < 1
