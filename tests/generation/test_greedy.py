"""Greedy output equals plain `generate()`, token for token."""

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_targets import make_prompt, make_target, padded_prompts

from dspark_hf import DSparkModel, SpeculationConfig
from dspark_hf.data.features import TargetFeatures


@pytest.mark.parametrize("num_slots", [1, 4, 7])
@pytest.mark.parametrize("length", [1, 5, 20])
def test_every_accepted_length(any_target, num_slots, length):
    ids = make_prompt(length)
    drafter, plain = greedy_oracle(any_target, ids, range(num_slots + 1), num_slots=num_slots)
    out = any_target.generate(ids, assistant_model=drafter, max_new_tokens=64, do_sample=False)
    assert out.tolist() == plain.tolist()
    assert drafter.anchors_were_right
    accepted = drafter.last_stats.accepted_lens
    assert set(accepted) == set(range(num_slots + 1))
    # All but the last rounds, which the budget shortens, go as the oracle wants.
    full = [i for i, verified in enumerate(drafter.last_stats.verified_lens) if verified == num_slots]
    assert all(accepted[i] == i % (num_slots + 1) for i in full)


def test_features_are_the_taps_of_the_committed_positions(any_target):
    ids = make_prompt(11)
    drafter, plain = greedy_oracle(any_target, ids, range(5), num_slots=4, taps=(0, 2))
    any_target.generate(ids, assistant_model=drafter, max_new_tokens=40, do_sample=False)
    with torch.no_grad():
        states = any_target(plain, output_hidden_states=True).hidden_states
    expected = torch.cat([states[1], states[3]], -1)[0]
    features = torch.cat(drafter.state.features[0])
    assert 40 <= features.shape[0] <= 50
    torch.testing.assert_close(features, expected[: features.shape[0]], atol=1e-3, rtol=1e-3)


def test_features_of_streams_before_the_batch_are_their_mean():
    target = make_target("gemma3n_text")
    ids, mask = padded_prompts([11, 11])
    drafter, plain = greedy_oracle(target, ids, range(5), num_slots=4, taps=(0, 2), max_new_tokens=20, uneven=True)
    assert torch.equal(target.generate(ids, assistant_model=drafter, max_new_tokens=20, do_sample=False), plain)
    states = target.model(plain, output_hidden_states=True)
    expected = torch.cat([states.hidden_states[tap].mean(0) for tap in (1, 3)], -1)  # [B, S, L * E]
    for row in range(2):
        features = torch.cat(drafter.state.features[row])
        torch.testing.assert_close(features, expected[row, : len(features)], atol=1e-3, rtol=1e-3)
    features, last = TargetFeatures(target, [0, 2])(plain)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, states.last_hidden_state, atol=1e-4, rtol=1e-4)
    # Its MLPs may differ in width from layer to layer, those of a drafter do not.
    drafter = DSparkModel.from_target(target, mask_token_id=63, block_size=4, target_layer_ids=[0, 2])
    assert drafter.config.decoder_config.intermediate_size == max(target.config.intermediate_size) == 48
    assert torch.equal(target.generate(ids, assistant_model=drafter, max_new_tokens=20, do_sample=False), plain)


@settings(max_examples=40)
@given(data=st.data())
def test_eos_and_budget_are_exact(target, data):
    ids = make_prompt(data.draw(st.integers(1, 30), "prompt"), seed=data.draw(st.integers(0, 99), "seed"))
    num_slots = data.draw(st.integers(1, 8), "slots")
    pattern = data.draw(st.lists(st.integers(0, num_slots), min_size=1, max_size=5), "pattern")
    budget = data.draw(st.integers(1, 30), "budget")
    drafter, plain = greedy_oracle(target, ids, pattern, max_new_tokens=30, num_slots=num_slots)
    continuation = plain[0, ids.shape[1] :].tolist()
    eos = data.draw(st.lists(st.sampled_from(continuation), max_size=2), "eos") or None
    kwargs = {"max_new_tokens": budget, "eos_token_id": eos, "do_sample": False}
    expected = target.generate(ids, **kwargs)
    out = target.generate(ids, assistant_model=drafter, **kwargs)
    assert out.tolist() == expected.tolist()
    stats = drafter.last_stats
    assert stats.new_tokens == out.shape[1] - ids.shape[1] == 1 + sum(stats.emitted_lens)
    # Nothing is drafted or verified that the budget cannot hold.
    made = 1
    for verified_len, emitted_len in zip(stats.verified_lens, stats.emitted_lens, strict=True):
        assert verified_len <= max(0, budget - made - 1)
        made += emitted_len


def test_coupled_exactness_over_many_prompts():
    num_exact = 0
    for seed in range(16):
        target = make_target(("llama", "qwen3", "mistral", "gemma3_text")[seed % 4], seed=seed)
        drafter = TableDrafter(64, num_slots=1 + seed % 7)
        for trial in range(2):
            ids = make_prompt(1 + (7 * seed + trial) % 23, seed=1000 + seed * 2 + trial)
            plain = target.generate(ids, max_new_tokens=24, do_sample=False)
            out = target.generate(ids, assistant_model=drafter, max_new_tokens=24, do_sample=False)
            assert out.tolist() == plain.tolist(), (seed, trial)
            num_exact += 1
    assert num_exact == 32


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompt(any_target, side):
    ids, pads = make_prompt(9), torch.zeros(1, 4, dtype=torch.long)
    ids = torch.cat([pads, ids] if side == "left" else [ids, pads], 1)
    mask = (ids != 0).long()
    drafter, plain = greedy_oracle(any_target, ids, range(5), attention_mask=mask)
    out = any_target.generate(ids, attention_mask=mask, assistant_model=drafter, max_new_tokens=64, do_sample=False)
    assert out.tolist() == plain.tolist()
    assert drafter.anchors_were_right
    assert drafter.last_stats.tau > 2


def test_max_draft_len_and_threshold_shorten_verification(target):
    ids = make_prompt(6)
    drafter, plain = greedy_oracle(target, ids, range(8), num_slots=7, enable_confidence_head=True)
    out = target.generate(
        ids,
        assistant_model=drafter,
        speculation=SpeculationConfig(max_draft_len=3),
        max_new_tokens=64,
        do_sample=False,
    )
    assert out.tolist() == plain.tolist()
    assert max(drafter.last_stats.verified_lens) == max(drafter.offered) == 3

    drafter, plain = greedy_oracle(target, ids, range(8), num_slots=7, enable_confidence_head=True)
    speculation = SpeculationConfig(confidence_threshold=0.5)
    out = target.generate(ids, assistant_model=drafter, speculation=speculation, max_new_tokens=64, do_sample=False)
    assert out.tolist() == plain.tolist()
    stats = drafter.last_stats
    # The oracle is sure of exactly the slots that it gets right.
    assert stats.verified_lens == stats.accepted_lens and set(stats.verified_lens) == set(range(8))


GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4}
OTHERS = {
    "qwen2": {},
    "phi3": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma4_text": {},
    "mixtral": {},
    "qwen3_moe": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": GPT2,
    "falcon": {"num_kv_heads": 2},
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_architectures(family):
    """Also those that are not tapped selectively (Falcon) or take no position ids."""
    target = make_target(family, **OTHERS[family])
    ids = make_prompt(13)
    drafter, plain = greedy_oracle(target, ids, range(5), max_new_tokens=40)
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=40, do_sample=False)
    assert out.tolist() == plain.tolist()
    assert drafter.anchors_were_right and drafter.last_stats.tau > 2


# Whatever transformers makes of a tiny config, without a word about the family.
MANY = """
    apertus arcee aria_text biogpt bloom cohere cohere2 cohere2_moe diffllama ernie4_5 exaone4 flex_olmo gemma glm
    glm4 gpt_bigcode gpt_neox_japanese granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe
    jais2 jetmoe hyperclovax llama4_text ministral ministral3 nanochat nemotron olmo olmo2 olmo3 olmoe persimmon
    phi phimoe
""".split()


@pytest.mark.slow
@pytest.mark.parametrize("family", MANY)
def test_many_architectures(family):
    target = make_target(family)
    for lengths in ((9,), (5, 12, 1)):
        ids, mask = padded_prompts(lengths)
        drafter, plain = greedy_oracle(
            target, ids, [4, 1, 0, 3], max_new_tokens=12, attention_mask=mask, uneven=True, taps=(0,)
        )
        out = target.generate(ids, attention_mask=mask, assistant_model=drafter, max_new_tokens=12, do_sample=False)
        assert out.tolist() == plain.tolist() and drafter.anchors_were_right


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("block_size", [1, 4])
def test_real_drafter(family, block_size):
    target = make_target(family)
    fields = {"block_size": block_size, "markov_rank": 8, "num_hidden_layers": 2, "target_layer_ids": [0, 2]}
    drafter = DSparkModel.from_target(target, **fields)
    for length in (1, 7, 30):
        ids = make_prompt(length)
        plain = target.generate(ids, max_new_tokens=40, do_sample=False)
        out = target.generate(ids, assistant_model=drafter, max_new_tokens=40, do_sample=False)
        assert out.tolist() == plain.tolist()
        assert drafter.last_stats.rounds <= 39


def test_real_drafter_in_another_dtype(target):
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1).to(torch.bfloat16)
    ids = make_prompt(7)
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=30, do_sample=False)
    assert out.tolist() == target.generate(ids, max_new_tokens=30, do_sample=False).tolist()


def test_bfloat16_target_differs_only_at_ties():
    target = make_target().to(torch.bfloat16)
    drafter = TableDrafter(64, num_slots=4)
    kwargs = {"max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    for seed in range(5):
        ids = make_prompt(12, seed=seed)
        plain = target.generate(ids, **kwargs)
        out = target.generate(ids, assistant_model=drafter, **kwargs)
        differs = (out.sequences != plain.sequences)[0, 12:]
        if not differs.any():
            continue
        first = int(differs.int().argmax())
        ours, theirs = out.logits[first][0], plain.logits[first][0]
        noise = (ours - theirs).abs().max()
        gap = theirs.max() - theirs[out.sequences[0, 12 + first]]
        assert gap <= 2 * noise and noise < 0.1 * theirs.abs().max()
