"""Hidden states and attentions are those of plain `generate()`, entry by entry."""

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target, padded_prompts
from transformers import DynamicCache

from dspark_hf.modeling.cache_name import CACHE_NAME

RECORDED = {"return_dict_in_generate": True, "output_hidden_states": True, "output_attentions": True}


@pytest.fixture(scope="module")
def eager_target(any_target):
    any_target.set_attn_implementation("eager")
    yield any_target
    any_target.set_attn_implementation("sdpa")


def assert_same_states(ours, theirs):
    for name in ("hidden_states", "attentions"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert isinstance(mine, tuple) and len(mine) == len(other)
        for entry, expected in zip(mine, other, strict=True):
            assert isinstance(entry, tuple) and [x.shape for x in entry] == [x.shape for x in expected]
            for states, plain in zip(entry, expected, strict=True):
                torch.testing.assert_close(states, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("lengths", [(3,), (11,), (5, 11, 1)])
def test_states_of_every_token(eager_target, lengths):
    """Over the lengths at which sliding windows begin to slide."""
    ids, mask = padded_prompts(lengths)
    drafter, plain = greedy_oracle(eager_target, ids, range(5), attention_mask=mask, max_new_tokens=20, uneven=True)
    # Rows of a batch end at different places.
    eos = None if len(lengths) == 1 else int(plain[0, 11 + 6])
    kwargs = RECORDED | {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "eos_token_id": eos}
    expected = eager_target.generate(ids, **kwargs)
    out = eager_target.generate(ids, assistant_model=drafter, **kwargs)
    assert out.sequences.tolist() == expected.sequences.tolist() and drafter.last_stats.tau > 1.5
    assert_same_states(out, expected)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_states_of_the_last_chunk_and_behind_a_cached_turn(family):
    target = make_target(family, attn_implementation="eager")
    ids = make_prompt(11, batch_size=2)
    caches = [DynamicCache(config=target.config) for _ in range(2)]
    kwargs = RECORDED | {"max_new_tokens": 7, "do_sample": False, "prefill_chunk_size": 4}
    for _ in range(2):
        expected = target.generate(ids, **{CACHE_NAME: caches[0]}, **kwargs)
        out = target.generate(ids, **{CACHE_NAME: caches[1]}, assistant_model=TableDrafter(64), **kwargs)
        assert out.sequences.tolist() == expected.sequences.tolist()
        assert_same_states(out, expected)
        ids = torch.cat([out.sequences, ids[:, :5]], 1)


@pytest.mark.parametrize("lengths", [(11,), (5, 11)])
def test_states_in_streams_before_the_batch(lengths):
    target = make_target("gemma3n_text", attn_implementation="eager")
    ids, mask = padded_prompts(lengths)
    drafter, _ = greedy_oracle(target, ids, range(5), attention_mask=mask, max_new_tokens=12)
    kwargs = RECORDED | {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    expected = target.generate(ids, **kwargs)
    out = target.generate(ids, assistant_model=drafter, **kwargs)
    assert expected.hidden_states[1][1].shape == (3, len(lengths), 1, 32)
    assert out.sequences.tolist() == expected.sequences.tolist() and drafter.last_stats.tau > 1.5
    assert_same_states(out, expected)


def test_one_of_both(target):
    ids = make_prompt(5)
    kwargs = {"return_dict_in_generate": True, "max_new_tokens": 6, "do_sample": False}
    out = target.generate(ids, assistant_model=TableDrafter(64), output_hidden_states=True, **kwargs)
    assert len(out.hidden_states) == 6 and out.attentions is None
    # Without weights to show, as SDPA computes none, there is one empty entry per token, as in plain generate().
    expected = target.generate(ids, output_attentions=True, **kwargs)
    out = target.generate(ids, assistant_model=TableDrafter(64), output_attentions=True, **kwargs)
    assert out.attentions == expected.attentions == ((),) * 6 and out.hidden_states is None


def test_what_is_not_returned_is_not_recorded(target):
    ids = make_prompt(5, batch_size=2)
    drafter, plain = greedy_oracle(target, ids, [4, 0], max_new_tokens=20, uneven=True)
    out = target.generate(
        ids, assistant_model=drafter, output_hidden_states=True, output_attentions=True, max_new_tokens=20,
        do_sample=False,
    )  # fmt: skip
    assert out.tolist() == plain.tolist() and len(set(drafter.last_stats.accepted_lens[:2])) == 2


def test_layers_that_share_keys():
    target = make_target(
        "gemma4_text", num_hidden_layers=4, num_kv_shared_layers=2, sliding_window=8, attn_implementation="eager",
        layer_types=["sliding_attention", "full_attention"] * 2, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64, global_head_dim=8,
    )  # fmt: skip
    ids = make_prompt(5, batch_size=2)
    kwargs = RECORDED | {"max_new_tokens": 12, "do_sample": False}
    expected = target.generate(ids, **kwargs)
    drafter, _ = greedy_oracle(target, ids, [3, 1, 0, 4], max_new_tokens=12)
    out = target.generate(ids, assistant_model=drafter, **kwargs)
    assert out.sequences.tolist() == expected.sequences.tolist()
    assert_same_states(out, expected)
