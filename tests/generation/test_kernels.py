"""generate() through kernels, in Triton's interpreter: it stays exact."""

import pytest
import torch
from fake_drafters import greedy_oracle
from tiny_targets import make_prompt, make_target, padded_prompts
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_hf import DSparkModel, SpeculationConfig
from dspark_hf.evaluation import check_sampling
from dspark_hf.ops.dispatch import KERNELS, is_interpreted

pytestmark = [
    pytest.mark.skipif(not is_interpreted(), reason="runs on the CPU"),
    pytest.mark.filterwarnings("ignore:.*(encountered in|All-NaN).*:RuntimeWarning"),
]


@pytest.fixture
def calls(monkeypatch):
    """Kernels on, and how often each was taken."""
    pytest.importorskip("triton")
    from dspark_hf.ops import dispatch

    counts, kernel_of = dict.fromkeys(KERNELS, 0), dispatch._kernel

    def counted(name):
        counts[name] += 1
        return kernel_of(name)

    monkeypatch.setenv("DSPARK_HF_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "_kernel", counted)
    return counts


def make_drafter(target, **fields):
    torch.manual_seed(1)
    return DSparkModel.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=1, markov_rank=8, block_size=4, num_hidden_layers=1, **fields
    )


def test_greedy_ids_are_those_of_plain_generate(calls, monkeypatch):
    target = make_target("llama")
    drafter, (ids, mask) = make_drafter(target), padded_prompts([5, 9])
    inputs = {"input_ids": ids, "attention_mask": mask}
    options = {"max_new_tokens": 8, "do_sample": False}
    speculation = SpeculationConfig(num_candidates=16)
    monkeypatch.setenv("DSPARK_HF_KERNELS", "torch")
    expected = target.generate(**inputs, **options)
    monkeypatch.setenv("DSPARK_HF_KERNELS", "triton")
    out = target.generate(**inputs, **options, assistant_model=drafter, speculation=speculation)
    assert out.tolist() == expected.tolist()
    # The first token is judged without a draft, and the last may be.
    assert calls["verify"] == drafter.last_stats.rounds + 1 and 0 < calls["markov_block"] <= drafter.last_stats.rounds


def test_every_accepted_length_is_exact(calls):
    target, ids = make_target("llama"), make_prompt(5)
    drafter, plain = greedy_oracle(target, ids, range(5), num_slots=4, max_new_tokens=20)
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=20, do_sample=False)
    assert out.tolist() == plain.tolist() and {0, 1, 2, 3, 4} <= set(drafter.last_stats.accepted_lens)
    assert calls["verify"] > 0


def test_a_seed_gives_the_same_draws_again(calls):
    target = make_target("llama")
    drafter, (ids, mask) = make_drafter(target), padded_prompts([5, 9])
    inputs = {"input_ids": ids, "attention_mask": mask}
    options = {"max_new_tokens": 4, "do_sample": True, "top_k": 0, "assistant_model": drafter}
    once, again, other = (
        target.generate(**inputs, **options, speculation=SpeculationConfig(seed=seed, num_candidates=16))
        for seed in (3, 3, 4)
    )
    assert once.tolist() == again.tolist() != other.tolist()
    assert calls["verify"] > 0 and calls["markov_block"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "warpers"])
def test_samples_follow_the_targets_distribution(calls, mode):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=None, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    target = LlamaForCausalLM(config).eval()
    speculation = SpeculationConfig(num_candidates=4)
    check = check_sampling(target, make_drafter(target), torch.tensor([[1, 2, 3]]), mode, 512, 64, speculation)
    assert check.p_value > 1e-4 and calls["verify"] > 0 and (calls["markov_block"] > 0) == (mode == "plain")
