"""Caches that earlier turns have filled: the output is plain `generate()`'s, and the drafter's context goes on."""

import copy
import pickle

import pytest
import torch
from fake_drafters import OracleDrafter, TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target, padded_prompts
from transformers import DynamicCache

from dspark_hf import DSparkModel


def say_more(sequences, mask, num_tokens, seed):
    """A user's next message behind what was generated, and the mask of all; padding in between stays masked."""
    made = (sequences[:, mask.shape[1] :] != 0).long()
    new_ids = make_prompt(num_tokens, seed=seed, batch_size=sequences.shape[0])
    return torch.cat([sequences, new_ids], 1), torch.cat([mask, made, torch.ones_like(new_ids)], 1)


def assert_context_is_complete(target, drafter, ids, mask):
    """The drafter has read the taps of all unpadded tokens of `ids`, at their positions."""
    assert drafter.state.positions == drafter.state.context_lens == mask.sum(1).tolist()
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        states = target(ids, attention_mask=mask, position_ids=positions, output_hidden_states=True).hidden_states
    taps = torch.cat([states[1], states[3]], -1)
    for row, row_mask in enumerate(mask.bool()):
        features = torch.cat(drafter.state.features[row])
        torch.testing.assert_close(features, taps[row, row_mask], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("lengths", [(9,), (5, 12, 1)])
def test_turns_with_one_cache(any_target, lengths):
    ids, mask = padded_prompts(lengths)
    drafter = TableDrafter(64)
    kwargs = {"do_sample": False, "eos_token_id": 5, "max_new_tokens": 11, "suppress_tokens": [0]}
    caches = [DynamicCache(config=any_target.config) for _ in range(2)]
    for turn, assistant in enumerate((drafter, drafter, None, drafter)):
        plain = any_target.generate(ids, attention_mask=mask, past_key_values=caches[0], **kwargs)
        out = any_target.generate(
            ids, attention_mask=mask, past_key_values=caches[1], assistant_model=assistant, **kwargs
        )
        assert out.tolist() == plain.tolist() and caches[1].get_seq_length() == out.shape[1] - 1
        if turn < 2:
            read = torch.cat([mask, (out[:, mask.shape[1] :] != 0).long()], 1)[:, :-1]
            assert_context_is_complete(any_target, drafter, out[:, :-1], read)
        ids, mask = say_more(out, mask, 4, seed=turn)


def test_cache_of_another_batch(target):
    ids, drafter = make_prompt(6), TableDrafter(64)
    cache = DynamicCache(config=target.config)
    target.generate(ids, past_key_values=cache, assistant_model=drafter, max_new_tokens=1)
    more = torch.cat([ids, make_prompt(2)], 1)
    kwargs = {"assistant_model": drafter, "do_sample": True, "num_return_sequences": 3, "max_new_tokens": 4}
    with pytest.raises(ValueError, match="The cache holds 1 rows, and 3 are to be generated"):
        target.generate(more, past_key_values=cache, **kwargs)
    copies = copy.deepcopy(cache)
    copies.batch_repeat_interleave(3)
    assert target.generate(more, past_key_values=copies, **kwargs).shape == (3, 12)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3_next"])
@pytest.mark.parametrize("num_streamed", [1, 2, 5])
def test_cache_of_a_turn_that_its_streamer_broke_off(family, num_streamed):
    """It holds what was streamed, and no drafts."""
    target, ids = make_target(family), make_prompt(6)

    class BrokenOff(Exception):
        pass

    class Streamer:
        def __init__(self):
            self.ids = []

        def put(self, ids):
            self.ids += ids.flatten().tolist()
            if len(self.ids) == 6 + num_streamed:
                raise BrokenOff

    drafter, _ = greedy_oracle(target, ids, [4], max_new_tokens=20)
    answers = []
    for assistant in (None, drafter):
        cache, streamer = DynamicCache(config=target.config), Streamer()
        kwargs = {"past_key_values": cache, "do_sample": False, "assistant_model": assistant}
        with pytest.raises(BrokenOff):
            target.generate(ids, streamer=streamer, max_new_tokens=20, **kwargs)
        assert cache.get_seq_length() == 5 + num_streamed
        text = torch.tensor([streamer.ids + [3, 4]])
        answers.append(target.generate(text, past_key_values=cache, max_new_tokens=8, do_sample=False).tolist())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("lengths", [(9,), (5, 12, 1)])
def test_cache_that_others_filled(any_target, lengths):
    """The context starts behind it, at the right positions."""
    ids, mask = padded_prompts(lengths)
    kwargs = {"do_sample": False, "suppress_tokens": [0]}
    past = [
        any_target.generate(ids, attention_mask=mask, max_new_tokens=9, return_dict_in_generate=True, **kwargs)
        for _ in range(2)
    ]
    ids, mask = say_more(past[0].sequences, mask, 4, seed=1)
    kwargs |= {"attention_mask": mask, "max_new_tokens": 20}
    plain = any_target.generate(ids, past_key_values=past[0].past_key_values, **kwargs)
    rows = [[token for token in row if token != 0] for row in plain.tolist()]
    oracle = OracleDrafter(rows, range(5), 64, uneven=True)
    out = any_target.generate(ids, past_key_values=past[1].past_key_values, assistant_model=oracle, **kwargs)
    assert out.tolist() == plain.tolist() and oracle.anchors_were_right
    assert oracle.last_stats.tau > 2 and max(oracle.state.context_lens) < 4 + 20 + 2


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_only_new_tokens_are_given(family, num_rows):
    target = make_target(family)
    ids, new_ids = make_prompt(12, batch_size=num_rows), make_prompt(5, seed=3, batch_size=num_rows)
    kwargs = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones(num_rows, 17)}
    with torch.no_grad():
        caches = [target(ids, use_cache=True).past_key_values for _ in range(2)]
    plain = target.generate(new_ids, past_key_values=caches[0], **kwargs)
    whole = target.generate(torch.cat([ids, new_ids], 1), max_new_tokens=20, do_sample=False)
    assert plain.tolist() == whole[:, 12:].tolist()
    oracle = OracleDrafter(whole.tolist(), range(5), 64, uneven=True)
    out = target.generate(new_ids, past_key_values=caches[1], assistant_model=oracle, **kwargs)
    assert out.tolist() == plain.tolist() and oracle.anchors_were_right and oracle.last_stats.tau > 2


def read_prompt_cache(target, drafter, ids):
    """A cache of a prompt, read by the drafter too."""
    cache = DynamicCache(config=target.config)
    target.generate(ids, past_key_values=cache, assistant_model=drafter, max_new_tokens=1, do_sample=False)
    return cache


def test_copies_of_a_prompt_cache(target):
    """One prompt, several goes: each copy has a context of its own."""
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    ids = make_prompt(10)
    cache = read_prompt_cache(target, drafter, ids)
    for seed in (1, 2):
        longer = torch.cat([ids, make_prompt(3, seed=seed)], 1)
        plain = target.generate(longer, max_new_tokens=12, do_sample=False)
        goes_on = copy.deepcopy(cache)
        out = target.generate(
            longer, past_key_values=goes_on, assistant_model=drafter, max_new_tokens=12, do_sample=False
        )
        assert out.tolist() == plain.tolist()
        state = goes_on.dspark_context.state
        assert state.context_lens == [out.shape[1] - 1] and state.positions(1, "cpu").tolist() == [[out.shape[1] - 1]]
    assert cache.dspark_context.state.context_lens == [10]


def test_cropped_cache(target):
    """An answer is taken back and another message sent."""
    drafter = TableDrafter(64)
    ids, mask = padded_prompts((5, 12, 1))
    cache = DynamicCache(config=target.config)
    kwargs = {"assistant_model": drafter, "past_key_values": cache, "max_new_tokens": 9, "do_sample": False}
    target.generate(ids, attention_mask=mask, **kwargs)
    cache.crop(12 - cache.get_seq_length())
    ids, mask = say_more(ids, mask, 3, seed=4)
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
    state = drafter.state
    out = target.generate(ids, attention_mask=mask, **kwargs)
    assert out.tolist() == plain.tolist() and drafter.state is state
    read = torch.cat([mask, torch.ones(3, 8, dtype=torch.long)], 1)
    assert_context_is_complete(target, drafter, out[:, :-1], read)


def plain_turn(target, cache, ids):
    ids = torch.cat([ids, ids[:, :1]], 1)
    return target.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)


def refill(target, cache, ids):
    cache.crop(-4)
    with torch.no_grad():
        target(ids[:, -4:], past_key_values=cache)
    return ids


def repeat(target, cache, ids):
    cache.batch_repeat_interleave(2)
    return ids.repeat_interleave(2, 0)


@pytest.mark.parametrize("change", [plain_turn, refill, repeat])
def test_context_of_a_cache_that_others_changed_is_not_used(target, change):
    drafter = TableDrafter(64)
    ids = make_prompt(10)
    cache = read_prompt_cache(target, drafter, ids)
    state = drafter.state
    ids = change(target, cache, ids)
    longer = torch.cat([ids, ids[:, :2]], 1)
    plain = target.generate(longer, max_new_tokens=8, do_sample=False)
    num_cached = cache.get_seq_length()
    out = target.generate(longer, past_key_values=cache, assistant_model=drafter, max_new_tokens=8, do_sample=False)
    assert out.tolist() == plain.tolist() and drafter.state is not state
    assert drafter.state.missing == [num_cached] * longer.shape[0]


@pytest.mark.parametrize("modes", [(True, False, True), (False, True, True), (True, True, False)])
def test_turns_in_and_out_of_inference_mode(target, modes):
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    ids, cache = make_prompt(10), DynamicCache(config=target.config)
    for mode in modes:
        with torch.inference_mode(mode):
            kwargs = {"max_new_tokens": 6, "do_sample": False}
            plain = target.generate(ids, **kwargs)
            out = target.generate(ids, past_key_values=cache, assistant_model=drafter, **kwargs)
            assert out.tolist() == plain.tolist()
            ids = torch.cat([out, ids[:, :3]], 1)


def test_context_belongs_to_one_drafter(target):
    ids = make_prompt(10)
    cache = read_prompt_cache(target, TableDrafter(64), ids)
    other = TableDrafter(64)
    longer = torch.cat([ids, make_prompt(2)], 1)
    target.generate(longer, past_key_values=cache, assistant_model=other, max_new_tokens=8, do_sample=False)
    assert other.state.missing == [10]


def test_saved_cache_forgets_the_context(target):
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    ids = make_prompt(10)
    cache = pickle.loads(pickle.dumps(read_prompt_cache(target, drafter, ids)))
    longer = torch.cat([ids, make_prompt(3)], 1)
    out = target.generate(longer, past_key_values=cache, assistant_model=drafter, max_new_tokens=8, do_sample=False)
    assert out.tolist() == target.generate(longer, max_new_tokens=8, do_sample=False).tolist()


def test_nothing_is_left_at_a_cache_that_is_not_handed_out(target):
    drafter = TableDrafter(64)
    ids = make_prompt(10)
    target.generate(ids, assistant_model=drafter, max_new_tokens=8, do_sample=False)
    num_read = drafter.state.context_lens[0]
    out = target.generate(
        ids, assistant_model=drafter, max_new_tokens=8, do_sample=False, return_dict_in_generate=True
    )
    assert drafter.state.context_lens[0] == 17 > num_read
    assert out.past_key_values.dspark_context.state is drafter.state


@pytest.mark.parametrize(
    ("num_cached", "num_given", "num_masked", "message"),
    [
        (6, 6, None, "The cache holds 6 tokens already, and 6 are given, so none is new.*Pass all tokens"),
        (6, 3, None, "The cache holds 6 tokens already, and 3 are given"),
        (6, 3, 8, "attention_mask has 8 columns, but the prompt has 9, of which 6 are cached"),
    ],
)
def test_tokens_that_do_not_go_with_the_cache(target, num_cached, num_given, num_masked, message):
    with torch.no_grad():
        cache = target(make_prompt(num_cached), use_cache=True).past_key_values
    # A mask of ones alone is dropped before its width can be told.
    mask = None if num_masked is None else torch.tensor([[0] + [1] * (num_masked - 1)])
    with pytest.raises(ValueError, match=message):
        target.generate(
            make_prompt(num_given), attention_mask=mask, past_key_values=cache, assistant_model=TableDrafter(64),
            max_new_tokens=4,
        )  # fmt: skip
    assert cache.get_seq_length() == num_cached
