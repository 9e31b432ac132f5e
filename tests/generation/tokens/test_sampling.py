"""Sampled output has the target's distribution; a wrong verifier is caught by the same test."""

import pytest
import torch
from distributions import exact_joint, p_value, sample_joint
from fake_drafters import OracleDrafter, TableDrafter
from tiny_targets import make_prompt, make_target
from transformers import LogitsProcessor

import dspark_hf.generation.tokens.sampling as sampling
from dspark_hf import DSparkModel, SpeculationConfig
from dspark_hf.ops.candidates import Candidates

# Rows of a batch are samples too, and cost little.
VOCAB, NUM_TOKENS, NUM_SAMPLES, MANY_ROWS = 6, 4, 600, 40


class Custom(LogitsProcessor):
    """Depends on the prefix, and is not known to the library."""

    def __call__(self, input_ids, scores):
        favoured = (input_ids[:, -1:] + 1) % scores.shape[-1]
        return scores.scatter_add(1, favoured, torch.ones_like(favoured, dtype=scores.dtype)) / 1.5


class Promised(Custom):
    """The same, and drafts go through it too."""

    is_stateless = True


OPTIONS = {
    "plain": {},
    "warpers": {"temperature": 0.8, "top_k": 5, "top_p": 0.95, "min_p": 0.02},
    "penalty": {"repetition_penalty": 1.6, "temperature": 1.3},
    "prefix": {"no_repeat_ngram_size": 2, "sequence_bias": [[[2], 1.0], [[1, 3], -2.0]], "typical_p": 0.9},
    "custom": {"processors": lambda: [Custom()], "top_k": 5},
    "promised": {"processors": lambda: [Promised()], "top_k": 5},
}


@pytest.fixture(scope="module")
def small_target():
    return make_target(
        vocab_size=VOCAB, num_hidden_layers=2, hidden_size=16, head_dim=4, intermediate_size=16, initializer_range=0.4
    )


def sampled_p_value(
    target, drafter, num_samples=NUM_SAMPLES, batch_size=1, speculation=None, accepted_lens=(0, 1, 2, 3), **options
):
    ids = make_prompt(3, vocab_size=VOCAB).repeat(batch_size, 1)
    common = {"do_sample": True, "top_k": 0, "pad_token_id": None, **options}
    joint = exact_joint(target, ids[:1], NUM_TOKENS, **common)
    counts, accepted = sample_joint(
        target, drafter, ids, NUM_TOKENS, num_samples, speculation, max_new_tokens=NUM_TOKENS + 1, **common
    )
    # These accepted lengths must have been seen, or the test says little.
    assert set(accepted_lens) <= set(accepted)
    return p_value(counts, joint)


@pytest.mark.parametrize(
    "name", [name if name == "plain" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS]
)
def test_joint_distribution(small_target, name):
    assert (
        sampled_p_value(small_target, TableDrafter(VOCAB, scale=1.0, num_slots=3, taps=(0,)), **OPTIONS[name]) > 1e-6
    )


def test_joint_distribution_with_threshold(small_target):
    drafter = TableDrafter(VOCAB, scale=1.0, num_slots=3, taps=(0,), enable_confidence_head=True)
    speculation = SpeculationConfig(confidence_threshold=0.12)
    assert sampled_p_value(small_target, drafter, 600, MANY_ROWS, speculation, accepted_lens=(0, 1, 2)) > 1e-6


def test_joint_distribution_of_a_real_drafter(small_target):
    drafter = DSparkModel.from_target(
        small_target, block_size=3, markov_rank=4, num_hidden_layers=1, target_layer_ids=[0]
    )
    assert sampled_p_value(small_target, drafter, 400, MANY_ROWS, temperature=0.9) > 1e-6


@pytest.mark.parametrize("name", OPTIONS)
def test_joint_distribution_of_a_batch(small_target, name):
    drafter = TableDrafter(VOCAB, scale=1.0, num_slots=3, taps=(0,))
    # Judged one position after the other, a round of many rows ends where the first draft of any is refused.
    is_custom = name == "custom"
    num_samples, batch_size, lens = (600, 3, (0, 1, 2)) if is_custom else (1200, MANY_ROWS, (0, 1, 2, 3))
    options = OPTIONS[name]
    assert sampled_p_value(small_target, drafter, num_samples, batch_size, accepted_lens=lens, **options) > 1e-6


@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize(
    ("num_candidates", "batch_size"),
    [(1, MANY_ROWS), (2, MANY_ROWS), pytest.param(4, 1, marks=pytest.mark.slow), (4, MANY_ROWS), (None, MANY_ROWS)],
)
def test_joint_distribution_of_few_candidates(small_target, verification, num_candidates, batch_size):
    drafter = TableDrafter(VOCAB, scale=1.0, num_slots=3, taps=(0,))
    speculation = SpeculationConfig(num_candidates=num_candidates, verification=verification, policy="fixed")
    num_samples = 400 if batch_size == 1 else 1200
    lens = (0, 1, 2) if num_candidates == 1 else (0, 1, 2, 3)
    assert (
        sampled_p_value(
            small_target, drafter, num_samples, batch_size, speculation, accepted_lens=lens, temperature=0.8
        )
        > 1e-6
    )


@pytest.mark.parametrize("options", [{"suppress_tokens": [0, 1]}, {"bad_words_ids": [[0], [2, 1]]}], ids=str)
def test_candidates_that_are_all_forbidden_end_the_draft(small_target, options):
    """Of a single candidate nothing may be left; the target's own token then follows."""
    drafter = TableDrafter(VOCAB, scale=1.0, num_slots=3, taps=(0,))
    speculation = SpeculationConfig(num_candidates=1, policy="fixed")
    assert sampled_p_value(small_target, drafter, 900, MANY_ROWS, speculation, accepted_lens=(0, 1), **options) > 1e-6


@pytest.mark.parametrize("num_candidates", [1, 4])
@pytest.mark.parametrize("option", [{"top_h": 0.4}, {"eta_cutoff": 0.02}], ids=str)
def test_candidates_that_are_all_forbidden(num_candidates, option):
    """It refuses what is no distribution, which plain generate() does not come by."""
    target, ids = make_target(), make_prompt(5, batch_size=3)
    options = {"suppress_tokens": list(range(2, 60)), "do_sample": True, "top_k": 1, "max_new_tokens": 20}
    plain = target.generate(ids, **options, **option)
    for drafter in (TableDrafter(64), TableDrafter(64, scale=torch.nan)):
        speculation = SpeculationConfig(num_candidates=num_candidates, policy="fixed")
        out = target.generate(ids, **options, **option, assistant_model=drafter, speculation=speculation)
        assert out.tolist() == plain.tolist()


def test_one_stream_for_drafts_and_verification_is_caught(small_target, monkeypatch):
    """Draws of a block and of its verification must be independent."""
    picker_of = sampling.TokenChooser.draft_picker

    def draft_picker(self, *args):
        self.round_seed = int(torch.randint(2**31, ()))
        return picker_of(self, *args)

    def generator(self, device):
        return torch.Generator(device).manual_seed(self.round_seed) if hasattr(self, "round_seed") else None

    monkeypatch.setattr(sampling.TokenChooser, "draft_picker", draft_picker)
    monkeypatch.setattr(sampling.TokenChooser, "_generator", generator)
    drafter = TableDrafter(VOCAB, scale=1.0, num_slots=3, taps=(0,))
    for verification in ("token", "block"):
        speculation = SpeculationConfig(verification=verification, policy="fixed")
        assert sampled_p_value(small_target, drafter, 900, MANY_ROWS, speculation, accepted_lens=()) < 1e-6


@pytest.mark.parametrize("num_candidates", [1, 5, None])
def test_few_candidates_change_no_greedy_output(num_candidates):
    target = make_target()
    ids = make_prompt(9).repeat(3, 1)
    ids[1, 2], ids[2, 5] = 1, 2
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1, num_taps=2)
    options = {"max_new_tokens": 30, "do_sample": False, "repetition_penalty": 1.2}
    speculation = SpeculationConfig(num_candidates=num_candidates)
    out = target.generate(ids, assistant_model=drafter, speculation=speculation, **options)
    assert out.tolist() == target.generate(ids, **options).tolist()


def test_a_proposal_holds_no_more_than_its_candidates():
    target = make_target()
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1, num_taps=2)
    seen = []
    propose = drafter.propose

    def noted(*args, **kwargs):
        seen.append(propose(*args, **kwargs))
        return seen[-1]

    drafter.propose = noted
    target.generate(
        make_prompt(9), assistant_model=drafter, speculation=SpeculationConfig(num_candidates=7), do_sample=True,
        max_new_tokens=12,
    )  # fmt: skip
    for proposal in seen:
        assert proposal.candidates.ids.shape == proposal.candidates.probs.shape == (*proposal.ids.shape, 7)
        assert torch.equal(
            proposal.candidates.probs.sum(-1).isclose(torch.tensor(1.0)), torch.ones_like(proposal.ids).bool()
        )
        assert (proposal.candidates.prob_of(proposal.ids) > 0).all()


def accept_everything(draft_ids, candidates, scores, *args):
    accepted_len = torch.full((draft_ids.shape[0],), draft_ids.shape[1])
    return accepted_len, torch.multinomial(scores[:, -1].softmax(-1), 1)[:, 0]


def without_residual(draft_ids, candidates, scores, *args):
    accepted_len, _ = sampling_verify(draft_ids, candidates, scores, *args)
    rows = torch.arange(draft_ids.shape[0])
    return accepted_len, torch.multinomial(scores[rows, accepted_len].softmax(-1), 1)[:, 0]


sampling_verify = sampling.verify_sampled


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), MANY_ROWS])
@pytest.mark.parametrize("broken", [accept_everything, without_residual])
def test_a_wrong_verifier_is_caught(small_target, monkeypatch, broken, batch_size):
    monkeypatch.setattr(sampling, "verify_sampled", broken)
    drafter = TableDrafter(VOCAB, scale=1.0, num_slots=3, taps=(0,))
    ids = make_prompt(3, vocab_size=VOCAB).repeat(batch_size, 1)
    options = {"do_sample": True, "top_k": 0, "pad_token_id": None}
    joint = exact_joint(small_target, ids[:1], NUM_TOKENS, **options)
    counts, _ = sample_joint(small_target, drafter, ids, NUM_TOKENS, 600, max_new_tokens=5, **options)
    assert p_value(counts, joint) < 1e-6


def test_a_wrong_q_is_caught(small_target):
    """A drafter that tells another q than it draws from breaks the distribution: q must be taken as it is."""

    class Lying(TableDrafter):
        def propose(self, *args, **kwargs):
            proposal = super().propose(*args, **kwargs)
            probs = proposal.candidates.probs.square()
            proposal.candidates.probs = probs / probs.sum(-1, keepdim=True)
            return proposal

    drafter = Lying(VOCAB, scale=1.5, num_slots=3, taps=(0,))
    assert sampled_p_value(small_target, drafter, 600, MANY_ROWS) < 1e-6


def test_certain_sampling_equals_greedy():
    target = make_target()
    ids = make_prompt(9)
    plain = target.generate(ids, max_new_tokens=40, do_sample=False)
    drafter = OracleDrafter(plain.tolist(), range(5), 64)

    def one_hot(*args, **kwargs):
        proposal = OracleDrafter.propose(drafter, *args, **kwargs)
        proposal.candidates = Candidates.certain(proposal.ids)
        return proposal

    drafter.propose = one_hot
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=40, do_sample=True, top_k=1)
    assert out.tolist() == plain.tolist() and drafter.last_stats.tau > 2


@pytest.mark.parametrize("custom", [False, True])
def test_a_target_that_is_not_finite_says_so(custom):
    target = make_target()
    with torch.no_grad():
        target.lm_head.weight[3] = float("nan")
    processors = [Custom()] if custom else []
    with pytest.raises(ValueError, match="probabilities are not finite, so no token can be drawn"):
        target.generate(
            make_prompt(4), assistant_model=TableDrafter(64), logits_processor=processors, do_sample=True, top_k=0,
            max_new_tokens=20,
        )  # fmt: skip


def test_a_drafter_that_is_not_finite_costs_speed_only():
    target = make_target()
    drafter = TableDrafter(64)
    drafter.table[:] = float("nan")
    ids = make_prompt(4)
    out = target.generate(ids, assistant_model=drafter, do_sample=True, top_k=1, max_new_tokens=12)
    assert out.tolist() == target.generate(ids, do_sample=False, max_new_tokens=12).tolist()
    assert drafter.last_stats.tau < 1.5
