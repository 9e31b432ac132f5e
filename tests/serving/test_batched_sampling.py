"""Tokens of many requests at once follow the target's distribution, whatever was drafted and cut."""

import copy

import numpy as np
import pytest
import torch
from distributions import exact_joint, p_value
from knowing import small_batching
from tiny_targets import make_target

from dspark_hf import DSparkModel, PrefixScheduler, SpeculationConfig

VOCAB_SIZE, NUM_TOKENS = 5, 3


def make_pair():
    target = make_target(vocab_size=VOCAB_SIZE, initializer_range=0.3)
    torch.manual_seed(3)
    drafter = DSparkModel.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=1, markov_rank=4, block_size=3, initializer_range=0.3
    )
    return target, drafter.eval()


def counts_of(target, drafter, prompt, num_samples, speculation, **options):
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=True, eos_token_id=-1, **options)
    batching = small_batching(num_blocks=200, max_batch_tokens=256, max_requests_per_batch=64)
    out = target.generate_batch(
        [prompt] * num_samples, config, batching, assistant_model=drafter, speculation=speculation,
        max_new_tokens=NUM_TOKENS,
    )  # fmt: skip
    counts = np.zeros((VOCAB_SIZE,) * NUM_TOKENS)
    for one in out.values():
        counts[tuple(one.generated_tokens)] += 1
    assert counts.sum() == num_samples
    return counts


@pytest.mark.cost
@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("fixed", {}),
        ("auto", {"temperature": 0.6}),
        ("threshold", {"top_k": 3, "temperature": 1.5}),
        ("fixed", {"min_p": 0.1, "suppress_tokens": [2]}),
    ],
    ids=str,
)
def test_joint_distribution(policy, options):
    target, drafter = make_pair()
    prompt = [3, 1, 4, 2]
    threshold = 0.3 if policy == "threshold" else 0.0
    speculation = SpeculationConfig(policy=PrefixScheduler(policy, threshold=threshold, probe_interval=2), seed=7)
    counts = counts_of(target, drafter, prompt, 1500, speculation, **options)
    joint = exact_joint(target, torch.tensor([prompt]), NUM_TOKENS, do_sample=True, **options)
    assert p_value(counts, joint) > 1e-3
    stats = drafter.last_stats
    assert 0 < stats.accepted_tokens < stats.verified_tokens


def test_a_wrong_judge_is_found(monkeypatch):
    """One that takes every draft."""
    from dspark_hf.generation.tokens import sampling

    def accept_all(draft_ids, candidates, scores, lengths=None, generator=None, verification="block"):
        lengths = torch.full((len(draft_ids),), draft_ids.shape[1]) if lengths is None else lengths
        rows = torch.arange(len(draft_ids))
        return lengths, torch.multinomial(scores[rows, lengths].softmax(-1), 1).squeeze(1)

    monkeypatch.setattr(sampling, "verify_sampled", accept_all)
    target, drafter = make_pair()
    prompt = [3, 1, 4, 2]
    counts = counts_of(target, drafter, prompt, 1500, SpeculationConfig(policy="fixed"))
    assert p_value(counts, exact_joint(target, torch.tensor([prompt]), NUM_TOKENS, do_sample=True)) < 1e-6


def answers_with_seeds(pair, prompts, seeds, speculation, strangers=0):
    """Answers to requests with seeds, and how many drafts stood."""
    target, drafter = pair
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=True, eos_token_id=-1)
    manager = target.init_continuous_batching(
        config, small_batching(num_blocks=200), assistant_model=drafter, speculation=speculation
    )
    manager.start()
    for number in range(strangers):
        manager.add_request([1 + number % 4] * (2 + number), f"s{number}", max_new_tokens=7)
    for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        manager.add_request(prompt, f"r{number}", max_new_tokens=12, seed=seed, temperature=0.8)
    results = {}
    while len(results) < len(prompts) + strangers:
        out = manager.get_result(timeout=20)
        results[out.request_id] = out.generated_tokens
    manager.stop(block=True, timeout=10)
    return [results[f"r{number}"] for number in range(len(prompts))], manager.stats


def test_a_seed_repeats_an_answer_in_any_company():
    pair = make_pair()
    prompts, seeds = [[3, 1, 4, 2]] * 4 + [[1, 2]] * 2, [5, 5, 6, -1, 5, 7]
    alone, stats = answers_with_seeds(pair, prompts, seeds, SpeculationConfig(policy="fixed"))
    assert alone[0] == alone[1] and len({tuple(answer) for answer in alone[1:4]}) == 3
    assert 0 < stats.accepted_tokens < stats.verified_tokens
    other = SpeculationConfig(policy="fixed", max_draft_len=1)
    assert answers_with_seeds(pair, prompts, seeds, other, strangers=5)[0] == alone


def test_joint_distribution_of_requests_with_seeds():
    target, drafter = make_pair()
    prompt, num_samples = [3, 1, 4, 2], 1500
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=True, eos_token_id=-1)
    manager = target.init_continuous_batching(
        config, small_batching(num_blocks=200, max_batch_tokens=256, max_requests_per_batch=64),
        assistant_model=drafter, speculation=SpeculationConfig(policy="fixed"),
    )  # fmt: skip
    manager.start()
    for seed in range(num_samples):
        manager.add_request(prompt, f"r{seed}", max_new_tokens=NUM_TOKENS, seed=seed, top_k=4)
    counts = np.zeros((VOCAB_SIZE,) * NUM_TOKENS)
    for _ in range(num_samples):
        counts[tuple(manager.get_result(timeout=20).generated_tokens)] += 1
    manager.stop(block=True, timeout=10)
    joint = exact_joint(target, torch.tensor([prompt]), NUM_TOKENS, do_sample=True, top_k=4)
    assert p_value(counts, joint) > 1e-3
    assert 0 < manager.stats.accepted_tokens < manager.stats.verified_tokens
