"""Prompt lookup, alone and beside a drafter: what it drafts, and that the output stays the target's."""

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from fake_drafters import TableDrafter, greedy_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_targets import make_prompt, make_target

from dspark_hf import (
    DFlashModel,
    DSparkModel,
    Eagle3Model,
    PromptLookup,
    SpeculationConfig,
    attach_drafter,
    detach_drafter,
)
from dspark_hf.generation import speculative_generate
from dspark_hf.generation.drafts.lookup import NgramIndex
from dspark_hf.generation.request import Request

EAGER = PromptLookup(num_slots=3, min_ngram=1)
GREEDY = {"max_new_tokens": 40, "do_sample": False}
VOCAB, NUM_TOKENS = 6, 4


@pytest.fixture(scope="module")
def small_target():
    """Few tokens, so that texts repeat themselves."""
    return make_target(
        vocab_size=VOCAB, num_hidden_layers=2, hidden_size=16, head_dim=4, intermediate_size=16, initializer_range=0.4
    )


def looping_prompt(length, batch_size=1):
    """Prompts that repeat themselves, each its own way."""
    rows = [[1 + (row + place % (3 + row)) % (VOCAB - 1) for place in range(length)] for row in range(batch_size)]
    return torch.tensor(rows)


class TestIndex:
    def test_the_longest_agreement_counts_then_the_latest(self):
        lookup = PromptLookup(min_ngram=1, max_ngram=3)
        #                          1 2 3 -> 4     2 3 -> 5     3 -> 6
        index = NgramIndex(lookup, [1, 2, 3, 4, 7, 2, 3, 5, 7, 3, 6, 1, 2, 3])
        assert index.draft(3) == [4, 7, 2]
        index = NgramIndex(lookup, [1, 2, 3, 4, 7, 2, 3, 5, 7, 3, 6, 2, 3])
        assert index.draft(2) == [5, 7]
        assert NgramIndex(lookup, [3, 4, 7, 3, 6, 3]).draft(1) == [6]

    def test_a_text_that_repeats_goes_on_repeating(self):
        index = NgramIndex(PromptLookup(), [9, 1, 2, 3, 1, 2, 3, 1, 2])
        assert index.draft(8) == [3, 1, 2, 3, 1, 2, 3, 1]

    def test_nothing_is_found_in_new_text_or_too_short_agreement(self):
        assert NgramIndex(PromptLookup(), [1, 2, 3, 4]).draft(4) == []
        assert NgramIndex(PromptLookup(min_ngram=2), [1, 2, 9, 2]).draft(4) == []
        assert NgramIndex(PromptLookup(), []).draft(4) == [] == NgramIndex(PromptLookup(), [1]).draft(2)

    @settings(max_examples=60)
    @given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 3), st.integers(0, 3), st.integers(1, 9))
    def test_as_by_search(self, ids, min_ngram, more, num_drafts):
        lookup = PromptLookup(min_ngram=min_ngram, max_ngram=min_ngram + more)
        index = NgramIndex(lookup, ids[: len(ids) // 2])
        index.extend(ids[len(ids) // 2 :])
        expected = []
        for size in range(lookup.max_ngram, min_ngram - 1, -1):
            ends = [end for end in range(size, len(ids)) if ids[end - size : end] == ids[len(ids) - size :]]
            if ends:
                text = list(ids)
                for slot in range(num_drafts):
                    text.append(text[ends[-1] + slot])
                expected = text[len(ids) :]
                break
        assert index.draft(num_drafts) == expected


class TestGreedy:
    @pytest.mark.parametrize("length", [1, 24])
    def test_alone(self, any_target, length):
        ids = make_prompt(length)
        plain = any_target.generate(ids, **GREEDY)
        # The continuation once more: now there is something to look up.
        ids = torch.cat([plain, ids], 1)
        plain = any_target.generate(ids, **GREEDY)
        lookup = PromptLookup(num_slots=5, min_ngram=1)
        out = any_target.generate(ids, assistant_model=lookup, **GREEDY)
        assert out.tolist() == plain.tolist()
        stats = lookup.last_stats
        assert stats.new_tokens == 40 and stats.lookup_verifications > 0
        assert stats.lookup_verified_tokens == stats.verified_tokens
        assert stats.lookup_accepted_tokens == sum(stats.accepted_lens)

    def test_a_text_in_a_loop_is_fast(self, small_target):
        ids = small_target.generate(looping_prompt(12), max_new_tokens=60, do_sample=False)
        plain = small_target.generate(ids, **GREEDY)
        lookup = PromptLookup()
        out = small_target.generate(ids, assistant_model=lookup, **GREEDY)
        assert out.tolist() == plain.tolist()
        # Greedy decoding of so small a target ends in a loop.
        assert lookup.last_stats.tau > 2
        assert "looked up: " in lookup.last_stats.summary()

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padded_batch(self, any_target, side):
        texts = [make_prompt(length, seed=length)[0] for length in (14, 3, 9)]
        if side == "left":
            ids = torch.stack([torch.cat([torch.zeros(14 - len(text), dtype=torch.long), text]) for text in texts])
        else:
            ids = torch.stack([torch.cat([text, torch.zeros(14 - len(text), dtype=torch.long)]) for text in texts])
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        plain = any_target.generate(**inputs, **GREEDY)
        lookup = PromptLookup(num_slots=4, min_ngram=1)
        assert any_target.generate(**inputs, assistant_model=lookup, **GREEDY).tolist() == plain.tolist()
        assert lookup.last_stats.lookup_verifications > 0
        drafter = TableDrafter(64)
        speculation = SpeculationConfig(prompt_lookup=lookup)
        out = any_target.generate(**inputs, assistant_model=drafter, speculation=speculation, **GREEDY)
        assert out.tolist() == plain.tolist()
        assert 0 < drafter.last_stats.lookup_verifications < len(drafter.last_stats.from_lookup)

    @settings(max_examples=12)
    @given(data=st.data())
    def test_any_batch_beside_a_drafter(self, target, data):
        batch_size = data.draw(st.integers(1, 3), "rows")
        ids = make_prompt(data.draw(st.integers(1, 12), "prompt"), seed=data.draw(st.integers(0, 99)), vocab_size=8,
                          batch_size=batch_size)  # fmt: skip
        pattern = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4), "pattern")
        drafter, plain = greedy_oracle(target, ids, pattern, max_new_tokens=24, uneven=True)
        eos = data.draw(st.sampled_from([None, int(plain[0, -5])]), "eos")
        num_slots = data.draw(st.integers(1, 6), "lookup slots")
        speculation = SpeculationConfig(
            prompt_lookup=PromptLookup(num_slots, min_ngram=1), max_draft_len=data.draw(st.integers(1, 6), "max")
        )
        kwargs = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": eos}
        if data.draw(st.booleans(), "in step"):
            kwargs |= {
                "repetition_penalty": 1.0001,
                "stopping_criteria": [lambda ids, scores, **_: torch.zeros(len(ids), dtype=torch.bool)],
            }
        expected = target.generate(ids, **kwargs)
        out = target.generate(ids, assistant_model=drafter, speculation=speculation, **kwargs)
        assert out.tolist() == expected.tolist()
        stats = drafter.last_stats
        assert len(stats.from_lookup) == len(stats.verified_lens) == len(stats.row_ids)

    def test_a_hit_goes_before_the_drafter(self, target):
        ids = make_prompt(5).repeat(1, 4)
        drafter, plain = greedy_oracle(target, ids, [4], max_new_tokens=30)
        speculation = SpeculationConfig(prompt_lookup=PromptLookup(num_slots=2), policy="fixed")
        kwargs = {"max_new_tokens": 30, "do_sample": False}
        out = target.generate(ids, assistant_model=drafter, speculation=speculation, **kwargs)
        assert out.tolist() == plain.tolist() and drafter.anchors_were_right
        stats = drafter.last_stats
        # The drafter is asked in the other rounds, and only then are its features brought up to date.
        assert len(drafter.offered) == stats.rounds - stats.lookup_verifications > 0
        looked_up = [n for n, is_lookup in zip(stats.verified_lens, stats.from_lookup, strict=True) if is_lookup]
        assert len(looked_up) == stats.lookup_verifications and set(looked_up) <= {1, 2}
        drafted = [n for n, is_lookup in zip(stats.verified_lens, stats.from_lookup, strict=True) if not is_lookup]
        assert max(drafted) == 4

    def test_a_threshold_on_survival_limits_both(self, target):
        ids = make_prompt(5).repeat(1, 4)
        drafter, plain = greedy_oracle(target, ids, range(5), max_new_tokens=30, enable_confidence_head=True)
        kwargs = {"max_new_tokens": 30, "do_sample": False}
        for assistant, lookup in ((drafter, PromptLookup(min_ngram=1)), (PromptLookup(min_ngram=1), None)):
            speculation = SpeculationConfig(prompt_lookup=lookup, confidence_threshold=0.5)
            out = target.generate(ids, assistant_model=assistant, speculation=speculation, **kwargs)
            assert out.tolist() == plain.tolist()
            stats = assistant.last_stats
            first = next(n for n, looked_up in zip(stats.verified_lens, stats.from_lookup, strict=True) if looked_up)
            # Before anything is known, a lookup draft stands in 7 of 10 cases: one survives in half of them.
            assert first == 1


class TestSampling:
    @pytest.mark.parametrize(
        ("companion", "batch_size", "options"),
        [
            (False, 40, {}),
            (False, 40, {"temperature": 0.8, "top_k": 5, "top_p": 0.95}),
            (True, 1, {}),
            (True, 40, {"repetition_penalty": 1.6, "no_repeat_ngram_size": 3}),
        ],
        ids=["alone", "alone with warpers", "beside a drafter", "beside a drafter with prefix processors"],
    )
    def test_joint_distribution(self, small_target, companion, batch_size, options):
        torch.manual_seed(0)
        ids = looping_prompt(7).repeat(batch_size, 1)
        drafter, speculation = EAGER, None
        if companion:
            drafter = TableDrafter(VOCAB, scale=1.0, num_slots=2, taps=(0,))
            speculation = SpeculationConfig(prompt_lookup=PromptLookup(num_slots=3, min_ngram=2), policy="fixed")
        options = {"do_sample": True, "top_k": 0, "pad_token_id": None, **options}
        joint = exact_joint(small_target, ids[:1], NUM_TOKENS, **options)
        counts, accepted = sample_joint(
            small_target, drafter, ids, NUM_TOKENS, 400, speculation, max_new_tokens=NUM_TOKENS + 1, **options
        )
        assert {0, 1} <= set(accepted)
        assert p_value(counts, joint) > 1e-6

    def test_both_sources_in_one_round(self, small_target):
        """Rows of one batch drafted by lookup and by the drafter, with more slots in one than in the other."""
        ids = torch.cat([looping_prompt(6), torch.tensor([[1, 2, 3, 4, 5, 2]])]).repeat(10, 1)
        drafter = TableDrafter(VOCAB, scale=1.0, num_slots=1, taps=(0,))
        speculation = SpeculationConfig(prompt_lookup=PromptLookup(num_slots=3, min_ngram=3))
        options = {"do_sample": True, "top_k": 0, "pad_token_id": None, "max_new_tokens": 3}
        torch.manual_seed(0)
        mixed, counts = 0, torch.zeros(2, VOCAB, VOCAB)
        for _ in range(25):
            out = small_target.generate(ids, assistant_model=drafter, speculation=speculation, **options)
            from_lookup = drafter.last_stats.from_lookup
            mixed += sum(from_lookup[row : row + 2] == [True, False] for row in range(0, len(ids), 2))
            for row in range(len(ids)):
                counts[row % 2, out[row, 6], out[row, 7]] += 1
        assert mixed > 5
        for row in range(2):
            joint = exact_joint(small_target, ids[row : row + 1], 2, do_sample=True, top_k=0, pad_token_id=None)
            assert p_value(counts[row].numpy(), joint) > 1e-6


@pytest.mark.lookup
class TestByItself:
    """Beside a drafter, in calls of few rows, without being asked for."""

    def looks_up(self, target, ids, speculation=None, drafter=None, **options):
        """Whether a generation looked drafts up; its output is plain decoding's."""
        plain = target.generate(ids, **{**GREEDY, **options})
        drafter = TableDrafter(VOCAB, taps=(0,)) if drafter is None else drafter
        out = target.generate(ids, assistant_model=drafter, speculation=speculation, **{**GREEDY, **options})
        assert out.tolist() == plain.tolist()
        return drafter.last_stats.lookup_verifications > 0

    @pytest.mark.parametrize(("batch_size", "expected"), [(1, True), (4, True), (5, False)])
    def test_in_small_batches_alone(self, small_target, batch_size, expected):
        ids = looping_prompt(12, batch_size)
        assert self.looks_up(small_target, ids) == expected
        assert self.looks_up(small_target, ids, SpeculationConfig()) == expected
        # A call that shrinks to few rows stays as it began, and who asks is obeyed.
        assert self.looks_up(small_target, ids, SpeculationConfig(prompt_lookup=True))
        assert self.looks_up(small_target, ids, SpeculationConfig(prompt_lookup=PromptLookup(min_ngram=1)))
        assert not self.looks_up(small_target, ids, SpeculationConfig(prompt_lookup=False))

    def test_for_attached_drafters_of_every_kind(self, target):
        ids = make_prompt(5).repeat(1, 4)
        for kind in (DSparkModel, DFlashModel, Eagle3Model):
            drafter = kind.from_target(target, num_hidden_layers=1)
            attach_drafter(target, drafter)
            try:
                out = target.generate(ids, **GREEDY)
            finally:
                detach_drafter(target)
            assert out.tolist() == target.generate(ids, **GREEDY).tolist()
            assert drafter.last_stats.lookup_verifications > 0

    def test_not_where_rounds_are_static(self, target):
        others = [None] * 3
        request = Request(target, TableDrafter(64), SpeculationConfig(), make_prompt(3), *others, {}, is_static=True)
        assert request.lookup is None

    def test_drafts_are_limited_as_the_drafters(self, small_target):
        drafter, speculation = TableDrafter(VOCAB, taps=(0,)), SpeculationConfig(max_draft_len=2)
        assert self.looks_up(small_target, looping_prompt(12), speculation, drafter)
        assert max(drafter.last_stats.verified_lens) == 2

    def test_a_seed_repeats_a_sampled_call(self, small_target):
        drafter, speculation = TableDrafter(VOCAB, taps=(0,)), SpeculationConfig(seed=3)
        options = {"assistant_model": drafter, "speculation": speculation, "do_sample": True, "max_new_tokens": 40}
        first = small_target.generate(looping_prompt(12), **options)
        assert drafter.last_stats.lookup_verifications > 0
        assert small_target.generate(looping_prompt(12), **options).tolist() == first.tolist()

    def test_joint_distribution(self, small_target):
        torch.manual_seed(0)
        ids, options = looping_prompt(7).repeat(4, 1), {"do_sample": True, "top_k": 0, "pad_token_id": None}
        drafter = TableDrafter(VOCAB, scale=1.0, num_slots=2, taps=(0,))
        counts, accepted = sample_joint(
            small_target, drafter, ids, NUM_TOKENS, 400, None, max_new_tokens=NUM_TOKENS + 1, **options
        )
        assert {0, 1} <= set(accepted) and drafter.last_stats.from_lookup
        assert p_value(counts, exact_joint(small_target, ids[:1], NUM_TOKENS, **options)) > 1e-6


class TestWaysIn:
    def test_without_a_drafter(self, small_target):
        ids = looping_prompt(9)
        plain = small_target.generate(ids, **GREEDY)
        speculation = SpeculationConfig(prompt_lookup=True)
        out = small_target.generate(ids, speculation=speculation, **GREEDY)
        assert out.tolist() == plain.tolist()
        assert speculation.prompt_lookup.last_stats.lookup_verifications > 0
        out = small_target.generate(ids, custom_generate=speculative_generate, speculation=speculation, **GREEDY)
        assert out.tolist() == plain.tolist()

    def test_attached(self, small_target):
        ids = looping_prompt(9)
        plain = small_target.generate(ids, **GREEDY)
        lookup = PromptLookup()
        attach_drafter(small_target, lookup)
        try:
            assert small_target.generate(ids, **GREEDY).tolist() == plain.tolist()
            assert lookup.last_stats.lookup_verifications > 0
        finally:
            assert detach_drafter(small_target) is lookup

    def test_beside_an_attached_drafter(self, target):
        drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
        ids = make_prompt(5).repeat(1, 3)
        attach_drafter(target, drafter)
        try:
            out = target.generate(ids, speculation=SpeculationConfig(prompt_lookup=True), **GREEDY)
        finally:
            detach_drafter(target)
        assert out.tolist() == target.generate(ids, **GREEDY).tolist()
        assert drafter.last_stats.from_lookup

    def test_no_states_are_asked_for(self, small_target, monkeypatch):
        asked = []
        forward = small_target.forward
        monkeypatch.setattr(
            small_target, "forward", lambda **kwargs: asked.append(kwargs["output_hidden_states"]) or forward(**kwargs)
        )
        small_target.generate(looping_prompt(9), assistant_model=PromptLookup(), **GREEDY)
        assert asked and not any(asked)

    def test_it_tells_what_it_is(self):
        assert repr(PromptLookup()) == "PromptLookup(num_slots=8, min_ngram=2, max_ngram=4)"


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "top_k": 1}], ids=str)
def test_tokens_of_the_prompt_that_the_target_cannot_make(options):
    """As the places of images, for which there is an embedding and no logit."""
    target, embedding = make_target(), torch.nn.Embedding(70, 32)
    target.set_input_embeddings(embedding)
    # Whatever comes stood in the prompt, with such a token behind it.
    ids = torch.tensor([[token for first in range(64) for token in (first, 66)]])
    lookup = PromptLookup(min_ngram=1)
    out = target.generate(ids, assistant_model=lookup, max_new_tokens=20, **options)
    assert out.tolist() == target.generate(ids, max_new_tokens=20, do_sample=False).tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_slots": 0}, "num_slots must be a positive int, got 0"),
        ({"min_ngram": True}, "min_ngram must be a positive int, got True"),
        ({"max_ngram": 1.5}, "max_ngram must be a positive int, got 1.5"),
        ({"min_ngram": 5}, "min_ngram must not exceed max_ngram, got 5 and 4"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        PromptLookup(**fields)


def test_two_lookups_contradict(target):
    with pytest.raises(ValueError, match="the drafter here is a PromptLookup itself: leave one of them out"):
        target.generate(
            make_prompt(4), assistant_model=PromptLookup(), speculation=SpeculationConfig(prompt_lookup=True)
        )


def test_the_config_that_asks_for_lookup_knows_what_it_did():
    target = make_target("llama")
    speculation = SpeculationConfig(prompt_lookup=True)
    out = target.generate(torch.arange(40, 52)[None], speculation=speculation, max_new_tokens=12, do_sample=False)
    stats = speculation.prompt_lookup.last_stats
    assert stats.new_tokens == out.shape[1] - 12 and "tau" in stats.summary()
