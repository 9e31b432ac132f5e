"""Static rounds on whatever device there is: these tests say on a GPU what the others cannot."""

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from scripted_drafters import scripted
from tiny_targets import make_prompt, make_target, padded_prompts

from dspark_hf import DSparkModel, Eagle3Model, SpeculationConfig
from dspark_hf.generation.static import runner

HAS_GPU = torch.cuda.is_available()
FIXED = SpeculationConfig(policy="fixed", static=True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not HAS_GPU:
        pytest.skip("There is no GPU.")
    return torch.device(request.param)


def run(target, lengths, speculation, num_new=40, pattern=(0, 5, 2, 1, 3, 4), calls=2):
    """Stats of calls one after the other, whose tokens are plain ones."""
    ids, mask = (tensor.to(target.device) for tensor in padded_prompts(lengths))
    drafter, plain = scripted(target, ids, pattern, num_new, mask)
    stats = []
    for _ in range(calls):
        drafter.num_rounds.zero_()
        options = {"attention_mask": mask, "assistant_model": drafter, "speculation": speculation, "do_sample": False}
        assert target.generate(ids, **options, max_new_tokens=num_new).tolist() == plain.tolist()
        stats.append(drafter.last_stats)
    return stats


@pytest.mark.parametrize("lengths", [[7], [5, 14, 2, 9]], ids=["one", "four"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_tokens_are_plain_ones(device, family, lengths):
    target = make_target(family).to(device)
    first, second = run(target, lengths, FIXED)
    assert first.round_kind == second.round_kind == "static"
    assert first.accepted_lens == second.accepted_lens and set(first.accepted_lens) == set(range(6))
    assert first.host_reads == first.rounds + 2
    # Captured once; what runs twice in a call is captured in it.
    assert (first.graphs > 0) == (device.type == "cuda")
    assert second.graphs <= len(second.buckets) - (device.type == "cuda")
    runner.release(target)


@pytest.mark.parametrize("source", ["eagle3", "lookup"])
def test_other_sources(device, source):
    # Texts of few tokens repeat themselves.
    target = make_target(vocab_size=8).to(device)
    ids = make_prompt(6, vocab_size=8).repeat(2, 3).to(device)
    if source == "eagle3":
        drafter = Eagle3Model.from_target(target, target_layer_ids=[0, 2], ttt_length=4).to(device)
    else:
        drafter = DSparkModel.from_target(target, target_layer_ids=[0, 2], mask_token_id=7, markov_rank=8).to(device)
    speculation = SpeculationConfig(static=True, prompt_lookup=source == "lookup")
    plain = target.generate(ids, do_sample=False, max_new_tokens=40)
    for _ in range(2):
        options = {"assistant_model": drafter, "speculation": speculation, "do_sample": False, "max_new_tokens": 40}
        assert target.generate(ids, **options).tolist() == plain.tolist()
        assert drafter.last_stats.round_kind == "static"
    assert any(drafter.last_stats.from_lookup) == (source == "lookup")


def test_by_itself(device):
    (stats,) = run(make_target().to(device), [5, 14], SpeculationConfig(policy="fixed", static="auto"), calls=1)
    assert stats.round_kind == ("static" if device.type == "cuda" else "ragged")
    assert (stats.why_ragged is None) == (device.type == "cuda")


@pytest.mark.parametrize("verification", ["block", "token"])
def test_drawn_tokens_follow_the_target(device, verification):
    target = make_target(vocab_size=6, initializer_range=0.3)
    ids = make_prompt(3, vocab_size=6)
    joint = exact_joint(target, ids, 2, do_sample=True, top_k=0)
    target, ids = target.to(device), ids.to(device)
    torch.manual_seed(1)
    drafter = DSparkModel.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=5, markov_rank=8, block_size=4
    ).to(device)
    speculation = SpeculationConfig(policy="fixed", static=True, verification=verification)
    # Most of these calls replay what the first ones captured.
    counts, accepted = sample_joint(
        target, drafter, ids.expand(64, -1), 2, 1024, speculation, do_sample=True, top_k=0, max_new_tokens=3
    )
    assert drafter.last_stats.round_kind == "static" and sum(accepted) > 0
    assert p_value(counts, joint) > 1e-3
