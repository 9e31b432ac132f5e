"""generate() through kernels, in Triton's interpreter: it stays exact."""

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from fake_drafters import greedy_oracle
from scripted_drafters import scripted
from tiny_targets import make_prompt, make_target, padded_prompts
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_hf import DSparkModel, SpeculationConfig
from dspark_hf.evaluation import check_sampling
from dspark_hf.ops.dispatch import is_interpreted, kernel_for

pytestmark = [
    pytest.mark.skipif(not is_interpreted(), reason="runs on the CPU"),
    pytest.mark.filterwarnings("ignore:.*(encountered in|All-NaN).*:RuntimeWarning"),
]


FUNCTIONS = {
    "verify": ("verify_argmax", "verify_sampled"), "markov_block": ("markov_block",),
    "row_attention": ("row_attention_kernel",),
}  # fmt: skip


@pytest.fixture
def calls(kernels, monkeypatch):
    """Kernels on, and how often each was launched."""
    counts = dict.fromkeys(FUNCTIONS, 0)

    def counted(name, function):
        def launch(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return launch

    for name, functions in FUNCTIONS.items():
        # Behind its self-check.
        kernel = kernel_for(name, torch.device("cpu"))
        for function in functions:
            monkeypatch.setattr(kernel, function, counted(name, getattr(kernel, function)))
    return counts


def make_drafter(target, **fields):
    torch.manual_seed(1)
    return DSparkModel.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=1, markov_rank=16, block_size=4, num_hidden_layers=1, **fields
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
    assert calls["row_attention"] > 0


def test_every_accepted_length_is_exact(calls):
    target, ids = make_target("llama"), make_prompt(5)
    drafter, plain = greedy_oracle(target, ids, range(5), num_slots=4, max_new_tokens=20)
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=20, do_sample=False)
    assert out.tolist() == plain.tolist() and {0, 1, 2, 3, 4} <= set(drafter.last_stats.accepted_lens)
    assert calls["verify"] > 0


STATIC = {"cache_implementation": "static", "speculation": SpeculationConfig(policy="fixed", num_candidates=4)}


@pytest.mark.parametrize(
    ("family", "num_new"),
    [("llama", 9), *(pytest.param(name, 24, marks=pytest.mark.slow) for name in ("llama", "mistral"))],
)
def test_static_rounds_are_exact(calls, family, num_new):
    target, (ids, mask) = make_target(family), padded_prompts([5, 2])
    drafter, plain = scripted(target, ids, [0, 5, 2, 1, 3, 4], num_new, mask, markov_rank=16)
    out = target.generate(
        ids, attention_mask=mask, assistant_model=drafter, max_new_tokens=num_new, do_sample=False, **STATIC
    )
    assert out.tolist() == plain.tolist()
    assert drafter.last_stats.round_kind == "static" and len(set(drafter.last_stats.accepted_lens)) > 2
    assert all(calls[name] > 0 for name in ("verify", "markov_block", "row_attention"))


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["block", "token"])
def test_static_samples_follow_the_targets_distribution(calls, verification):
    target, ids = make_target(vocab_size=6, initializer_range=0.3), make_prompt(3, vocab_size=6)
    options = {"do_sample": True, "top_k": 0}
    joint = exact_joint(target, ids, 2, **options)
    torch.manual_seed(1)
    drafter = DSparkModel.from_target(target, target_layer_ids=[0, 2], mask_token_id=5, markov_rank=16, block_size=3)
    speculation = SpeculationConfig(policy="fixed", num_candidates=4, verification=verification)
    counts, accepted = sample_joint(
        target, drafter, ids.expand(64, -1), 2, 768, speculation,
        cache_implementation="static", max_new_tokens=3, **options,
    )  # fmt: skip
    assert drafter.last_stats.round_kind == "static" and sum(accepted) > 0.2 * len(accepted)
    assert p_value(counts, joint) > 1e-4 and calls["verify"] > 0 and calls["markov_block"] > 0


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
        vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=None, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    target = LlamaForCausalLM(config).eval()
    speculation = SpeculationConfig(num_candidates=4)
    check = check_sampling(target, make_drafter(target), torch.tensor([[1, 2, 3]]), mode, 512, 64, speculation)
    assert check.p_value > 1e-4 and calls["verify"] > 0 and (calls["markov_block"] > 0) == (mode == "plain")
