"""Prompts in chunks and as embeddings."""

import functools

import pytest
import torch
from fake_drafters import OracleDrafter, TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target, padded_prompts
from transformers import DynamicCache

from dspark_hf.generation import speculative_generate
from dspark_hf.generation.drafts import context
from dspark_hf.generation.target import runner as target_module


def record_passes(monkeypatch, target):
    """Tokens of each forward pass."""
    forward, widths = target.forward, []

    @functools.wraps(forward)
    def recorded(*args, **kwargs):
        inputs = kwargs.get("inputs_embeds")
        widths.append((kwargs["input_ids"] if inputs is None else inputs).shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(target, "forward", recorded)
    return widths


def assert_same_context(drafter, other):
    assert drafter.state.context_lens == other.state.context_lens
    for ours, theirs in zip(drafter.state.features, other.state.features, strict=True):
        torch.testing.assert_close(torch.cat(ours), torch.cat(theirs), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(13,), (5, 13, 1)])
def test_chunks(any_target, lengths, side, monkeypatch):
    ids, mask = padded_prompts(lengths, side)
    whole, plain = greedy_oracle(any_target, ids, range(5), attention_mask=mask, max_new_tokens=20, uneven=True)
    kwargs = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False}
    any_target.generate(ids, assistant_model=whole, **kwargs)
    chunked = OracleDrafter(whole.rows, range(5), 64, uneven=True)
    widths = record_passes(monkeypatch, any_target)
    out = any_target.generate(ids, assistant_model=chunked, prefill_chunk_size=5, **kwargs)
    assert out.tolist() == plain.tolist() and chunked.anchors_were_right
    # Rounds take at most an anchor and four drafts of each row, in one row of tokens or several.
    assert widths[:3] == [5, 5, 3] and max(widths[3:]) <= 5 * len(lengths)
    assert_same_context(chunked, whole)


@pytest.mark.parametrize("chunk_size", [1, 13, 100])
def test_chunk_sizes(target, chunk_size):
    ids = make_prompt(13)
    drafter, plain = greedy_oracle(target, ids, range(5), max_new_tokens=20)
    kwargs = {"max_new_tokens": 20, "do_sample": False, "prefill_chunk_size": chunk_size}
    assert target.generate(ids, **kwargs).tolist() == plain.tolist()
    assert target.generate(ids, assistant_model=drafter, **kwargs).tolist() == plain.tolist()
    assert drafter.anchors_were_right


@pytest.mark.parametrize("lengths", [(9,), (5, 9, 1)])
def test_chunks_behind_a_cached_turn(any_target, lengths, monkeypatch):
    ids, mask = padded_prompts(lengths)
    drafter, cache = TableDrafter(64), DynamicCache(config=any_target.config)
    kwargs = {"do_sample": False, "max_new_tokens": 6}
    out = any_target.generate(
        ids, attention_mask=mask, past_key_values=cache, assistant_model=drafter, prefill_chunk_size=4, **kwargs
    )
    ids = torch.cat([out, make_prompt(8, batch_size=len(lengths))], 1)
    mask = torch.cat([mask, torch.ones(len(lengths), 14, dtype=torch.long)], 1)
    plain = any_target.generate(ids, attention_mask=mask, **kwargs)
    widths = record_passes(monkeypatch, any_target)
    out = any_target.generate(
        ids, attention_mask=mask, past_key_values=cache, assistant_model=drafter, prefill_chunk_size=4, **kwargs
    )
    assert out.tolist() == plain.tolist() and widths[:3] == [4, 4, 1]


def test_features_are_handed_over_in_pieces(target, monkeypatch):
    ids, mask = padded_prompts((5, 13, 1))
    whole, _ = greedy_oracle(target, ids, range(5), attention_mask=mask, max_new_tokens=8)
    pieces = OracleDrafter(whole.rows, range(5), 64)
    monkeypatch.setattr(context, "MAX_WAITING", 0)
    for piece_len, drafter in ((1024, whole), (4, pieces)):
        monkeypatch.setattr(target_module, "PIECE_LEN", piece_len)
        target.generate(ids, attention_mask=mask, assistant_model=drafter, max_new_tokens=8, do_sample=False)
    assert len(pieces.state.features[0]) > len(whole.state.features[0])
    assert_same_context(pieces, whole)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("lengths", [(13,), (5, 13, 1)])
def test_embeddings(any_target, lengths, chunk_size):
    ids, mask = padded_prompts(lengths)
    embeds = any_target.get_input_embeddings()(ids).detach()
    kwargs = {"inputs_embeds": embeds, "attention_mask": mask, "max_new_tokens": 20, "do_sample": False}
    by_ids, plain = greedy_oracle(any_target, ids, range(5), attention_mask=mask, max_new_tokens=20, uneven=True)
    any_target.generate(ids, assistant_model=by_ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    for given in ({}, {"input_ids": ids}):
        expected = any_target.generate(**kwargs, **given)
        assert expected[:, -20:].tolist() == plain[:, 13:].tolist()
        drafter = OracleDrafter(by_ids.rows, range(5), 64, uneven=True)
        out = any_target.generate(assistant_model=drafter, prefill_chunk_size=chunk_size, **kwargs, **given)
        assert out.tolist() == expected.tolist() and drafter.anchors_were_right
        assert_same_context(drafter, by_ids)


@pytest.mark.parametrize("num_ids", [2, 20])
def test_embeddings_and_another_number_of_ids(target, num_ids):
    """Soft prompts: the ids are only what processors see and what is returned."""
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, :3] = 0
    kwargs = {"inputs_embeds": torch.randn(2, 11, 32), "attention_mask": mask, "do_sample": False,
              "input_ids": make_prompt(num_ids, batch_size=2), "max_new_tokens": 15,
              "repetition_penalty": 1.2}  # fmt: skip
    plain = target.generate(**kwargs)
    for pattern in ([0, 4], [3]):
        # The context starts behind what is not embedded: the oracle counts from its first column.
        rows = [[0] * (11 - 3 * (row == 0)) + ids[num_ids:] for row, ids in enumerate(plain.tolist())]
        drafter = OracleDrafter(rows, pattern, 64, uneven=True)
        out = target.generate(assistant_model=drafter, **kwargs)
        assert out.tolist() == plain.tolist() and drafter.anchors_were_right


def test_embeddings_and_ids_without_a_mask_over_the_embeddings(target):
    with pytest.raises(ValueError, match="inputs_embeds hold 11 tokens and input_ids 4, so positions are unknown"):
        target.generate(
            make_prompt(4), inputs_embeds=torch.randn(1, 11, 32), assistant_model=TableDrafter(64), max_new_tokens=4
        )


def test_embeddings_go_on_with_a_cache(target):
    drafter, cache = TableDrafter(64), DynamicCache(config=target.config)
    embeds = torch.randn(2, 9, 32)
    kwargs = {"max_new_tokens": 6, "do_sample": False}
    out = target.generate(inputs_embeds=embeds, past_key_values=cache, assistant_model=drafter, **kwargs)
    assert out.tolist() == target.generate(inputs_embeds=embeds, **kwargs).tolist()
    embeds = torch.cat([embeds, target.get_input_embeddings()(out).detach(), torch.randn(2, 3, 32)], 1)
    plain = target.generate(inputs_embeds=embeds, **kwargs)
    state = drafter.state
    out = target.generate(inputs_embeds=embeds, past_key_values=cache, assistant_model=drafter, **kwargs)
    assert out.tolist() == plain.tolist() and drafter.state is state and state.context_lens == [23, 23]


def test_prompt_beyond_the_switch_of_rope_scalings():
    """Phi-3 drops an empty cache there, which is no loss."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4,
               "partial_rotary_factor": 1.0, "original_max_position_embeddings": 16}  # fmt: skip
    target = make_target("phi3", original_max_position_embeddings=16, rope_parameters=scaling)
    ids = make_prompt(20)
    drafter, plain = greedy_oracle(target, ids, range(5), max_new_tokens=20)
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=20, do_sample=False)
    assert out.tolist() == plain.tolist() and drafter.anchors_were_right


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prefill_chunk_size": 0}, "prefill_chunk_size must be a positive int, got 0"),
        (
            {"prefill_chunk_size": 4, "pixel_values": torch.zeros(1, 3)},
            r"prefill_chunk_size=4 would split the prompt, and with it \['pixel_values'\]",
        ),
    ],
)
def test_chunks_that_cannot_be(target, given, message):
    def decode(model, input_ids, **kwargs):
        pixels = {name: value for name, value in given.items() if name == "pixel_values"}
        return speculative_generate(model, input_ids, drafter=TableDrafter(64), **kwargs, **pixels)

    with pytest.raises(ValueError, match=message):
        chunk_size = given["prefill_chunk_size"]
        target.generate(make_prompt(5), custom_generate=decode, prefill_chunk_size=chunk_size, max_new_tokens=4)


@pytest.mark.parametrize("given", ["ids", "embeddings", "cache"])
def test_streamers_get_the_same(target, given):
    class Recorder:
        def __init__(self):
            self.values = []

        def put(self, value):
            self.values.append(value.tolist())

        def end(self):
            self.values.append("end")

    ids = make_prompt(9)
    eos = int(target.generate(ids, max_new_tokens=12, do_sample=False)[0, -1])
    streams = []
    for assistant in (None, TableDrafter(64)):
        kwargs = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": eos, "prefill_chunk_size": None}
        if given == "embeddings":
            kwargs["inputs_embeds"] = target.get_input_embeddings()(ids).detach()
        else:
            kwargs |= {"input_ids": ids, "prefill_chunk_size": 4}
        if given == "cache":
            kwargs["past_key_values"] = DynamicCache(config=target.config)
            with torch.no_grad():
                target(ids[:, :5], past_key_values=kwargs["past_key_values"])
        streams.append(Recorder())
        target.generate(assistant_model=assistant, streamer=streams[-1], **kwargs)
    assert streams[0].values == streams[1].values and streams[0].values[-2:] == [[eos], "end"]
