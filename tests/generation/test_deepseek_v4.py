"""A DeepSeek-V4 target with a drafter of its own shape, which taps its last layer: exact, whatever is accepted."""

from pathlib import Path

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from tiny_targets import make_prompt, make_target
from transformers import AutoModelForCausalLM, DynamicCache

from dspark_hf import AutoDrafter, DSparkModel, SpeculationConfig
from dspark_hf.modeling.cache_name import CACHE_NAME

FOLDER = Path(__file__).parents[1] / "golden" / "v4_dspark"
# Of few tokens, a drafter that knows nothing guesses some.
VOCAB = 6
GREEDY = {"do_sample": False, "repetition_penalty": 1.3, "eos_token_id": None, "pad_token_id": None}
ALONE = SpeculationConfig(policy="fixed", prompt_lookup=False)


@pytest.fixture(scope="module")
def target():
    return make_target("deepseek_v4", vocab_size=VOCAB)


@pytest.fixture(scope="module")
def drafter(target):
    torch.manual_seed(0)
    fields = {"num_hidden_layers": 2, "target_layer_ids": [1, 2, 3], "block_size": 5, "markov_rank": 8}
    return DSparkModel.from_target(target, family="deepseek_v4", **fields).eval()


def prompt(length, num_rows=1, seed=0):
    return make_prompt(length, vocab_size=VOCAB, seed=seed).repeat(num_rows, 1)


@pytest.mark.parametrize(
    ("num_rows", "prompt_len", "num_new", "seed"), [(1, 3, 140, 0), (1, 131, 40, 3), (3, 11, 40, 3)]
)
def test_greedy_output_over_rounds_that_cross_compression_windows(
    target, drafter, num_rows, prompt_len, num_new, seed
):
    ids = prompt(prompt_len, num_rows, seed)
    plain = target.generate(ids, max_new_tokens=num_new, **GREEDY)
    out = target.generate(ids, assistant_model=drafter, speculation=ALONE, max_new_tokens=num_new, **GREEDY)
    assert out.tolist() == plain.tolist()
    accepted = set(drafter.last_stats.accepted_lens)
    assert 0 in accepted and max(accepted) > 0


def test_the_drafter_of_a_whole_checkpoint_reads_its_target():
    # The few entries that the indexer picks among equal ones depend on a pass's shape, with a drafter or without.
    target = AutoModelForCausalLM.from_pretrained(FOLDER, index_topk=64).eval()
    drafter, ids = AutoDrafter.from_pretrained(FOLDER), make_prompt(7, vocab_size=193)
    fields, num_hooks = target.config.to_dict(), sum(len(layer._forward_hooks) for layer in target.model.layers)
    plain = target.generate(ids, max_new_tokens=40, **GREEDY)
    out = target.generate(ids, assistant_model=drafter, speculation=ALONE, max_new_tokens=40, **GREEDY)
    assert out.tolist() == plain.tolist() and target.config.to_dict() == fields
    # Those that are left are transformers' own, one a layer.
    assert sum(len(layer._forward_hooks) for layer in target.model.layers) - num_hooks in (0, 3)


def test_joint_distribution(target, drafter):
    options = {"do_sample": True, "top_k": 0, "pad_token_id": None, "temperature": 0.8}
    ids = prompt(3, num_rows=24)
    joint = exact_joint(target, ids[:1], 2, **options)
    counts, accepted = sample_joint(target, drafter, ids, 2, 240, ALONE, max_new_tokens=3, **options)
    assert {0, 1} <= set(accepted)
    assert p_value(counts, joint) > 1e-6


def test_turns_over_one_cache(target, drafter):
    caches, ids = [DynamicCache(config=target.config) for _ in range(2)], prompt(5)
    for turn, assistant in enumerate((drafter, drafter, None, drafter)):
        plain = target.generate(ids, **{CACHE_NAME: caches[0]}, max_new_tokens=13, **GREEDY)
        out = target.generate(ids, **{CACHE_NAME: caches[1]}, assistant_model=assistant, max_new_tokens=13,
                              **({"speculation": ALONE} if assistant else {}), **GREEDY)  # fmt: skip
        assert out.tolist() == plain.tolist() and caches[1].get_seq_length() == out.shape[1] - 1
        ids = torch.cat([out, prompt(4, seed=turn)], 1)
