"""Greedy output with a drafter is plain output: whatever the lengths, padding, ends, budgets and accepted drafts."""

import pytest
import torch
from fake_drafters import greedy_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_targets import make_target, padded_prompts

from dspark_hf import SpeculationConfig
from dspark_hf.modeling.cache_name import CACHE_NAME

TARGETS = {}


def tiny(family):
    if family not in TARGETS:
        TARGETS[family] = make_target(family)
    return TARGETS[family]


CASES = {
    "family": st.sampled_from(["llama", "mistral"]),
    "lens": st.lists(st.integers(1, 14), min_size=1, max_size=4),
    "side": st.sampled_from(["left", "right"]),
    "num_slots": st.integers(1, 6),
    "max_new_tokens": st.integers(1, 18),
    "num_eos": st.integers(0, 3),
    "eos_place": st.integers(0, 17),
    "pattern": st.lists(st.integers(0, 6), min_size=1, max_size=5),
    "uneven": st.booleans(),
    "max_draft_len": st.one_of(st.none(), st.integers(1, 4)),
    "threshold": st.sampled_from([0.0, 0.5]),
    "returned": st.booleans(),
}


def check(
    *, family, lens, side, num_slots, max_new_tokens, num_eos, eos_place, pattern, uneven, max_draft_len, threshold,
    returned,
):  # fmt: skip
    target = tiny(family)
    ids, mask = padded_prompts(lens, side=side, seed=sum(lens))
    drafter, plain = greedy_oracle(
        target, ids, pattern, max_new_tokens, mask, uneven=uneven, num_slots=num_slots, enable_confidence_head=True
    )
    # Ends that are met: tokens that plain generation makes at some place of some row.
    ends = plain[:, ids.shape[1] :].flatten()[eos_place : eos_place + num_eos].unique().tolist() or None
    options = {"attention_mask": mask, "max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": ends,
               "return_dict_in_generate": returned, "output_scores": returned}  # fmt: skip
    expected = target.generate(ids, **options, speculation=False)
    speculation = SpeculationConfig(max_draft_len=max_draft_len, confidence_threshold=threshold)
    out = target.generate(ids, **options, assistant_model=drafter, speculation=speculation)
    if returned:
        assert len(out.scores) == len(expected.scores)
        assert out[CACHE_NAME].get_seq_length() == expected[CACHE_NAME].get_seq_length()
        out, expected = out.sequences, expected.sequences
    assert torch.equal(out, expected)
    assert drafter.anchors_were_right


@settings(max_examples=25)
@given(**CASES)
def test_output_is_plain(**case):
    check(**case)


@pytest.mark.slow
@settings(max_examples=800, derandomize=False)
@given(**CASES)
def test_output_is_plain_in_many_cases(**case):
    check(**case)
