"""A compiled drafter proposes what the drafter does, for any rows, lengths and slots, with code that is made once."""

from functools import partial

import pytest
import torch
from small_target import VOCAB, make_target

from dspark_hf.modeling import DSparkModel
from dspark_hf.modeling.compiled_drafter import CompiledDrafter

WIDTH = 96  # of features: three taps


@pytest.fixture
def compiled_of(monkeypatch):
    """Makes compiled drafters whose code is traced and guarded, but not generated."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    return CompiledDrafter


def argmax(logits, token_ids, drafted_ids):
    return logits.argmax(-1), logits.float().softmax(-1)


def check_rounds(drafters, num_rows, prompt_len, pick=None):
    """Both ways through rounds in which rows keep different numbers of tokens, and through one with a row less."""
    generator = torch.Generator().manual_seed(num_rows)
    states = [drafter.start(num_rows) for drafter in drafters]
    prompt = torch.randn(num_rows, prompt_len, WIDTH, generator=generator)
    for drafter, state in zip(drafters, states, strict=True):
        drafter.extend(state, prompt)
    for index, num_tokens in enumerate((2, 5, 1, 3)):
        anchors = torch.randint(VOCAB, (num_rows, 7), generator=generator)[:, index]
        num_slots = None if index % 2 == 0 else index
        plain, own = (
            drafter.propose(state, anchors, pick, num_slots) for drafter, state in zip(drafters, states, strict=True)
        )
        assert own.ids.tolist() == plain.ids.tolist()
        assert (own.candidates is None) == (plain.candidates is None)
        if plain.candidates is not None:
            torch.testing.assert_close(own.candidates.probs, plain.candidates.probs)
        if plain.confidence_logits is None:
            assert own.confidence_logits is None
        else:
            torch.testing.assert_close(own.confidence_logits, plain.confidence_logits)
        features = torch.randn(num_rows, num_tokens, WIDTH, generator=generator)
        counts = [max(1, num_tokens - row) for row in range(num_rows)] if index > 0 else None
        for drafter, state in zip(drafters, states, strict=True):
            drafter.extend(state, features, counts)
        assert states[1].context_lens == states[0].context_lens
        if index == 2 and num_rows > 2:
            num_rows -= 1
            for state in states:
                state.select(range(1, num_rows + 1))


@pytest.mark.parametrize(
    "fields",
    [
        {"draft_vocab_size": 20},
        pytest.param({"markov_head_type": "rnn", "sample_from_anchor": False}, marks=pytest.mark.slow),
        pytest.param(
            {
                "markov_rank": 0,
                "enable_confidence_head": False,
                "family": "qwen3",
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_proposals_are_those_of_the_drafter(compiled_of, fields):
    torch.manual_seed(1)
    defaults = dict(num_hidden_layers=2, block_size=4, markov_rank=8, num_taps=3, initializer_range=0.3)
    drafter = DSparkModel.from_target(make_target(), **{**defaults, **fields}).eval()
    drafters = drafter, compiled_of(drafter)
    with torch.no_grad():
        # As many rows as a block has slots, and as there are heads, are no case of their own.
        check_rounds(drafters, num_rows=1, prompt_len=9)
        check_rounds(drafters, num_rows=4, prompt_len=20)
        check_rounds(drafters, num_rows=2, prompt_len=7, pick=argmax)
        check_rounds(drafters, num_rows=1, prompt_len=7, pick=argmax)
        with torch.compiler.set_stance("fail_on_recompile"):
            check_rounds(drafters, num_rows=1, prompt_len=300)
            check_rounds(drafters, num_rows=7, prompt_len=3)
            check_rounds(drafters, num_rows=3, prompt_len=290, pick=argmax)


def test_an_empty_context_is_read_as_always(compiled_of):
    drafter = DSparkModel.from_target(make_target(), num_hidden_layers=1, block_size=4, markov_rank=8, num_taps=3)
    own = compiled_of(drafter)
    state, anchors = own.start(2), torch.tensor([3, 4])
    assert own.device == drafter.device
    assert (
        own.propose(state, anchors, num_slots=2).ids.tolist()
        == drafter.propose(drafter.start(2), anchors, num_slots=2).ids.tolist()
    )
    own.extend(state, torch.randn(2, 1, WIDTH), [1, 1])
    assert state.context_lens == [1, 1]
