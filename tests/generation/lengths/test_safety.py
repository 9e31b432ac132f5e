"""The safety net: it lets go of a drafter that is never right, tries again, and never touches the output."""

import warnings

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from fake_drafters import OracleDrafter, TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target

import dspark_hf.generation.lengths.safety as safety
from dspark_hf import DSparkModel, PromptLookup, SpeculationConfig
from dspark_hf.generation.lengths.safety import SafetyNet

GREEDY = {"max_new_tokens": 256, "do_sample": False}


@pytest.fixture(scope="module")
def long_text(target):
    ids = make_prompt(6)
    return ids, target.generate(ids, **GREEDY)


def schedule(gains, net=None, num_slots=7):
    """Slots that a net allows, round by round of 1.25 steps; `gains(limit, round)` tells what a round then wins."""
    net = SafetyNet() if net is None else net
    limits = []
    for index in range(256):
        limits.append(net.limit(num_slots))
        net.learn([gains(limits[-1], index)] if limits[-1] else [], 0.25)
    return limits


class TestNet:
    def test_a_useless_drafter_costs_little(self):
        limits = schedule(lambda limit, index: 0)
        assert limits[:8] == 4 * [7] + 4 * [1]
        # Pauses are 100 times what a try costs, and twice as long each time.
        assert [place for place, limit in enumerate(limits) if limit][8:] == [33, 33 + 51, 84 + 101]
        assert limits.count(7) == 4 and limits.count(1) == 7

    def test_what_costs_more_is_let_go_of_sooner(self):
        net = SafetyNet()
        assert net.limit(7) == 7
        net.learn([0], 1.3)
        assert net.limit(7) == 1
        net.learn([0], 0.8)
        assert [net.limit(7), net.was_paused] == [0, True]

    def test_what_is_known_not_to_pay_pauses_at_once(self):
        net = SafetyNet()
        net.learn([3], 1.0, pays=False)
        assert net.limit(7) == 0 and net.has_paused

    def test_pauses_do_not_grow_for_ever(self):
        net = SafetyNet()
        limits = sum((schedule(lambda limit, index: 0, net) for _ in range(16)), [])
        probes = [place for place, limit in enumerate(limits) if limit]
        assert probes[-1] - probes[-2] == probes[-2] - probes[-3] == 257

    def test_a_decent_drafter_is_left_alone(self):
        # One draft in every other round.
        assert set(schedule(lambda limit, index: index % 2)) == {7}
        # And a bad stretch after good times is borne for a while.
        assert schedule(lambda limit, index: index < 50)[:74] == 70 * [7] + 4 * [1]

    def test_it_recovers(self):
        limits = schedule(lambda limit, index: limit if index > 60 else 0)
        first = next(place for place in range(61, 256) if limits[place])
        assert limits[first : first + 2] == [1, 1] and set(limits[first + 2 :]) == {7}

    def test_rows_count_by_their_mean(self):
        net = SafetyNet()
        for _ in range(40):
            assert net.limit(5) == 5
            net.learn([0, 0, 1, 0], 0.2)
        for _ in range(40):
            net.learn([0, 0, 0, 0], 0.2)
        assert net.limit(5) == 0 and net.was_paused and net.has_paused

    def test_off(self):
        net = SafetyNet(enabled=False)
        assert set(schedule(lambda limit, index: 0, net)) == {7} and not net.has_paused

    def test_rounds_without_a_question_change_nothing(self):
        net = SafetyNet()
        for _ in range(100):
            net.learn([], 0.0)
        assert net.limit(5) == 5


def warned(record):
    return [str(entry.message) for entry in record if "Hardly any draft is accepted" in str(entry.message)]


def test_a_useless_drafter_is_let_go_of_and_named(target, long_text):
    ids, plain = long_text
    drafter, _ = greedy_oracle(target, ids, [0], max_new_tokens=256)
    drafter.config.target_name_or_path = "someone/else"
    with pytest.warns(UserWarning, match="0 of 8 at the first slot .0.0%.*made for someone/else. belongs to another"):
        out = target.generate(ids, assistant_model=drafter, **GREEDY)
    assert out.tolist() == plain.tolist() and drafter.anchors_were_right
    stats = drafter.last_stats
    assert stats.rounds == 255 and stats.paused_rounds == 255 - 11 == 255 - len(drafter.offered)
    assert sum(drafter.offered) == 4 * 4 + 7
    assert f"paused by the safety net: {stats.paused_rounds} of 255 rounds" in stats.summary()
    # It is said once per drafter, and never without the net.
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        target.generate(ids, assistant_model=drafter, **GREEDY)
        other, _ = greedy_oracle(target, ids, [0], max_new_tokens=256)
        target.generate(ids, assistant_model=other, speculation=SpeculationConfig(safety_net=False), **GREEDY)
    assert warned(record) == []
    assert other.last_stats.paused_rounds == 0 and len(other.offered) > 240


def test_a_processor_that_drafts_do_not_know_is_named(target, long_text):
    def shifted(input_ids, scores):
        return scores.roll(1 + input_ids.shape[1] % 3, -1)

    ids, _ = long_text
    drafter, _ = greedy_oracle(target, ids, [4], max_new_tokens=256)
    options = {"logits_processor": [shifted], "max_new_tokens": 64, "do_sample": False}
    plain = target.generate(ids, **options)
    with pytest.warns(UserWarning, match="Drafts are made without custom logits processors and guidance"):
        out = target.generate(ids, assistant_model=drafter, **options)
    assert out.tolist() == plain.tolist()


@pytest.mark.parametrize(("shift", "where"), [(1, "later"), (-1, "earlier")])
def test_another_slot_convention_is_recognised(target, long_text, shift, where):
    ids, plain = long_text
    known = plain[0].tolist()

    class Shifted(OracleDrafter):
        """Right, but one place off."""

        def propose(self, state, anchor_ids, pick=None, num_slots=None, num_candidates=None):
            proposal = super().propose(state, anchor_ids, pick, num_slots)
            places = [min(state.context_lens[0] + 1 + slot + shift, len(known) - 1) for slot in range(num_slots)]
            proposal.ids[0] = torch.tensor([known[place] for place in places])
            return proposal

    drafter = Shifted([known], [0], 64)
    # The places behind the first pause are known only once it is over.
    untrained = ".*hardly trained, and repeats the last token" if shift < 0 else ""
    with pytest.warns(UserWarning, match=f"fit one place {where}.*check sample_from_anchor{untrained}"):
        assert target.generate(ids, assistant_model=drafter, **GREEDY).tolist() == plain.tolist()


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
    drafter, _ = greedy_oracle(target, ids, [0] * 8 + [4] * 300, max_new_tokens=256)
    with pytest.warns(UserWarning, match="Hardly any"):
        out = target.generate(ids, assistant_model=drafter, **GREEDY)
    assert out.tolist() == plain.tolist() and drafter.anchors_were_right
    stats = drafter.last_stats
    assert stats.paused_rounds == 25 and stats.rounds < 100
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
    monkeypatch.setattr(safety, "_CREDIT", 0.2)
    monkeypatch.setattr(safety, "_WHOLE_BLOCKS", 0.5)
    monkeypatch.setattr(safety, "_SHORTEST_PAUSE", 1)
    monkeypatch.setattr(safety, "_PAUSE_PER_STEP", 1)
    torch.manual_seed(0)
    target = make_target(
        vocab_size=5, num_hidden_layers=2, hidden_size=16, head_dim=4, intermediate_size=16, initializer_range=0.4
    )
    ids = make_prompt(4, vocab_size=5).repeat(2, 1)
    drafter = TableDrafter(5, scale=1.0, num_slots=2, taps=(0,))
    speculation = SpeculationConfig(prompt_lookup=PromptLookup(num_slots=2, min_ngram=1) if companion else None)
    options = {"do_sample": True, "top_k": 0, "pad_token_id": None}
    joint = exact_joint(target, ids[:1], 4, **options)
    counts, _ = sample_joint(target, drafter, ids, 4, 300, speculation, max_new_tokens=6, **options)
    assert p_value(counts, joint) > 1e-6
