"""Verification of blocks against its definition, and against exact distributions."""

import pytest
import torch
from scipy.stats import chisquare

from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.verify import (
    accept_or_redraw,
    draw,
    residual,
    survival,
    verify_greedy,
    verify_sampled,
)


def test_greedy_accepts_the_longest_equal_prefix():
    draft = torch.tensor([[1, 2, 3], [1, 9, 3], [8, 2, 3], [1, 2, 3], [1, 2, 3]])
    target = torch.tensor([[1, 2, 3, 4]] * 5)
    lengths = torch.tensor([3, 3, 3, 2, 0])
    accepted_len, next_ids = verify_greedy(draft, target, lengths)
    assert accepted_len.tolist() == [3, 1, 0, 2, 0]
    assert next_ids.tolist() == [4, 2, 1, 3, 1]
    assert verify_greedy(draft, target)[0].tolist() == [3, 1, 0, 3, 3]


def test_greedy_against_a_loop():
    draft, target = torch.randint(0, 2, (200, 5)), torch.randint(0, 2, (200, 6))
    lengths = torch.randint(0, 6, (200,))
    accepted_len, next_ids = verify_greedy(draft, target, lengths)
    for row in range(200):
        expected = 0
        while expected < lengths[row] and draft[row, expected] == target[row, expected]:
            expected += 1
        assert accepted_len[row] == expected and next_ids[row] == target[row, expected]


@pytest.mark.parametrize("lengths", [None, [0, 3]])
def test_no_slots(lengths):
    draft, target = torch.zeros(2, 0, dtype=torch.long), torch.tensor([[5], [6]])
    accepted_len, next_ids = verify_greedy(draft, target)
    assert accepted_len.tolist() == [0, 0] and next_ids.tolist() == [5, 6]
    accepted_len, next_ids = verify_sampled(draft, None, torch.eye(7)[[5, 6]].log().unsqueeze(1))
    assert accepted_len.tolist() == [0, 0] and next_ids.tolist() == [5, 6]


def dense(probs):
    """Candidates of distributions over the whole vocabulary."""
    return Candidates(torch.arange(probs.shape[-1]).expand(probs.shape), probs)


def joint_of_two(rows, seed=0, lengths=None, q_scale=1.0, verification="token"):
    """Draft two tokens with conditional q, verify, and go on with p; returns the first two tokens and p."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = 4
    p = torch.randn(vocab_size + 1, vocab_size, generator=generator).softmax(
        -1
    )  # row v: after v; last row: first token
    q = (q_scale * torch.randn(vocab_size + 1, vocab_size, generator=generator)).softmax(-1)
    p[2, 1] = 0  # a token that never comes
    p = p / p.sum(-1, keepdim=True)
    first = torch.multinomial(q[[vocab_size]].expand(rows, -1), 1, generator=generator)[:, 0]
    second = torch.multinomial(q[first], 1, generator=generator)[:, 0]
    draft_probs = torch.stack([q[vocab_size].expand(rows, -1), q[first]], 1)
    target_probs = torch.stack([p[vocab_size].expand(rows, -1), p[first], p[second]], 1)
    draft = torch.stack([first, second], 1)
    lengths = None if lengths is None else torch.tensor(lengths).repeat(rows // len(lengths))
    accepted_len, next_ids = verify_sampled(
        draft, dense(draft_probs), target_probs.log(), lengths, generator, verification
    )
    tokens = torch.cat([draft, next_ids.unsqueeze(1)], 1).scatter(1, accepted_len.unsqueeze(1), next_ids.unsqueeze(1))
    # Rows that ended after one token go on with the target's own second token.
    own = torch.multinomial(p[tokens[:, 0]], 1, generator=generator)[:, 0]
    tokens[:, 1] = torch.where(accepted_len == 0, own, tokens[:, 1])
    exact = p[vocab_size].unsqueeze(1) * p[:vocab_size]
    return tokens[:, 0] * vocab_size + tokens[:, 1], exact.flatten(), accepted_len, tokens, p


@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("lengths", [None, [0, 1, 2, 2]])
@pytest.mark.parametrize("q_scale", [0.0, 1.0, 3.0])
def test_sampled_distribution_is_the_targets(lengths, q_scale, verification):
    pairs, exact, accepted_len, tokens, p = joint_of_two(
        40_000, lengths=lengths, q_scale=q_scale, verification=verification
    )
    counts = torch.bincount(pairs, minlength=16).double()
    assert counts[exact == 0].sum() == 0
    possible = exact > 0
    expected = (exact[possible] * 40_000).double()
    expected *= counts.sum() / expected.sum()
    assert chisquare(counts[possible], expected).pvalue > 1e-6
    assert accepted_len.unique().tolist() == [0, 1, 2]
    # The token after a fully accepted block is the target's own, too.
    full = accepted_len == 2
    for second in range(4):
        after = tokens[full & (tokens[:, 1] == second), 2]
        counts = torch.bincount(after, minlength=4).double()
        possible = p[second] > 0
        expected = (p[second][possible] * len(after)).double()
        assert counts[~possible].sum() == 0
        assert chisquare(counts[possible], expected * counts.sum() / expected.sum()).pvalue > 1e-6


def test_sampled_catches_no_wrong_distribution_by_accident():
    """The chi-square above rejects the drafter's own distribution."""
    pairs, exact, *_ = joint_of_two(40_000, q_scale=1.0)
    uniform = torch.full((16,), 40_000 / 16, dtype=torch.double)
    assert chisquare(torch.bincount(pairs, minlength=16).double(), uniform).pvalue < 1e-12


def test_one_slot_agrees_with_the_block():
    p = torch.tensor([0.5, 0.3, 0.2]).repeat(30_000, 1)
    q = torch.tensor([0.1, 0.1, 0.8]).repeat(30_000, 1)
    draft = torch.multinomial(q, 1)[:, 0]
    ids, accepted = accept_or_redraw(draft, dense(q), p.log())
    assert chisquare(torch.bincount(ids).double(), p[0].double() / p[0].double().sum() * 30_000).pvalue > 1e-6
    assert abs(accepted.double().mean() - torch.minimum(p[0], q[0]).sum()) < 0.02
    assert torch.equal(ids[accepted], draft[accepted]) and not (ids[~accepted] == 2).any()


def test_equal_distributions_are_always_accepted():
    p = torch.rand(1000, 4, 5).softmax(-1)
    draft = torch.multinomial(p[:, :3].flatten(0, 1), 1).view(1000, 3)
    for verification in ("token", "block"):
        accepted_len, _ = verify_sampled(draft, dense(p[:, :3]), p.log(), verification=verification)
        assert (accepted_len == 3).float().mean() > 0.999


def test_banned_tokens_never_pass(monkeypatch):
    """u = 0 must not let a token of probability zero through."""
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.zeros(shape))
    p = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    q = torch.tensor([[[0.0, 1.0]]])
    for verification in ("token", "block"):
        accepted_len, next_ids = verify_sampled(torch.tensor([[1]]), dense(q), p.log(), verification=verification)
        assert accepted_len.tolist() == [0] and next_ids.tolist() == [0]


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_draw_never_takes_a_token_without_weight(monkeypatch, uniform):
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.full(shape, uniform, dtype=torch.float64))
    weights = torch.tensor([[0.0, 0.3, 0.0, 0.5, 0.0], [2.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1e-30, 0.0]])
    assert draw(weights).tolist() == ([1, 0, 3] if uniform == 0.0 else [3, 0, 3])


def test_draw_marks_rows_that_are_no_distribution():
    weights = torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [1.0, float("nan")], [0.0, 1.0]])
    assert draw(weights).tolist() == [2, 2, 2, 1]


def test_broken_drafts_are_rejected_and_replaced():
    p = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    for verification in ("token", "block"):
        broken = dense(torch.full((1, 1, 2), float("nan")))
        accepted_len, next_ids = verify_sampled(torch.tensor([[0]]), broken, p.log(), verification=verification)
        assert accepted_len.tolist() == [0] and next_ids.tolist() == [1]


@pytest.mark.parametrize("dead", [-torch.inf, torch.inf, torch.nan])
@pytest.mark.parametrize("verification", ["token", "block"])
def test_a_draft_behind_which_nothing_may_follow_stands_as_often_as_others(verification, dead):
    """As an end that is drafted where processors then ban every token: it must not become rarer for that."""
    num_rows, p, q = 20_000, torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.5, 0.25, 0.25])
    drafts = torch.multinomial(q.repeat(num_rows, 2).view(-1, 3), 1).view(num_rows, 2)
    scores = p.log().repeat(num_rows, 3, 1)
    scores[drafts[:, 0] == 1, 1:] = dead
    candidates = dense(q.repeat(num_rows, 2, 1))
    accepted_len, next_ids = verify_sampled(drafts, candidates, scores, verification=verification)
    first = torch.where(accepted_len > 0, drafts[:, 0], next_ids)
    assert chisquare(torch.bincount(first, minlength=3).double(), p.double() * num_rows).pvalue > 1e-6
    # Whoever goes on behind it is told that there is no token.
    assert (next_ids[(accepted_len > 0) & (drafts[:, 0] == 1)] == 3).all()


def test_draw_follows_the_weights():
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    counts = torch.bincount(draw(weights.repeat(20_000, 1)), minlength=4).double()
    assert counts[1] == 0
    assert chisquare(counts[[0, 2, 3]], torch.tensor([1.0, 2.0, 5.0]).double() / 8 * 20_000).pvalue > 1e-6


@pytest.mark.parametrize("vocab", [66_000, 65_536, 2_000])
def test_draw_is_the_inverse_of_the_running_sum(vocab):
    """Large vocabularies are summed by chunks: the same token, the last one too, and none without weight."""
    weights = (4 * torch.randn(300, vocab, generator=torch.Generator().manual_seed(0))).softmax(-1)
    weights[:, ::3] = 0
    weights[0], weights[0, vocab - 1], weights[1], weights[2, 5] = 0, 1e-30, 0, torch.nan
    sums = weights.double().cumsum(-1)
    uniform = torch.rand(300, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)[:, 0]
    drawn = draw(weights, torch.Generator().manual_seed(1))
    assert drawn[:3].tolist() == [vocab - 1, vocab, vocab]
    assert torch.equal(drawn[3:], expected[3:])


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_draw_stays_inside_the_chunk_that_it_found(monkeypatch, uniform):
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.full(shape, uniform, dtype=torch.float64))
    weights = torch.zeros(1, 70_000)
    weights[0, [700, 1500, 69_990]] = torch.tensor([0.1, 0.3, 1e-8])
    assert draw(weights).item() == (700 if uniform == 0.0 else 69_990)


def test_residual_falls_back_to_p():
    p = torch.tensor([[0.25, 0.75], [0.6, 0.4]])
    weights = residual(p, dense(torch.tensor([[0.25, 0.75], [0.5, 0.5]])))
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75], [0.1, 0.0]]))


def test_generator_makes_it_repeatable():
    p = torch.rand(50, 4, 6).softmax(-1)
    draft = torch.randint(0, 6, (50, 3))
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(runs))
        accepted, ids = verify_sampled(draft, dense(p[:, 1:]), p.log(), generator=torch.Generator().manual_seed(seed))
        runs.append((accepted.tolist(), ids.tolist()))
    assert runs[0] == runs[1] != runs[2]


def test_survival():
    logits = torch.tensor([[4.0, 0.0, 4.0], [-4.0, 9.0, 9.0]])
    expected = torch.tensor([[0.982, 0.491, 0.482], [0.018, 0.018, 0.018]])
    torch.testing.assert_close(survival(logits), expected, atol=1e-3, rtol=0)
    assert survival(logits.bfloat16()).dtype == torch.float32


def test_errors():
    with pytest.raises(ValueError, match=r"n drafts is verified against n \+ 1 positions.*\(2, 3\).*\(2, 3\)"):
        verify_greedy(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"drawn from, of shape \(2, 3\) and.*got \(2, 2, 4\)"):
        verify_sampled(torch.zeros(2, 3, dtype=torch.long), dense(torch.zeros(2, 2, 4)), torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match="drawn from.*got None"):
        verify_sampled(torch.zeros(2, 3, dtype=torch.long), None, torch.zeros(2, 4, 5))
