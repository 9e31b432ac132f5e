"""A drafter that is never right is let go of, named, and tried again; the output stays as it is."""

import warnings

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from fake_drafters import OracleDrafter, TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target

import dspark_hf.generation.lengths.account as account
import dspark_hf.generation.lengths.safety as safety
from dspark_hf import DSparkModel, PrefixScheduler, PromptLookup, SpeculationConfig

GREEDY = {"max_new_tokens": 256, "do_sample": False}


@pytest.fixture(scope="module")
def long_text(target):
    ids = make_prompt(6)
    return ids, target.generate(ids, **GREEDY)


def warned(record):
    return [str(entry.message) for entry in record if "Hardly any draft is accepted" in str(entry.message)]


def generate(target, ids, drafter, **speculation):
    """256 greedy tokens, and the warnings about drafts that were given."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        out = target.generate(ids, assistant_model=drafter, speculation=SpeculationConfig(**speculation), **GREEDY)
    return out.tolist(), warned(record)


def test_a_useless_drafter_is_let_go_of_and_named(target, long_text):
    ids, plain = long_text
    drafter, _ = greedy_oracle(target, ids, [0], max_new_tokens=256)
    drafter.config.target_name_or_path = "someone/else"
    # One answer is not enough to accuse it, but enough to let go.
    assert generate(target, ids, drafter) == (plain.tolist(), []) and drafter.anchors_were_right
    stats = drafter.last_stats
    assert stats.rounds == 255 and stats.paused_rounds == 254 - len(drafter.offered) > 220
    assert f"paused, as drafts did not pay: {stats.paused_rounds} of 255 rounds, most of them" in stats.summary()
    assert f"paused_rounds={stats.paused_rounds})" in repr(stats)
    # What is known of it is kept: the next answers cost tries alone.
    told, num_tried = [], len(drafter.offered)
    for _ in range(8):
        told += generate(target, ids, drafter)[1]
    assert len(drafter.offered) - num_tried <= 8 * 255 / 64 * 3
    # And it is said once per drafter.
    assert len(told) == 1 and "0 of 16 at the first slot (0.0%)" in told[0]
    assert "made for someone/else) belongs to another" in told[0]
    assert "`dspark diagnose TARGET DRAFTER` finds out" in told[0]


def test_without_the_net_nothing_is_paused_or_said(target, long_text):
    ids, plain = long_text
    drafter, _ = greedy_oracle(target, ids, [0], max_new_tokens=256)
    assert generate(target, ids, drafter, policy="fixed") == (plain.tolist(), [])
    assert drafter.last_stats.paused_rounds == 0 and len(drafter.offered) > 240
    assert "paused" not in repr(drafter.last_stats)


def test_a_drafter_that_has_won_bears_more(target, long_text):
    ids, _ = long_text
    paused = []
    for wins_before in (False, True):
        drafter, _ = greedy_oracle(target, ids, [4], max_new_tokens=256)
        if wins_before:
            generate(target, ids, drafter)
            assert drafter.last_stats.paused_rounds == 0
        drafter.pattern, drafter.num_rounds = [0] * 18 + [4] * 300, 0
        generate(target, ids, drafter)
        paused.append(drafter.last_stats.paused_rounds)
    assert paused[0] >= 32 and paused[1] == 0


def test_sampled_calls_start_anew(target, long_text):
    ids, runs = long_text[0], []
    drafter = TableDrafter(64)
    for _ in range(3):
        torch.manual_seed(5)
        runs.append(target.generate(ids, assistant_model=drafter, max_new_tokens=100, do_sample=True).tolist())
        assert 0 < drafter.last_stats.paused_rounds < 100
    assert runs[0] == runs[1] == runs[2]


def test_another_binding_is_judged_by_itself(target, long_text):
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    known = safety.Evidence.of(drafter, 4, False, 1)
    assert safety.Evidence.of(drafter, 4, False, 1) is known is not safety.Evidence.of(drafter, 4, False, 2)
    drafter.bind(make_target())
    assert safety.Evidence.of(drafter, 4, False, 1) is not known


def test_a_processor_that_drafts_do_not_know_is_named(target, long_text):
    def shifted(input_ids, scores):
        return scores.roll(1 + input_ids.shape[1] % 3, -1)

    ids, _ = long_text
    drafter, _ = greedy_oracle(target, ids, [4], max_new_tokens=256)
    options = {"logits_processor": [shifted], **GREEDY}
    plain = target.generate(ids, **options)
    with pytest.warns(UserWarning, match="Drafts are made without custom logits processors and guidance"):
        for _ in range(4):
            assert target.generate(ids, assistant_model=drafter, **options).tolist() == plain.tolist()


@pytest.mark.parametrize(("shift", "where"), [(1, "later"), (-1, "earlier")])
def test_another_slot_convention_is_recognised(target, long_text, shift, where):
    ids, plain = long_text
    known = plain[0].tolist()

    class Shifted(OracleDrafter):
        """Right, but one place off; never right by chance, as this text repeats itself."""

        def propose(self, state, anchor_ids, pick=None, num_slots=None, num_candidates=None):
            proposal = super().propose(state, anchor_ids, pick, num_slots)
            for slot in range(num_slots):
                place = state.context_lens[0] + 1 + slot
                token, right = (known[min(place + by, len(known) - 1)] for by in (shift, 0))
                proposal.ids[0, slot] = token if token != right else (token + 1) % 64
            return proposal

    drafter = Shifted([known], [0], 64)
    told = []
    for _ in range(4):
        out, said = generate(target, ids, drafter)
        assert out == plain.tolist()
        told += said
    untrained = "hardly trained, and repeats the last token"
    assert len(told) == 1 and f"fit one place {where}" in told[0] and "check sample_from_anchor" in told[0]
    assert (untrained in told[0]) == (shift < 0)


def test_a_decent_drafter_is_not_accused(target, long_text):
    ids, plain = long_text
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for pattern in ([0, 1], [0, 0, 2, 1], [0] * 4 + [4]):
            drafter, _ = greedy_oracle(target, ids, pattern, max_new_tokens=256)
            assert target.generate(ids, assistant_model=drafter, **GREEDY).tolist() == plain.tolist()
            if len(pattern) < 5:
                assert drafter.last_stats.paused_rounds == 0
    assert warned(record) == []


def test_it_recovers_and_the_context_is_complete(target, long_text):
    ids, plain = long_text
    # Useless at first; the rounds after the first pause are right.
    drafter, _ = greedy_oracle(target, ids, [0] * 11 + [4] * 300, max_new_tokens=256)
    assert generate(target, ids, drafter) == (plain.tolist(), []) and drafter.anchors_were_right
    stats = drafter.last_stats
    assert stats.paused_rounds == 64 and stats.rounds < 120
    with torch.no_grad():
        states = target(plain, output_hidden_states=True).hidden_states
    features = torch.cat(drafter.state.features[0])
    expected = torch.cat([states[1], states[3]], -1)[0, : features.shape[0]]
    assert features.shape[0] > 240
    torch.testing.assert_close(features, expected, atol=1e-3, rtol=1e-3)


def test_a_batch_with_rows_that_leave(target):
    ids = make_prompt(5, batch_size=3)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    ids[1, :2] = 0
    kwargs = {"attention_mask": mask, "max_new_tokens": 120, "do_sample": False}
    plain = target.generate(ids, **kwargs)
    eos = int(plain[2, 40])
    expected = target.generate(ids, **kwargs, eos_token_id=eos)
    drafter, _ = greedy_oracle(target, ids, [0] * 10 + [3, 1, 4], max_new_tokens=120, attention_mask=mask, uneven=True)
    out = target.generate(ids, assistant_model=drafter, eos_token_id=eos, **kwargs)
    assert out.tolist() == expected.tolist() and drafter.anchors_were_right


def test_a_real_drafter_with_random_weights(target, long_text):
    ids, plain = long_text
    torch.manual_seed(0)
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    with pytest.warns(UserWarning, match="Hardly any draft is accepted"):
        for _ in range(6):
            assert target.generate(ids, assistant_model=drafter, **GREEDY).tolist() == plain.tolist()
    assert drafter.last_stats.paused_rounds > 200


def test_lookup_has_a_net_of_its_own(target, long_text):
    """Lookup that never hits pauses without a word: a text need not repeat itself."""
    ids, plain = long_text
    lookup = PromptLookup(num_slots=5, min_ngram=1)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        assert target.generate(ids, assistant_model=lookup, **GREEDY).tolist() == plain.tolist()
    assert warned(record) == []
    stats = lookup.last_stats
    assert stats.lookup_verifications < len(stats.from_lookup)


@pytest.mark.parametrize("companion", [False, True])
def test_the_distribution_is_kept_while_it_lets_go_and_recovers(monkeypatch, companion):
    """With so little credit what is verified depends on what was accepted before, in nearly every round."""
    monkeypatch.setattr(account, "_CREDIT", 0.2)
    torch.manual_seed(0)
    target = make_target(
        vocab_size=5, num_hidden_layers=2, hidden_size=16, head_dim=4, intermediate_size=16, initializer_range=0.4
    )
    ids = make_prompt(4, vocab_size=5).repeat(2, 1)
    drafter = TableDrafter(5, scale=1.0, num_slots=2, taps=(0,))
    lookup = PromptLookup(num_slots=2, min_ngram=1) if companion else None
    speculation = SpeculationConfig(prompt_lookup=lookup, policy=PrefixScheduler(probe_interval=1))
    options = {"do_sample": True, "top_k": 0, "pad_token_id": None}
    joint = exact_joint(target, ids[:1], 4, **options)
    counts, _ = sample_joint(target, drafter, ids, 4, 300, speculation, max_new_tokens=6, **options)
    assert p_value(counts, joint) > 1e-6
