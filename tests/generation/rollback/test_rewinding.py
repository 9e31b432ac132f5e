"""Targets whose cache holds more than keys and values: rejected tokens leave no trace."""

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target
from transformers import DynamicCache

from dspark_hf import DSparkModel
from dspark_hf.generation import PromptLookup
from dspark_hf.generation.rollback.rewinding import MAX_REPLAYED

RECURRENT = ("qwen3_next", "falcon_h1", "zaya")
MORE_RECURRENT = (
    "bailing_hybrid",
    "bamba",
    "granitemoehybrid",
    "kimi_linear",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
)
TARGETS = [*RECURRENT, "lfm2", "deepseek_v4", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_RECURRENT)]


@pytest.fixture(scope="module", params=TARGETS)
def target(request):
    return make_target(request.param)


def states_of(model, ids):
    with torch.no_grad():
        return model(ids, output_hidden_states=True, use_cache=False)


def cache_tensors(cache):
    """All tensors and counts of a cache, by name."""
    found = {}
    for index, layer in enumerate(cache.layers):
        for name, value in vars(layer).items():
            for key, part in value.items() if isinstance(value, dict) else [(None, value)]:
                if isinstance(part, (torch.Tensor, int)):
                    found[index, type(layer).__name__, name, key] = part
    return found


@pytest.mark.parametrize(("length", "pattern"), [(1, (0, 1, 2, 3, 4)), (21, (2,))])
def test_greedy(target, length, pattern):
    """Every accepted length; and with two of four accepted each time, more and more tokens are to be replayed."""
    ids = make_prompt(length, seed=length)
    drafter, plain = greedy_oracle(target, ids, pattern, max_new_tokens=45)
    replayed = []
    prepare = target.prepare_inputs_for_generation

    def spy(*args, **kwargs):
        if not kwargs.get("is_first_iteration"):
            replayed.append(kwargs["next_sequence_length"] - 5)
        return prepare(*args, **kwargs)

    target.prepare_inputs_for_generation = spy
    try:
        out = target.generate(ids, assistant_model=drafter, max_new_tokens=45, do_sample=False)
    finally:
        del target.prepare_inputs_for_generation
    assert out.tolist() == plain.tolist()
    assert drafter.anchors_were_right and drafter.last_stats.tau > 2.5
    assert max(replayed) <= MAX_REPLAYED
    if target._is_stateful and target.config.model_type != "deepseek_v4":
        assert max(replayed) > 5
    else:
        assert max(replayed) <= 0


def test_logits_and_features(target):
    """Each token's logits and features are those of one pass over the whole text."""
    torch.manual_seed(1)
    ids = make_prompt(10)
    drafter = TableDrafter(64, num_slots=3, scale=0.5)
    out = target.generate(
        ids,
        assistant_model=drafter,
        max_new_tokens=40,
        do_sample=True,
        top_k=0,
        temperature=2.0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert 0 in drafter.last_stats.accepted_lens and max(drafter.last_stats.accepted_lens) > 0
    expected = states_of(target, out.sequences)
    logits = torch.cat(out.logits)
    torch.testing.assert_close(logits, expected.logits[0, 9:-1].float(), atol=2e-2, rtol=1e-3)
    taps = [expected.hidden_states[tap] for tap in (1, 3)]
    taps = torch.cat([tap.mean(2) if tap.dim() == 4 else tap for tap in taps], -1)[0]
    features = torch.cat(drafter.state.features[0])
    torch.testing.assert_close(features, taps[: features.shape[0]], atol=5e-2, rtol=1e-3)


def test_returned_cache(target):
    """It holds what plain generate() leaves, and layers of the same classes."""
    ids = make_prompt(9)
    drafter, _ = greedy_oracle(target, ids, (1, 2, 0, 4), max_new_tokens=24)
    ours, plain = DynamicCache(config=target.config), DynamicCache(config=target.config)
    target.generate(ids, assistant_model=drafter, past_key_values=ours, max_new_tokens=20, do_sample=False)
    target.generate(ids, past_key_values=plain, max_new_tokens=20, do_sample=False)
    ours, plain = cache_tensors(ours), cache_tensors(plain)
    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(ours[name], expected, atol=1e-2, rtol=1e-2)


def test_returned_cache_of_lookup():
    """Also where the end comes inside a block, whose accepted tokens must be in the states."""
    target, ids = make_target("qwen3_next"), make_prompt(9)
    # Few tokens, which repeat themselves.
    kwargs = {"max_new_tokens": 40, "do_sample": False, "suppress_tokens": [*range(3), *range(5, 64)]}
    lens = []
    for length in range(20, 26):
        stop = [lambda ids, scores, length=length, **_: torch.tensor([ids.shape[1] >= length])]
        lookup, cache = PromptLookup(min_ngram=1), DynamicCache(config=target.config)
        target.generate(ids, assistant_model=lookup, past_key_values=cache, stopping_criteria=stop, **kwargs)
        lens.append((lookup.last_stats.verified_lens[-1], lookup.last_stats.emitted_lens[-1]))
        assert cache.get_seq_length() == length - 1
    assert any(1 < emitted <= verified for verified, emitted in lens)


def test_second_turn(target):
    """A later turn goes on with the cache, and the drafter's context with it."""
    ids = make_prompt(9)
    drafter, cache = TableDrafter(64, num_slots=3, scale=0.5), DynamicCache(config=target.config)
    plain_cache = DynamicCache(config=target.config)
    for turn in range(2):
        kwargs = {"max_new_tokens": 12, "do_sample": False}
        out = target.generate(ids, assistant_model=drafter, past_key_values=cache, **kwargs)
        plain = target.generate(ids, past_key_values=plain_cache, **kwargs)
        assert out.tolist() == plain.tolist()
        assert drafter.state.context_lens[0] >= ids.shape[1]
        ids = torch.cat([out, make_prompt(4, seed=turn)], 1)


def test_rows_that_end_at_different_times(target):
    ids = make_prompt(7, batch_size=3)
    plain = target.generate(ids, max_new_tokens=14, do_sample=False)
    kwargs = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": [int(plain[0, 10]), int(plain[2, 16])]}
    expected = target.generate(ids, **kwargs)
    for more in ({}, {"return_dict_in_generate": True}):
        drafter, _ = greedy_oracle(target, ids, (3, 0, 2), max_new_tokens=14)
        out = target.generate(ids, assistant_model=drafter, **kwargs, **more)
        assert (out.sequences if more else out).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["qwen3_next", "deepseek_v4"])
def test_recorded_states(name):
    target = make_target(name)
    ids = make_prompt(6)
    drafter, _ = greedy_oracle(target, ids, (1, 3, 0), max_new_tokens=20)
    kwargs = {"max_new_tokens": 16, "do_sample": False, "return_dict_in_generate": True, "output_hidden_states": True}
    out = target.generate(ids, assistant_model=drafter, **kwargs)
    expected = target.generate(ids, **kwargs)
    assert len(out.hidden_states) == len(expected.hidden_states) == 16
    for entry, plain in zip(out.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(entry, plain, atol=1e-2, rtol=1e-3)
    with pytest.raises(ValueError, match="output_attentions is not supported together with a drafter for"):
        target.generate(ids, assistant_model=drafter, output_attentions=True, **kwargs)


@pytest.mark.parametrize("padded", [False, True])
def test_rows_in_step(target, padded):
    ids = make_prompt(11, batch_size=3)
    mask = torch.ones_like(ids)
    if padded:
        if target.config.model_type == "deepseek_v4":
            pytest.skip("refused, see test_padding_of_compressed_tokens")
        mask[0, :4] = mask[2, :7] = 0
    drafter, plain = greedy_oracle(
        target, ids * mask, (3, 4, 0, 2), max_new_tokens=30, attention_mask=mask, uneven=True
    )
    out = target.generate(ids * mask, attention_mask=mask, assistant_model=drafter, max_new_tokens=30, do_sample=False)
    assert out.tolist() == plain.tolist()
    assert drafter.anchors_were_right and drafter.last_stats.tau > 1


def test_real_drafter():
    target = make_target("deepseek_v4")
    fields = {"block_size": 4, "markov_rank": 8, "num_hidden_layers": 1, "target_layer_ids": [0, 2]}
    drafter = DSparkModel.from_target(target, family="qwen3", num_key_value_heads=2, **fields)
    ids = make_prompt(7)
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=20, do_sample=False)
    assert out.tolist() == target.generate(ids, max_new_tokens=20, do_sample=False).tolist()


def refuse_to_run(target, monkeypatch):
    def forward(*args, **kwargs):
        raise AssertionError("the target ran")

    monkeypatch.setattr(target, "forward", forward)


@pytest.mark.parametrize("name", ["jamba", "zamba", "recurrent_gemma", "zamba2"])
def test_states_that_blocks_cannot_follow(name, monkeypatch):
    target = make_target(name)
    refuse_to_run(target, monkeypatch)
    with pytest.raises(ValueError, match="keeps a state that rejected tokens cannot be taken out of"):
        target.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=8)


def test_padding_of_compressed_tokens(monkeypatch):
    target = make_target("deepseek_v4")
    refuse_to_run(target, monkeypatch)
    ids = make_prompt(6, batch_size=2)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with pytest.raises(ValueError, match="DeepseekV4ForCausalLM compresses tokens by cache column.*of one length"):
        target.generate(ids, attention_mask=mask, assistant_model=TableDrafter(64), max_new_tokens=8)


def test_cache_without_attention(monkeypatch):
    target = make_target("qwen3_next", layer_types=["linear_attention"] * 4)
    refuse_to_run(target, monkeypatch)
    with pytest.raises(ValueError, match="Qwen3NextForCausalLM uses a DynamicCache of LinearAttentionLayer"):
        target.generate(make_prompt(5), assistant_model=TableDrafter(64), max_new_tokens=8)


@pytest.mark.parametrize("name", ["qwen3_next", "deepseek_v4"])
def test_offloaded_cache(name, monkeypatch):
    target = make_target(name)
    refuse_to_run(target, monkeypatch)
    cache = DynamicCache(config=target.config)
    cache.offloading = True
    with pytest.raises(ValueError, match="uses an offloaded DynamicCache of"):
        target.generate(make_prompt(5), past_key_values=cache, assistant_model=TableDrafter(64), max_new_tokens=8)
