"""The output's exact law under each verification, by enumerating every draft, and what must break it."""

import itertools

import pytest
import torch

from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.verify import block_chances, residual

VOCAB, SLOTS = 3, 3
PATHS = torch.tensor(list(itertools.product(range(VOCAB), repeat=SLOTS)))  # [P, n], every draft


def index_of(prefixes):
    """Place of each prefix `(P, i)` among those of its length."""
    index = torch.zeros(len(prefixes), dtype=torch.long)
    for column in prefixes.T:
        index = index * VOCAB + column
    return index


def random_tables(seed, scale):
    """A distribution after every prefix of up to `SLOTS` tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(VOCAB**i, VOCAB, generator=generator)).softmax(-1) for i in range(SLOTS + 1)]


def sparse_tables(seed, num_candidates):
    """Candidates after every prefix, some of probability 0 with the id of another: `[(ids, probs)]` by length."""
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for length in range(SLOTS):
        weights = torch.rand(VOCAB**length, VOCAB, generator=generator)
        probs, ids = weights.topk(num_candidates)
        ids = torch.cat([ids, ids[:, :1]], 1)  # padding repeats an id
        probs = torch.cat([probs / probs.sum(-1, keepdim=True), torch.zeros(len(probs), 1)], 1)
        tables.append(Candidates(ids, probs))
    return tables


def exact_law(p, q, lengths, chances_of, told=None):
    """Law `(VOCAB,) * (SLOTS + 1)` of the first tokens when drafts come from `q` and are cut to `lengths`.

    Args:
        p: The target's tables.
        q: The drafter's tables that drafts come from.
        lengths: Verified length of each path.
        chances_of: Which chances and budgets follow from the probabilities, see `block_chances`.
        told: What verification takes for q; q itself by default.
    """
    prefixes = [index_of(PATHS[:, :i]) for i in range(SLOTS + 1)]
    slots = [q[i][prefixes[i]] for i in range(SLOTS)]
    drawn = Candidates.stack(slots)
    draft_prob = drawn.prob_of(PATHS).prod(-1)
    told = drawn if told is None else told
    drawn_p = torch.stack([p[i][prefixes[i]].gather(1, PATHS[:, i : i + 1])[:, 0] for i in range(SLOTS)], 1)
    candidate_p = torch.stack([p[i][prefixes[i]].gather(1, told.ids[:, i]) for i in range(SLOTS)], 1)
    chances, budgets = chances_of(drawn_p, told.prob_of(PATHS), candidate_p, told.probs, lengths)
    chances = chances.nan_to_num(0)
    law = torch.zeros((VOCAB,) * (SLOTS + 1), dtype=torch.float64)
    for taken in range(SLOTS + 1):
        # The longest prefix that passes stands.
        stands = (1 - chances[:, taken:]).prod(-1) * (chances[:, taken - 1] if taken else 1.0)
        weight = draft_prob.double() * stands
        target = p[taken][prefixes[taken]]
        after = target
        if taken < SLOTS:
            was_rejected = (taken < lengths).unsqueeze(-1)
            cut = told[:, taken]
            cut = Candidates(cut.ids, torch.where(was_rejected, cut.probs, 0.0))
            budget = torch.where(was_rejected, budgets[:, taken : taken + 1].nan_to_num(0).float(), 1.0)
            after = residual(target, cut, budget)
        after = after.double() / after.sum(-1, keepdim=True)
        for path, (row, mass) in enumerate(zip(after, weight, strict=True)):
            if mass > 0:
                law[tuple(PATHS[path, :taken].tolist())] += (mass * row).view(-1, *[1] * (SLOTS - taken)) * rest_of(
                    p, PATHS[path, :taken]
                )
    return law


def rest_of(p, prefix):
    """The target's law of what follows one token behind `prefix`, that token first: `(VOCAB,) * (SLOTS + 1 - len)`."""
    joint = torch.ones(VOCAB, dtype=torch.float64)
    for length in range(len(prefix) + 1, SLOTS + 1):
        tails = torch.tensor(list(itertools.product(range(VOCAB), repeat=length - len(prefix))))
        index = index_of(torch.cat([prefix.expand(len(tails), -1), tails], 1))
        joint = joint.unsqueeze(-1) * p[length][index].double().view(*joint.shape, VOCAB)
    return joint


def true_law(p):
    return p[0][0].double().view(-1, *[1] * SLOTS) * rest_of(p, torch.zeros(0, dtype=torch.long))


def error(p, law):
    return float((law - true_law(p)).abs().max())


def stopping_lengths(seed):
    """A random rule that offers slot k or not by the drafts before it."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.zeros(len(PATHS), dtype=torch.long)
    goes_on = torch.ones(len(PATHS), dtype=torch.bool)
    for slot in range(SLOTS):
        goes_on &= (torch.rand(VOCAB**slot, generator=generator) < 0.7)[index_of(PATHS[:, :slot])]
        lengths += goes_on
    return lengths


CASES = list(itertools.product(range(4), (1, 2, 3)))


@pytest.mark.parametrize(("seed", "num_candidates"), CASES)
def test_block_verification_is_exact_for_every_stopping_rule(seed, num_candidates):
    p, q = random_tables(seed, 1.5), sparse_tables(seed, num_candidates)
    for lengths in (torch.full((len(PATHS),), SLOTS), stopping_lengths(seed), stopping_lengths(seed + 100)):
        law = exact_law(p, q, lengths, block_chances)
        assert float(law.sum()) == pytest.approx(1, abs=1e-6)
        assert error(p, law) < 1e-6


def as_if_whole(*args):
    """The formula of a whole block for one that is cut."""
    *probs, lengths = args
    chances, budgets = block_chances(*probs, torch.full_like(lengths, SLOTS))
    places = torch.arange(1, SLOTS + 1)
    return torch.where(places <= lengths.unsqueeze(1), chances, 0.0), budgets


def test_the_formula_of_a_whole_block_is_wrong_for_a_cut_one():
    errors = [
        error(p, exact_law(p, sparse_tables(seed, 3), stopping_lengths(seed), as_if_whole))
        for seed in range(6)
        for p in [random_tables(seed, 1.5)]
    ]
    assert max(errors) > 0.005


def test_a_cut_that_looks_at_the_slot_it_cuts_is_wrong():
    p, q = random_tables(0, 1.5), sparse_tables(0, 3)
    looks = torch.where(PATHS[:, 1] == 0, 1, SLOTS)
    assert error(p, exact_law(p, q, looks, block_chances)) > 0.005
    # The same lengths, chosen by the slot before.
    assert error(p, exact_law(p, q, torch.where(PATHS[:, 0] == 0, 1, SLOTS), block_chances)) < 1e-6


def test_certain_drafts():
    """Lookup drafts: the path is given, so the law is exact for each of them."""
    p = random_tables(1, 1.5)
    for path in PATHS.tolist():
        q = [Candidates(torch.full((VOCAB**i, 1), token), torch.ones(VOCAB**i, 1)) for i, token in enumerate(path)]
        assert error(p, exact_law(p, q, stopping_lengths(1), block_chances)) < 1e-6


def test_another_q_than_was_drawn_from_is_wrong():
    p, q = random_tables(2, 1.5), sparse_tables(2, 3)
    prefixes = [index_of(PATHS[:, :i]) for i in range(SLOTS)]
    told = Candidates.stack([q[i][prefixes[i]] for i in range(SLOTS)])
    told = Candidates(told.ids, told.probs.square() / told.probs.square().sum(-1, keepdim=True))
    whole = torch.full((len(PATHS),), SLOTS)
    assert error(p, exact_law(p, q, whole, block_chances, told)) > 0.005


def test_drafts_that_were_drawn_may_be_told_as_certain():
    """Given its drafts a block is judged exactly, so one-hot q is right for drafts of any origin, and accepts less."""
    p, q = random_tables(3, 1.5), sparse_tables(3, 3)
    whole = torch.full((len(PATHS),), SLOTS)
    assert error(p, exact_law(p, q, whole, block_chances, Candidates.certain(PATHS))) < 1e-6


def test_block_verification_accepts_at_least_as_much():
    """Expected accepted drafts, both ways, on the same tables."""
    gains = []
    for seed in range(8):
        p, q = random_tables(seed, 1.5), sparse_tables(seed, 3)
        prefixes = [index_of(PATHS[:, :i]) for i in range(SLOTS)]
        drawn = Candidates.stack([q[i][prefixes[i]] for i in range(SLOTS)])
        drawn_p = torch.stack([p[i][prefixes[i]].gather(1, PATHS[:, i : i + 1])[:, 0] for i in range(SLOTS)], 1)
        candidate_p = torch.stack([p[i][prefixes[i]].gather(1, drawn.ids[:, i]) for i in range(SLOTS)], 1)
        whole = torch.full((len(PATHS),), SLOTS)
        drawn_q = drawn.prob_of(PATHS)
        chances, _ = block_chances(drawn_p, drawn_q, candidate_p, drawn.probs, whole)
        reached = 1 - torch.stack([(1 - chances[:, i:]).prod(-1) for i in range(SLOTS)], 1)
        by_token = (drawn_p / drawn_q).clamp_max(1).cumprod(-1)
        weight = drawn_q.prod(-1).double()
        gains.append(float((weight * reached.sum(-1)).sum() - (weight * by_token.double().sum(-1)).sum()))
    assert min(gains) > -1e-6 and max(gains) > 0.01
