"""The sequential stage as one op: what it equals, what it draws, what it refuses."""

import pytest
import torch
from scipy.stats import chisquare

from dspark_hf.modeling import DSparkModel
from dspark_hf.modeling.drafting import PlainDraw
from dspark_hf.ops.dispatch import is_interpreted
from dspark_hf.ops.markov_block import markov_block
from dspark_hf.ops.markov_block.cases import CASES, Inputs

CPU = torch.device("cpu")


@pytest.fixture
def drafter():
    from conftest import make_tiny_target

    options = {"target_layer_ids": [0, 2], "mask_token_id": 258, "markov_rank": 8, "block_size": 4}
    return DSparkModel.from_target(make_tiny_target(), **options).eval()


def states(drafter, rows=3):
    hidden = torch.randn(rows, 4, drafter.config.hidden_size)
    return hidden, drafter.base_logits(hidden), torch.tensor([1, 2, 3][:rows])


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_the_op_is_the_walk_slot_by_slot(drafter, temperature, monkeypatch):
    torch.nn.init.normal_(drafter.markov_head.markov_w2.weight)
    hidden, logits, anchors = states(drafter)
    found = []
    for is_walked in (True, False):
        if not is_walked:
            monkeypatch.setattr("dspark_hf.modeling.dspark.walk_block", lambda *_: None)
        generator = torch.Generator().manual_seed(5)
        pick = None if temperature is None else PlainDraw(temperature, lambda _, generator=generator: generator)
        found.append(drafter.pick_slots(hidden, *drafter.best_entries(logits, 20), anchors, pick))
    one, other = found
    assert torch.equal(one.ids, other.ids) and torch.equal(one.max_probs, other.max_probs)
    assert torch.equal(one.confidence_logits, other.confidence_logits)
    if temperature is not None:
        assert torch.equal(one.candidates.ids, other.candidates.ids)
        assert torch.equal(one.candidates.probs, other.candidates.probs)


def test_replaced_modules_and_other_picks_go_slot_by_slot(drafter, monkeypatch):
    hidden, logits, anchors = states(drafter)
    best = drafter.best_entries(logits, 20)
    monkeypatch.setattr("dspark_hf.modeling.vanilla_walk.markov_block", None)
    drafter.pick_slots(hidden, logits, None, anchors, None)
    drafter.pick_slots(hidden, *best, anchors, lambda scores, *_: (scores.argmax(-1), scores.float().softmax(-1)))

    class Replaced(torch.nn.Linear):
        """As an adapter is."""

    for module in (drafter.markov_head.markov_w2, drafter.confidence_head.proj):
        before, module.__class__ = module.__class__, Replaced
        drafter.pick_slots(hidden, *best, anchors, None)
        module.__class__ = before
    with pytest.raises(TypeError):
        drafter.pick_slots(hidden, *best, anchors, None)


def test_shapes_that_do_not_fit_are_an_error():
    inputs = Inputs(CASES["small"], CPU)
    given = (inputs.anchor_ids, inputs.hidden, inputs.heads)
    for logits, entries in ((inputs.logits, inputs.entries[:, :, 1:]), (inputs.logits[:, :0], inputs.entries[:, :0])):
        with pytest.raises(ValueError, match=r"must both be \(batch, slots, k\) with a slot or more, got"):
            markov_block(logits, entries, *given)


def test_float64_and_mixed_dtypes_run_in_torch(monkeypatch):
    kernel = pytest.importorskip("dspark_hf.ops.markov_block.triton")
    inputs = Inputs(CASES["small"], CPU)
    assert kernel.covers(inputs.logits, inputs.hidden, inputs.heads)
    assert not kernel.covers(inputs.logits.double(), inputs.hidden, inputs.heads)
    assert not kernel.covers(inputs.logits, inputs.hidden.float(), inputs.heads)
    assert not kernel.covers(inputs.logits, inputs.hidden, inputs.heads._replace(weight=inputs.heads.weight.T))
    assert not kernel.covers(inputs.logits.repeat(1, 1, 9), inputs.hidden, inputs.heads)


def test_tokens_of_entries_that_do_not_stand_side_by_side(kernels):
    inputs = Inputs(CASES["reduced"], CPU)
    given = inputs.logits, inputs.entries, inputs.anchor_ids, inputs.hidden
    tokens = inputs.heads.draft_tokens
    apart = inputs.heads._replace(draft_tokens=torch.stack([tokens, tokens + 10**9], 1)[:, 0])
    assert torch.equal(markov_block(*given, apart).ids, markov_block(*given, inputs.heads).ids)


@pytest.mark.slow
@pytest.mark.skipif(not is_interpreted(), reason="runs on CPU tensors")
def test_draws_follow_the_probabilities_that_are_kept():
    kernel = pytest.importorskip("dspark_hf.ops.markov_block.triton")
    inputs = Inputs(CASES["small"], CPU)
    rows, heads = 1500, inputs.heads
    logits, entries = (part[:1, :1, :8].expand(rows, 1, 8) for part in (inputs.logits, inputs.entries))
    hidden, anchors = inputs.hidden[:1, :1].expand(rows, 1, -1), inputs.anchor_ids[:1].expand(rows)
    block = kernel.markov_block(logits, entries, anchors, hidden, heads, 2.0, torch.tensor([3]))
    counts = (block.ids == entries[:, 0]).sum(0).double()
    expected = block.probs[0, 0].double() * rows
    assert counts.sum() == rows
    assert chisquare(counts, expected * rows / expected.sum()).pvalue > 1e-4
