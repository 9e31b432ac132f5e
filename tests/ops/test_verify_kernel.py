"""Verification by its kernel: distributions, edges, and what it leaves to torch."""

import pytest
import torch
from scipy.stats import chisquare

from dspark_hf.ops import verify
from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.counter_random import uniforms
from dspark_hf.ops.dispatch import is_interpreted, kernel_for

kernel = pytest.importorskip("dspark_hf.ops.verify.triton")
pytestmark = [
    pytest.mark.skipif(not is_interpreted(), reason="runs on CPU tensors"),
    pytest.mark.filterwarnings("ignore:.*(encountered in|All-NaN).*:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("DSPARK_HF_KERNELS", "triton")


def first_tokens(rows, seed, verification, lengths, is_one_stream=False):
    """First two tokens of each row, drafted from conditional q and verified against conditional p, and p of pairs.

    With `is_one_stream` drafts are drawn by the numbers that verification judges by.
    """
    generator = torch.Generator().manual_seed(seed)
    p = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.0, 0.3], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]])
    q = torch.tensor([[0.2, 0.5, 0.1, 0.2], [0.3, 0.3, 0.3, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    key = torch.randint(2**62, (1,), generator=generator)
    if is_one_stream:
        counters = (row * 65536 + slot for row in range(rows) for slot in range(2))
        numbers = uniforms(int(key), counters).view(rows, 2)
    else:
        numbers = torch.rand(rows, 2, generator=generator, dtype=torch.float64)
    first = torch.searchsorted(q[0].double().cumsum(-1), numbers[:, 0].contiguous(), right=True).clamp_max(3)
    sums = q[first].double().cumsum(-1)
    second = torch.searchsorted(sums, numbers[:, 1:].contiguous(), right=True).squeeze(1).clamp_max(3)
    ids, drafts = torch.arange(4).expand(rows, 2, 4), torch.stack([first, second], 1)
    candidates = Candidates(ids, torch.stack([q[0].expand(rows, -1), q[first]], 1))
    scores = torch.stack([p[0].expand(rows, -1), p[first], p[second]], 1).log()
    lengths = None if lengths is None else torch.tensor(lengths).repeat(rows // len(lengths))
    accepted_len, next_ids = kernel.verify_sampled(drafts, candidates, scores, lengths, key, verification)
    places = accepted_len.unsqueeze(1)
    tokens = torch.cat([drafts, next_ids.unsqueeze(1)], 1).scatter(1, places, next_ids.unsqueeze(1))
    own = torch.multinomial(p[tokens[:, 0]], 1, generator=generator)[:, 0]
    tokens[:, 1] = torch.where(accepted_len == 0, own, tokens[:, 1])
    return torch.bincount(tokens[:, 0] * 4 + tokens[:, 1], minlength=16).double(), (p[0].unsqueeze(1) * p).flatten()


def p_value(counts, exact):
    possible = exact > 0
    assert counts[~possible].sum() == 0
    expected = exact[possible].double()
    return chisquare(counts[possible], expected * counts.sum() / expected.sum()).pvalue


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("lengths", [None, [0, 1, 2, 2]])
def test_tokens_follow_the_targets_distribution(verification, lengths):
    assert p_value(*first_tokens(4000, 1, verification, lengths)) > 1e-4


@pytest.mark.slow
def test_one_stream_for_drafts_and_verification_is_seen():
    """The chi-square above rejects drafts that are drawn by the numbers that judge them."""
    assert p_value(*first_tokens(600, 3, "token", None, is_one_stream=True)) < 1e-6


def test_each_call_draws_its_own_key(monkeypatch):
    keys, drafts = [], torch.zeros(1, 1, dtype=torch.long)
    assert kernel_for("verify", torch.device("cpu")) is kernel
    monkeypatch.setattr(kernel, "verify_sampled", lambda *given: keys.append(int(given[4])))
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(2):
            verify.verify_sampled(drafts, Candidates.certain(drafts), torch.zeros(1, 2, 4), None, generator)
    assert len(set(keys)) == 4 and keys[:2] == keys[2:4]


def test_greedy_takes_the_first_of_equals_and_nan_above_all():
    scores = torch.zeros(4, 2, 3000)
    scores[0, 0, [7, 2500]] = 1.0
    scores[1, 0, 2999] = torch.nan
    scores[1, 0, 5] = torch.inf
    scores[2, 0] = -torch.inf
    scores[3, 0, 1024:] = 3.0
    drafts = torch.tensor([[7], [2999], [1], [1024]])
    expected = verify.reference.verify_greedy(drafts, scores.argmax(-1), None)
    accepted_len, next_ids = verify.verify_argmax(drafts, scores)
    assert accepted_len.tolist() == expected[0].tolist() == [1, 1, 0, 1]
    assert next_ids.tolist() == expected[1].tolist()


def test_scores_that_are_no_distribution_yield_no_token():
    scores = torch.zeros(3, 1, 2000)
    scores[0, 0, 3], scores[1, 0, 3], scores[2] = torch.nan, torch.inf, -torch.inf
    accepted_len, next_ids = verify.verify_sampled(torch.zeros(3, 0, dtype=torch.long), None, scores)
    assert accepted_len.tolist() == [0, 0, 0] and next_ids.tolist() == [2000, 2000, 2000]


def test_rows_that_have_ended_are_offered_less_than_nothing():
    scores, drafts, lengths = torch.zeros(2, 3, 1500), torch.zeros(2, 2, dtype=torch.long), torch.tensor([-1, 2])
    scores[:, :, 7], scores[1, 0, 0] = 50.0, 60.0
    accepted_len, next_ids = verify.verify_argmax(drafts, scores, lengths)
    assert accepted_len.tolist() == [0, 1] and next_ids.tolist() == [7, 7]
    accepted_len, next_ids = verify.verify_sampled(drafts, Candidates.certain(drafts), scores, lengths)
    assert accepted_len.tolist() == [0, 1] and next_ids.tolist() == [7, 7]


def test_lengths_that_do_not_stand_side_by_side():
    scores, drafts = torch.zeros(3, 3, 600), torch.zeros(3, 2, dtype=torch.long)
    sure = scores.index_fill(2, torch.tensor([0]), 200.0)
    for lengths in (torch.tensor([[2, 0], [0, 9], [1, 9]])[:, 0], torch.tensor([1]).expand(3)):
        assert verify.verify_argmax(drafts, scores, lengths)[0].tolist() == lengths.tolist()
        sampled = verify.verify_sampled(drafts, Candidates.certain(drafts), sure, lengths)
        assert sampled[0].tolist() == lengths.tolist()


def test_a_draft_that_could_not_be_drawn_is_not_accepted():
    drafts, scores = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 2, 8)
    candidates = Candidates(torch.tensor([[[3]]]), torch.ones(1, 1, 1))
    for verification in ("token", "block"):
        assert kernel.verify_sampled(drafts, candidates, scores, None, torch.tensor([1]), verification)[0] == 0


def test_numbers_are_uniform_and_those_of_two_keys_independent():
    first, second = (uniforms(key, range(20_000)) for key in (7, 8))
    for numbers in (first, (first + second) % 1, (first[1:] + first[:-1]) % 1):
        counts = torch.histc(numbers.float(), 100, 0, 1).double()
        assert chisquare(counts).pvalue > 1e-4


def test_what_the_kernel_does_not_cover_runs_in_torch():
    drafts = torch.zeros(1, 1, dtype=torch.long)
    certain = Candidates.certain(drafts)
    wide = Candidates(torch.arange(513).expand(1, 1, -1), torch.full((1, 1, 513), 1 / 513))
    for scores, candidates in (
        (torch.zeros(1, 2, 600, dtype=torch.float64), certain),
        (torch.zeros(600, 2, 1).permute(2, 1, 0), certain),
        (torch.zeros(1, 2, 600), wide),
        (torch.zeros(1, 1, 1).expand(1, 2, 600_000), certain),
    ):
        assert not kernel.covers(scores, candidates)
        accepted_len, next_ids = verify.verify_sampled(drafts, candidates, scores)
        assert 0 <= int(next_ids) < scores.shape[-1]
