"""A cache of the caller's after something raised: it holds tokens that stand and no others, or nothing at all."""

import warnings

import pytest
import torch
from fake_drafters import greedy_oracle
from tiny_targets import make_prompt, make_target, padded_prompts
from transformers import DynamicCache, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

KWARGS = {"max_new_tokens": 30, "do_sample": False}


class Breaking(BaseStreamer):
    """Takes so many tokens, and raises with the next; the prompt comes first."""

    def __init__(self, num_tokens, error=RuntimeError):
        self.num_tokens, self.error, self.ids = num_tokens, error, []

    def put(self, value):
        if len(self.ids) > self.num_tokens:
            raise self.error("no more")
        self.ids.append(value)

    def end(self):
        pass


class BreakingCriterion(StoppingCriteria):
    """Raises at a length."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        if input_ids.shape[1] == self.length:
            raise RuntimeError("no more")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def break_pass(target, layer, num_passes):
    """Raise KeyboardInterrupt behind a layer's attention in the pass with that number."""
    calls = []

    def count(module, args, output):
        calls.append(1)
        if len(calls) == num_passes:
            raise KeyboardInterrupt

    return target.get_submodule(layer).register_forward_hook(count)


def assert_goes_on(target, cache, ids, mask=None):
    """Generation with the cache goes on from `ids`, all tokens so far, as without."""
    mask = torch.ones_like(ids) if mask is None else mask
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    out = target.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert out.tolist() == plain.tolist()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3_next", "lfm2"])
@pytest.mark.parametrize("num_tokens", [0, 1, 4, 11])
def test_a_streamer_that_raises(family, num_tokens):
    target = make_target(family)
    ids = make_prompt(12)
    drafter, plain = greedy_oracle(target, ids, [4, 1, 2], max_new_tokens=30)
    cache = DynamicCache(config=target.config)
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="no more"):
        warnings.filterwarnings("error", "(?s).*It was emptied")
        target.generate(ids, assistant_model=drafter, past_key_values=cache, streamer=Breaking(num_tokens), **KWARGS)
    # The token that was refused is known, and like the last of any generation not in the cache.
    stands = 12 + num_tokens
    if family != "qwen3_next":
        assert cache.get_seq_length() == stands
    assert 0 < cache.get_seq_length() <= stands
    assert_goes_on(target, cache, plain[:, : stands + 3])


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("lengths", [(9,), (5, 12)])
def test_an_interrupted_pass(family, lengths):
    target = make_target(family)
    ids, mask = padded_prompts(lengths)
    drafter, plain = greedy_oracle(target, ids, [4, 1, 0, 2], attention_mask=mask, max_new_tokens=30, uneven=True)
    cache = DynamicCache(config=target.config)
    handle = break_pass(target, "model.layers.2.self_attn", 5)
    with pytest.raises(KeyboardInterrupt):
        target.generate(ids, attention_mask=mask, assistant_model=drafter, past_key_values=cache, **KWARGS)
    handle.remove()
    num_cached = cache.get_seq_length()
    assert ids.shape[1] + 3 <= num_cached < ids.shape[1] + 15
    assert {layer.get_seq_length() for layer in cache.layers} == {num_cached}
    ids = plain[:, : num_cached + 2]
    assert_goes_on(target, cache, ids, torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1))


def test_a_criterion_that_raises(target):
    ids = make_prompt(8)
    drafter, plain = greedy_oracle(target, ids, [4], max_new_tokens=30)
    cache = DynamicCache(config=target.config)
    with pytest.raises(RuntimeError, match="no more"):
        target.generate(
            ids, assistant_model=drafter, past_key_values=cache, stopping_criteria=[BreakingCriterion(15)], **KWARGS
        )
    assert cache.get_seq_length() == 14
    assert_goes_on(target, cache, plain[:, :18])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_second_turn_is_cut_back_to_where_it_stands(target, error):
    ids = make_prompt(8)
    cache = DynamicCache(config=target.config)
    drafter, _ = greedy_oracle(target, ids, [4, 0, 1], max_new_tokens=30)
    first = target.generate(ids, assistant_model=drafter, past_key_values=cache, **KWARGS)
    ids = torch.cat([first, make_prompt(3, seed=1)], 1)
    options = {"assistant_model": drafter, "past_key_values": cache, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(error):
        target.generate(ids, streamer=Breaking(7, error), **options, **KWARGS)
    assert cache.get_seq_length() == ids.shape[1] + 7
    plain = target.generate(ids, attention_mask=torch.ones_like(ids), **KWARGS)
    ids = plain[:, :-12]
    options["attention_mask"] = torch.ones_like(ids)
    out = target.generate(ids, **options, **KWARGS)
    assert out[:, : plain.shape[1]].tolist() == plain.tolist()


def test_an_interrupted_prompt(target):
    """What was cached before stays; a window has moved on, so such a cache is emptied."""
    ids, more = make_prompt(12), make_prompt(20, seed=1)
    for family, num_kept in (("llama", 12), ("mistral", 0)):
        target = make_target(family)
        with torch.no_grad():
            cache = target(ids, use_cache=True, past_key_values=DynamicCache(config=target.config)).past_key_values
        whole = torch.cat([ids, more], 1)
        drafter, _ = greedy_oracle(target, whole, [4], max_new_tokens=4)
        handle = break_pass(target, "model.layers.2.self_attn", 1)
        with warnings.catch_warnings(record=True) as record, pytest.raises(KeyboardInterrupt):
            warnings.simplefilter("always")
            target.generate(whole, assistant_model=drafter, past_key_values=cache, **KWARGS)
        handle.remove()
        assert any("It was emptied" in str(entry.message) for entry in record) == (num_kept == 0)
        assert cache.get_seq_length() == num_kept
        assert_goes_on(target, cache, whole)


def test_a_recurrent_state_that_is_half_way_is_emptied():
    target = make_target("qwen3_next")
    ids = make_prompt(9)
    drafter, plain = greedy_oracle(target, ids, [4, 1, 2], max_new_tokens=30)
    cache = DynamicCache(config=target.config)
    handle = break_pass(target, "model.layers.2", 4)
    with pytest.warns(UserWarning, match="interrupted in the middle of a pass"), pytest.raises(KeyboardInterrupt):
        target.generate(ids, assistant_model=drafter, past_key_values=cache, **KWARGS)
    handle.remove()
    assert cache.get_seq_length() == 0
    assert_goes_on(target, cache, plain[:, :20])
