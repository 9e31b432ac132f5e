"""Batches: every row as in plain `generate()`."""

import functools

import pytest
import torch
from fake_drafters import OneHotOracle, OracleDrafter, TableDrafter, greedy_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_targets import make_prompt, make_target, padded_prompts
from transformers import DynamicCache, LogitsProcessor, StoppingCriteria

from dspark_hf import DSparkModel, SpeculationConfig
from dspark_hf.generation import decode
from dspark_hf.modeling.cache_name import CACHE_NAME


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(7, 7, 7), (3, 12, 7), (1, 20)])
def test_padded_rows(any_target, side, lengths):
    ids, mask = padded_prompts(lengths, side)
    drafter, plain = greedy_oracle(any_target, ids, range(5), attention_mask=mask, max_new_tokens=40)
    kwargs = {"attention_mask": mask, "max_new_tokens": 40, "do_sample": False}
    out = any_target.generate(ids, assistant_model=drafter, **kwargs)
    assert out.tolist() == plain.tolist()
    assert drafter.anchors_were_right
    # Rows that agree on how many drafts are right lose nothing to one another.
    assert drafter.last_stats.tau > 2.5


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rows_that_disagree_and_finish_at_different_times(family):
    target = make_target(family)
    ids, mask = padded_prompts((5, 9, 2, 14), "left")
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False)
    eos = [int(plain[0, 14 + 3]), int(plain[2, 14 + 12])]
    kwargs = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False, "eos_token_id": eos}
    expected = target.generate(ids, **kwargs)
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    for assistant in (TableDrafter(64), drafter):
        assert target.generate(ids, assistant_model=assistant, **kwargs).tolist() == expected.tolist()
        assert assistant.last_stats.new_tokens == sum(
            next((i + 1 for i, token in enumerate(row) if token in eos), 30) for row in expected[:, 14:].tolist()
        )


@pytest.mark.parametrize("family", ["gemma4_text", "phi3", "qwen3_moe", "gpt_neox"])
def test_uneven_rows_of_other_architectures(family):
    target = make_target(family)
    ids, mask = padded_prompts((5, 12, 3), "left")
    drafter, plain = greedy_oracle(target, ids, [4, 1, 0, 3], attention_mask=mask, max_new_tokens=25, uneven=True)
    out = speculate(target, drafter, ids, mask, max_new_tokens=25, do_sample=False)
    assert out.tolist() == plain.tolist()
    assert drafter.anchors_were_right and drafter.last_stats.tau > 2.5


@settings(max_examples=25)
@given(data=st.data())
def test_any_batch(target, data):
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4), "lengths")
    side = data.draw(st.sampled_from(["left", "right"]), "side")
    ids, mask = padded_prompts(lengths, side, seed=data.draw(st.integers(0, 99), "seed"))
    num_slots = data.draw(st.integers(1, 5), "slots")
    budget = data.draw(st.integers(1, 16), "budget")
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
    made = sorted(set(plain[:, ids.shape[1] :].flatten().tolist()))
    eos = data.draw(st.lists(st.sampled_from(made), max_size=3), "eos") or None
    kwargs = {"attention_mask": mask, "max_new_tokens": budget, "eos_token_id": eos, "do_sample": False}
    expected = target.generate(ids, **kwargs)
    pattern = data.draw(st.lists(st.integers(0, num_slots), min_size=1, max_size=4), "pattern")
    drafter, _ = greedy_oracle(
        target,
        ids,
        pattern,
        attention_mask=mask,
        max_new_tokens=16,
        uneven=data.draw(st.booleans(), "uneven"),
        num_slots=num_slots,
        enable_confidence_head=True,
    )
    threshold = data.draw(st.sampled_from([0.0, 0.5]), "threshold")
    is_dict = data.draw(st.booleans(), "return_dict_in_generate")
    out = target.generate(
        ids,
        assistant_model=drafter,
        speculation=SpeculationConfig(confidence_threshold=threshold),
        return_dict_in_generate=is_dict,
        **kwargs,
    )
    assert (out.sequences if is_dict else out).tolist() == expected.tolist()


def test_num_return_sequences(target):
    out = target.generate(
        make_prompt(5), assistant_model=TableDrafter(64), do_sample=True, num_return_sequences=3, max_new_tokens=12
    )
    assert out.shape == (3, 17) and len({tuple(row) for row in out.tolist()}) == 3


def test_features_of_padded_rows(target):
    ids, mask = padded_prompts((3, 12, 7), "left")
    drafter, plain = greedy_oracle(target, ids, range(5), attention_mask=mask, max_new_tokens=20)
    target.generate(ids, attention_mask=mask, assistant_model=drafter, max_new_tokens=20, do_sample=False)
    for row, known in enumerate(drafter.rows):
        features = torch.cat(drafter.state.features[row])
        with torch.no_grad():
            states = target(torch.tensor([known]), output_hidden_states=True).hidden_states
        expected = torch.cat([states[1], states[3]], -1)[0, : features.shape[0]]
        assert features.shape[0] > mask[row].sum() + 10
        torch.testing.assert_close(features, expected, atol=1e-3, rtol=1e-3)


def test_streamer_of_a_batch_is_fed_as_in_plain_generate(target):
    class Recorder:
        def __init__(self):
            self.values = []

        def put(self, value):
            self.values.append(value.tolist())

        def end(self):
            self.values.append("end")

    ids = make_prompt(6, batch_size=3)
    streams = Recorder(), Recorder()
    target.generate(ids, streamer=streams[0], max_new_tokens=12, do_sample=False)
    target.generate(ids, streamer=streams[1], assistant_model=TableDrafter(64), max_new_tokens=12, do_sample=False)
    assert streams[0].values == streams[1].values


def speculate(target, drafter, ids, mask, **kwargs):
    return target.generate(ids, attention_mask=mask, assistant_model=drafter, **kwargs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_accept_on_their_own(any_target, side):
    """Each row of a batch goes through the very rounds that it goes through alone."""
    ids, mask = padded_prompts((5, 12, 1, 9), side)
    kwargs = {"max_new_tokens": 24, "do_sample": False}
    pattern = [0, 4, 1, 3, 2, 4, 4]
    drafter, plain = greedy_oracle(any_target, ids, pattern, attention_mask=mask, max_new_tokens=24, uneven=True)
    assert speculate(any_target, drafter, ids, mask, **kwargs).tolist() == plain.tolist()
    assert drafter.anchors_were_right
    stats = drafter.last_stats
    assert stats.row_ids[:4] == [0, 1, 2, 3] and stats.accepted_lens[:4] == [0, 4, 1, 3]
    for row in range(4):
        turned = pattern[row:] + pattern[:row]
        alone = OracleDrafter([drafter.rows[row]], turned, 64)
        speculate(any_target, alone, ids[row : row + 1], mask[row : row + 1], **kwargs)
        emitted = [n for n, row_id in zip(stats.emitted_lens, stats.row_ids, strict=True) if row_id == row]
        assert emitted == alone.last_stats.emitted_lens
    assert stats.tau > 2.8 and stats.new_tokens == 96


def test_tau_does_not_fall_with_the_batch(target):
    taus = []
    for batch_size in (1, 4):
        ids = make_prompt(8, batch_size=batch_size)
        drafter, plain = greedy_oracle(target, ids, [0, 4, 2, 1, 3], max_new_tokens=64, uneven=True)
        out = target.generate(ids, assistant_model=drafter, max_new_tokens=64, do_sample=False)
        assert out.tolist() == plain.tolist()
        taus.append(drafter.last_stats.tau)
    assert taus[1] == pytest.approx(taus[0], rel=0.05) and taus[0] > 2.8


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rows_that_are_done_leave_the_work(family, monkeypatch):
    target = make_target(family)
    ids, mask = padded_prompts((5, 14, 2, 9), "left")
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False)
    eos = [int(plain[0, 14]), int(plain[1, 14 + 6]), int(plain[2, 14 + 17])]
    kwargs = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": eos}
    expected = target.generate(ids, attention_mask=mask, **kwargs)
    drafter, _ = greedy_oracle(target, ids, range(5), attention_mask=mask, max_new_tokens=30, uneven=True)
    sizes, forward = [], target.forward

    @functools.wraps(forward)
    def noted(input_ids, **inputs):
        cache = inputs[CACHE_NAME]
        num_rows = cache.layers[0].keys.shape[0] if cache.layers[0].is_initialized else input_ids.shape[0]
        sizes.append((num_rows, cache.get_seq_length()))
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(target, "forward", noted)
    assert speculate(target, drafter, ids, mask, **kwargs).tolist() == expected.tolist()
    rows = [size for size, _ in sizes]
    # Row 0 ends on its first token.
    assert rows[0] == 4 and rows[1] <= 3 and rows == sorted(rows, reverse=True) and rows[-1] < rows[1]
    lengths = [next((i + 1 for i, t in enumerate(row) if t in eos), 30) for row in expected[:, 14:].tolist()]
    assert len(set(lengths)) > 2 and drafter.last_stats.new_tokens == sum(lengths)
    assert max(width for _, width in sizes) <= 14 + 30


@pytest.mark.parametrize("eos", [False, True])
def test_all_that_is_returned(any_target, eos):
    """Scores, logits and cache are those of plain `generate()`, also of rows that ended long before the others."""
    ids, mask = padded_prompts((5, 12, 1), "left")
    plain = any_target.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
    kwargs = {"max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True, "output_scores": True,
              "output_logits": True, "repetition_penalty": 1.1}  # fmt: skip
    kwargs["eos_token_id"] = [int(plain[0, 12 + 2]), int(plain[1, 12 + 9])] if eos else None
    expected = any_target.generate(ids, attention_mask=mask, **kwargs)
    drafter, _ = greedy_oracle(any_target, ids, [0, 4, 2], attention_mask=mask, max_new_tokens=24, uneven=True)
    out = speculate(any_target, drafter, ids, mask, **kwargs)
    assert out.sequences.tolist() == expected.sequences.tolist()
    assert len(out.scores) == len(out.logits) == len(expected.scores) == out.sequences.shape[1] - 12
    for ours, theirs in zip(out.scores + out.logits, expected.scores + expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    more_mask = torch.cat([mask, torch.ones(3, out.sequences.shape[1] - 12, dtype=torch.long)], 1)
    longer = [
        any_target.generate(
            out.sequences, attention_mask=more_mask, **{CACHE_NAME: cache}, max_new_tokens=12, do_sample=False
        ).tolist()
        for cache in (out[CACHE_NAME], expected[CACHE_NAME])
    ]
    assert longer[0] == longer[1]


def test_cache_of_the_user_goes_on(target):
    ids, mask = padded_prompts((5, 12, 1), "left")
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False)
    cache = DynamicCache(config=target.config)
    drafter, _ = greedy_oracle(target, ids, [0, 4, 2], attention_mask=mask, max_new_tokens=30, uneven=True)
    out = speculate(target, drafter, ids, mask, **{CACHE_NAME: cache}, max_new_tokens=17, do_sample=False)
    more_mask = torch.cat([mask, torch.ones(3, 17, dtype=torch.long)], 1)
    more = target.generate(out, attention_mask=more_mask, **{CACHE_NAME: cache}, max_new_tokens=13, do_sample=False)
    assert cache.get_seq_length() == 12 + 29 and more.tolist() == plain.tolist()


def test_padding_is_caught_up_piece_by_piece(target, monkeypatch):
    monkeypatch.setattr(decode, "CATCH_UP_LEN", 5)
    ids, mask = padded_prompts((5, 12), "left")
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False)
    kwargs = {"max_new_tokens": 30, "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
              "eos_token_id": int(plain[0, 12])}  # fmt: skip
    expected = target.generate(ids, attention_mask=mask, **kwargs)
    drafter, _ = greedy_oracle(target, ids, [4], attention_mask=mask, max_new_tokens=30)
    out = speculate(target, drafter, ids, mask, **kwargs)
    assert out.sequences.tolist() == expected.sequences.tolist() and out.sequences.shape[1] > 12 + 20
    for ours, theirs in zip(out.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


OPTIONS = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "encoder_no_repeat_ngram": {"encoder_no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": list(range(20, 30))},
    "length_penalty": {"exponential_decay_length_penalty": (5, 1.4), "eos_token_id": 13},
    "bias": {"sequence_bias": [[[9], 8.0], [[4, 11], -9.0]]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_processors_see_each_row_as_in_plain_generate(target, name):
    ids, mask = padded_prompts((5, 12, 3, 8), "left")
    kwargs = OPTIONS[name] | {"max_new_tokens": 30, "do_sample": False}
    if name.startswith("encoder"):
        # A prompt then stands for two rows.
        ids, mask, kwargs["num_return_sequences"] = ids[:2], mask[:2], 2
        kwargs |= {"do_sample": True, "top_k": 1}
    plain = target.generate(ids, attention_mask=mask, **kwargs)
    rows = [row[mask.shape[1] - int(mask[i * mask.shape[0] // 4].sum()) :] for i, row in enumerate(plain.tolist())]
    drafter = OneHotOracle(rows, range(5), 64, uneven=True)
    assert speculate(target, drafter, ids, mask, **kwargs).tolist() == plain.tolist()
    stats = drafter.last_stats
    assert len(set(stats.accepted_lens[:4])) > 1 and stats.tau > 2


class Callback(StoppingCriteria):
    """Notes every call, tells rows apart by their place, and ends one after some calls."""

    def __init__(self, num_calls):
        self.num_calls, self.calls = num_calls, []

    def __call__(self, input_ids, scores, **kwargs):
        self.calls.append((input_ids.tolist(), None if scores is None else len(scores)))
        return torch.tensor([row == 1 and len(self.calls) >= self.num_calls for row in range(input_ids.shape[0])])


@pytest.mark.parametrize("eos", [None, 13])
@pytest.mark.parametrize("num_calls", [1, 7, 99])
def test_callbacks_are_called_as_in_plain_generate(target, eos, num_calls):
    ids, mask = padded_prompts((5, 12, 3), "left")
    drafter, _ = greedy_oracle(target, ids, range(5), attention_mask=mask, max_new_tokens=25, uneven=True)
    ours, theirs = Callback(num_calls), Callback(num_calls)
    kwargs = {"max_new_tokens": 25, "do_sample": False, "eos_token_id": eos, "return_dict_in_generate": True,
              "output_scores": True, "attention_mask": mask}  # fmt: skip
    plain = target.generate(ids, stopping_criteria=[theirs], **kwargs)
    out = target.generate(ids, assistant_model=drafter, stopping_criteria=[ours], **kwargs)
    assert out.sequences.tolist() == plain.sequences.tolist() and ours.calls == theirs.calls


def test_stop_strings_of_a_batch(tiny_tokenizer):
    target = make_target(vocab_size=260)
    ids = make_prompt(9, batch_size=3, vocab_size=250)
    drafter, plain = greedy_oracle(target, ids, range(5), max_new_tokens=40, uneven=True)
    stops = [tiny_tokenizer.decode(plain[row, 9 + place]) for row, place in ((0, 12), (1, 20))]
    kwargs = {"max_new_tokens": 40, "do_sample": False, "stop_strings": stops, "tokenizer": tiny_tokenizer,
              "eos_token_id": 259}  # fmt: skip
    expected = target.generate(ids, **kwargs)
    assert target.generate(ids, assistant_model=drafter, **kwargs).tolist() == expected.tolist()
    assert len({row.count(0) for row in expected.tolist()}) > 1
    assert len(set(drafter.last_stats.accepted_lens[:3])) > 1


class Unknown(LogitsProcessor):
    def __init__(self):
        self.prefixes = []

    def __call__(self, input_ids, scores):
        self.prefixes.append(input_ids.tolist())
        return scores


@pytest.mark.parametrize("eos", [False, True])
def test_unknown_processors_see_the_whole_batch(target, eos):
    ids, mask = padded_prompts((5, 12, 3), "left")
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    kwargs = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": int(plain[0, 12 + 5]) if eos else None,
              "return_dict_in_generate": True, "output_logits": True}  # fmt: skip
    drafter, _ = greedy_oracle(target, ids, range(5), attention_mask=mask, max_new_tokens=20, uneven=True)
    ours, theirs = Unknown(), Unknown()
    expected = target.generate(ids, attention_mask=mask, logits_processor=[theirs], **kwargs)
    out = speculate(target, drafter, ids, mask, logits_processor=[ours], **kwargs)
    assert out.sequences.tolist() == expected.sequences.tolist() and ours.prefixes == theirs.prefixes
    for mine, other in zip(out.logits, expected.logits, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("bloom", {}),
        (
            "llama",
            {
                "max_position_embeddings": 16,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            },
        ),
    ],
)
def test_targets_that_cannot_tell_rows_apart_keep_them_in_step(family, fields):
    target = make_target(family, **fields)
    ids, mask = padded_prompts((5, 12, 3), "left")
    drafter, plain = greedy_oracle(target, ids, [4, 1], attention_mask=mask, max_new_tokens=20, uneven=True)
    out = speculate(target, drafter, ids, mask, max_new_tokens=20, do_sample=False)
    assert out.tolist() == plain.tolist()
    emitted = drafter.last_stats.emitted_lens
    assert emitted == [n for n in emitted[::3] for _ in range(3)] and max(emitted) == 2


@pytest.mark.parametrize("lengths", [(10, 4, 7), (7, 10, 10)])
@pytest.mark.parametrize("returned", [False, True])
def test_learned_positions_up_to_the_last(lengths, returned):
    """Drafts of a row that has no room for them take no position that the target lacks."""
    # The last of 30 tokens needs none: it is not processed.
    target = make_target("opt", ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=29)
    ids, mask = padded_prompts(lengths, "right")
    drafter, plain = greedy_oracle(target, ids, [4, 0, 2], attention_mask=mask, max_new_tokens=20, uneven=True)
    options = {"max_new_tokens": 20, "do_sample": False, "return_dict_in_generate": returned}
    out = speculate(target, drafter, ids, mask, **options)
    assert (out.sequences if returned else out).tolist() == plain.tolist() and drafter.last_stats.tau > 2


def test_num_return_sequences_rows_are_independent(target):
    ids = make_prompt(5)
    plain = target.generate(ids, max_new_tokens=30, do_sample=False)
    drafter = OneHotOracle(plain.tolist() * 4, range(5), 64, uneven=True)
    out = target.generate(
        ids, assistant_model=drafter, do_sample=True, top_k=1, num_return_sequences=4, max_new_tokens=30
    )
    assert out.tolist() == plain.tolist() * 4
    assert drafter.last_stats.accepted_lens[:4] == [0, 1, 2, 3]


def test_rows_have_their_own_draft_lengths(target):
    ids = make_prompt(7, batch_size=3)
    drafter, plain = greedy_oracle(target, ids, range(5), max_new_tokens=40, uneven=True, enable_confidence_head=True)
    speculation = SpeculationConfig(confidence_threshold=0.5)
    out = target.generate(ids, assistant_model=drafter, speculation=speculation, max_new_tokens=40, do_sample=False)
    assert out.tolist() == plain.tolist()
    stats = drafter.last_stats
    # The oracle is sure of exactly the slots that it gets right.
    assert stats.verified_lens == stats.accepted_lens and stats.verified_lens[:6] == [0, 1, 2, 1, 2, 3]
