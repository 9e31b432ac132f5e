"""Where the drafts of static rounds come from besides a block drafter: lookup on the host, and EAGLE-3."""

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from scripted_drafters import scripted
from tiny_targets import make_prompt, make_target, padded_prompts

from dspark_hf import DSparkModel, Eagle3Model, PromptLookup, SpeculationConfig
from dspark_hf.generation.static import runner

GREEDY = {"do_sample": False, "max_new_tokens": 40}
STATIC = {"cache_implementation": "static"}


@pytest.fixture(scope="module")
def small_target():
    """Texts of few tokens repeat themselves."""
    return make_target(vocab_size=8)


def looping(length, copies=3, seed=0):
    return make_prompt(length, seed=seed, vocab_size=8).repeat(1, copies)


def make_eagle(target):
    torch.manual_seed(1)
    return Eagle3Model.from_target(target, target_layer_ids=[0, 2], ttt_length=4)


@pytest.mark.parametrize("asked", [True, PromptLookup(num_slots=3), PromptLookup(num_slots=12, min_ngram=1)])
def test_lookup_beside_a_drafter(small_target, asked):
    ids = looping(6)
    drafter, plain = scripted(small_target, ids, [2, 5, 0], 40, mask_token_id=7)
    options = {"assistant_model": drafter, **GREEDY}
    speculation = SpeculationConfig(policy="fixed", prompt_lookup=asked)
    assert small_target.generate(ids, **options, **STATIC, speculation=speculation).tolist() == plain.tolist()
    stats = drafter.last_stats
    assert stats.round_kind == "static"
    assert 0 < stats.lookup_verifications < len(stats.from_lookup) and sum(stats.accepted_lens) > 0
    # Blocks that nobody needed before a lookup ended are drafted in a launch of their own.
    assert stats.host_reads <= 2 * stats.rounds + 2
    # A round never offers more than the drafter's block.
    assert max(stats.verified_lens) <= 5


def test_lookup_and_drafts_in_uneven_rows(target):
    ids, mask = padded_prompts([5, 14, 2, 9, 11])
    ids = torch.cat([ids, ids], 1)
    mask = torch.cat([mask, mask], 1)
    drafter, plain = scripted(target, ids, [0, 5, 2, 1], 40, mask)
    speculation = SpeculationConfig(policy="fixed", prompt_lookup=PromptLookup(min_ngram=1))
    options = {"attention_mask": mask, "assistant_model": drafter, "speculation": speculation}
    assert target.generate(ids, **options, **GREEDY, **STATIC).tolist() == plain.tolist()
    assert drafter.last_stats.round_kind == "static"
    assert len(set(drafter.last_stats.from_lookup)) == 2


@pytest.mark.lookup
def test_without_a_word_the_drafter_is_alone(small_target):
    ids = looping(6)
    drafter, plain = scripted(small_target, ids, [2, 5, 0], 40, mask_token_id=7)
    assert small_target.generate(ids, assistant_model=drafter, **GREEDY, **STATIC).tolist() == plain.tolist()
    assert drafter.last_stats.round_kind == "static" and not any(drafter.last_stats.from_lookup)
    assert "nothing looked up" in drafter.last_stats.summary()
    assert small_target.generate(ids, assistant_model=drafter, **GREEDY).tolist() == plain.tolist()
    assert any(drafter.last_stats.from_lookup)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lookup_alone(target, batch_size):
    ids = torch.cat([looping(6, seed=row) for row in range(batch_size)])
    plain = target.generate(ids, **GREEDY)
    lookup = PromptLookup(min_ngram=1)
    assert target.generate(ids, assistant_model=lookup, **GREEDY, **STATIC).tolist() == plain.tolist()
    stats = lookup.last_stats
    assert stats.round_kind == "static" and stats.tau > 1
    assert stats.host_reads == stats.rounds + 1
    # Buffers are of a number of slots, not of an object.
    buffers = runner._kept[target].buffers
    speculation = SpeculationConfig(prompt_lookup=PromptLookup())
    assert target.generate(ids, speculation=speculation, **GREEDY, **STATIC).tolist() == plain.tolist()
    assert runner._kept[target].buffers is buffers
    fewer = PromptLookup(num_slots=2)
    assert target.generate(ids, assistant_model=fewer, **GREEDY, **STATIC).tolist() == plain.tolist()
    assert runner._kept[target].buffers is not buffers


def test_eagle3(any_target):
    ids, mask = padded_prompts([5, 14, 2, 9])
    drafter = make_eagle(any_target)
    options = {"attention_mask": mask, **GREEDY}
    plain = any_target.generate(ids, **options)
    for speculation in (None, SpeculationConfig(prompt_lookup=True)):
        out = any_target.generate(ids, assistant_model=drafter, speculation=speculation, **options, **STATIC)
        assert out.tolist() == plain.tolist()
        assert drafter.last_stats.round_kind == "static"


def test_layers_are_compiled_for_all_of_them(target, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend="eager", **options))
    ids = looping(6)
    plain = target.generate(ids, **GREEDY)
    for drafter in (make_eagle(target), PromptLookup()):
        options = {"assistant_model": drafter, "speculation": SpeculationConfig(compile=True), **GREEDY}
        assert target.generate(ids, **options).tolist() == plain.tolist()
        assert drafter.last_stats.round_kind == "static"


@pytest.mark.parametrize("verification", ["block", pytest.param("token", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["beside", "alone", pytest.param("eagle3", marks=pytest.mark.slow)])
def test_sampled_tokens_follow_the_target(kind, verification):
    target = make_target(vocab_size=6, initializer_range=0.3)
    ids, lookup = looping(3) % 6, PromptLookup(num_slots=2, min_ngram=1)
    torch.manual_seed(1)
    drafter = {
        "beside": lambda: DSparkModel.from_target(target, target_layer_ids=[0, 2], mask_token_id=5, markov_rank=8),
        "alone": lambda: lookup,
        "eagle3": lambda: make_eagle(target),
    }[kind]()
    options = {"top_k": 0, "do_sample": True, "pad_token_id": None}
    joint = exact_joint(target, ids, 3, **options)
    speculation = SpeculationConfig(
        policy="fixed", verification=verification, prompt_lookup=lookup if kind == "beside" else None, num_candidates=4
    )
    counts, accepted = sample_joint(
        target, drafter, ids.expand(256, -1), 3, 2048, speculation, cache_implementation="static", max_new_tokens=4,
        **options,
    )  # fmt: skip
    stats = drafter.last_stats
    assert stats.round_kind == "static" and any(stats.from_lookup) == (kind != "eagle3")
    assert 0 < sum(accepted) < sum(stats.verified_lens) * 100
    assert p_value(counts, joint) > 1e-3
