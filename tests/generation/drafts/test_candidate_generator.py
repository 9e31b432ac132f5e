"""A drafter in transformers' own assisted loop: exact there, and the same rounds as in ours."""

import pytest
import torch
from distributions import exact_joint, p_value
from tiny_targets import make_prompt, make_target

from dspark_hf import DraftCandidateGenerator, DSparkModel, Eagle3Model, PromptLookup, SpeculationConfig


def make_drafter(target, kind=DSparkModel, **fields):
    torch.manual_seed(1)
    heads = {"markov_rank": 8, "block_size": 4} if kind is DSparkModel else {}
    fields = {"target_layer_ids": [0, 2]} | heads | fields
    if kind is DSparkModel:
        fields["mask_token_id"] = target.config.vocab_size - 1
    return kind.from_target(target, **fields)


def generate(target, drafter, ids, passes=None, **options):
    """What transformers' assisted loop makes of it; any number of looked-up tokens selects that loop."""

    def own(generation_config, logits_processor, **kwargs):
        return DraftCandidateGenerator(drafter, generation_config, logits_processor, **options.pop("own", {}))

    target._get_candidate_generator = own
    count = target.register_forward_hook(lambda *args: passes.append(1)) if passes is not None else None
    try:
        given = {name: value for name, value in options.items() if name != "own"}
        return target.generate(ids, prompt_lookup_num_tokens=1, speculation=False, **given)
    finally:
        del target._get_candidate_generator
        if count is not None:
            count.remove()


# Layers of Gemma 3n put out streams, before the batch.
@pytest.mark.parametrize(
    ("kind", "family"), [(DSparkModel, "llama"), (Eagle3Model, "llama"), (DSparkModel, "gemma3n_text")]
)
def test_tokens_and_rounds_are_those_of_our_loop(kind, family):
    # Drafts of a small vocabulary stand now and then.
    target = make_target(family, vocab_size=6)
    drafter, ids, passes = make_drafter(target, kind), make_prompt(9, vocab_size=6), []
    options = {"max_new_tokens": 40, "do_sample": False}
    plain = target.generate(ids, **options)
    ours = target.generate(ids, assistant_model=drafter, speculation=SpeculationConfig(policy="fixed"), **options)
    assert sum(drafter.last_stats.accepted_lens) > 0
    theirs = generate(target, drafter, ids, passes, **options)
    assert theirs.tolist() == ours.tolist() == plain.tolist()
    assert len(passes) == 1 + drafter.last_stats.rounds


def test_padding_is_not_read(target):
    drafter, ids = make_drafter(target), make_prompt(9)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    options = {"max_new_tokens": 16, "do_sample": False}
    out = generate(target, drafter, padded, attention_mask=(padded != 0).long(), **options)
    assert out[:, 3:].tolist() == target.generate(ids, **options).tolist()


def test_drawn_tokens_follow_the_target():
    target = make_target(vocab_size=5, initializer_range=0.3)
    drafter, ids = make_drafter(target), make_prompt(3, vocab_size=5)
    options = {"temperature": 0.8, "top_k": 4, "do_sample": True, "max_new_tokens": 3}
    joint = exact_joint(target, ids, 2, temperature=0.8, top_k=4)
    counts = torch.zeros(5, 5)
    torch.manual_seed(0)
    for _ in range(200):
        out = generate(target, drafter, ids, own={"num_candidates": 3}, **options)
        counts[tuple(out[0, 3:5].tolist())] += 1
    assert p_value(counts, joint) > 1e-3


def test_what_it_cannot_be_made_of(target):
    config = target.generation_config
    for drafter in (PromptLookup(), target):
        with pytest.raises(ValueError, match="drafter must be a drafter model of this library"):
            DraftCandidateGenerator(drafter, config)
    drafter = make_drafter(target)
    with pytest.raises(ValueError, match="max_draft_len must be a positive int"):
        DraftCandidateGenerator(drafter, config, max_draft_len=0)
    with pytest.raises(ValueError, match="takes one sequence, got 2"):
        DraftCandidateGenerator(drafter, config).get_candidates(make_prompt(3, batch_size=2))
    drafter.borrowed = None
    with pytest.raises(ValueError, match=r"not bound to a target.*drafter.bind"):
        DraftCandidateGenerator(drafter, config)
    last = make_drafter(target, target_layer_ids=[0, 2])
    last.config.target_layer_ids = [0, 3]
    with pytest.raises(ValueError, match="reads the last of 4 layers"):
        DraftCandidateGenerator(last, config)
