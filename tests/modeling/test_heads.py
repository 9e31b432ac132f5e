"""The heads against their formulas, written down anew."""

import pytest
import torch
from naive_drafters import naive_bias, naive_confidence

from dspark_hf.modeling.heads import MARKOV_HEADS, ConfidenceHead

VOCAB, HIDDEN, RANK, SLOTS = 23, 6, 4, 5


@pytest.mark.parametrize("head_type", MARKOV_HEADS)
@pytest.mark.parametrize("num_outputs", [VOCAB, 9])
def test_sequential_heads(head_type, num_outputs):
    head = MARKOV_HEADS[head_type](VOCAB, HIDDEN, RANK, num_outputs)
    prev_ids, hidden = torch.randint(VOCAB, (3, SLOTS)), torch.randn(3, SLOTS, HIDDEN)
    state, biases = None, []
    for slot in range(SLOTS):
        vector, state = head.step(prev_ids[:, slot], hidden[:, slot], state)
        biases.append(head.markov_w2(vector))
    biases = torch.stack(biases, 1)
    assert biases.shape == (3, SLOTS, num_outputs)
    for row in range(3):
        expected = naive_bias(head_type, head, prev_ids[row], hidden[row])
        torch.testing.assert_close(biases[row], expected, rtol=1e-5, atol=1e-5)


def test_only_the_recurrent_head_remembers():
    hidden, first, second = torch.randn(1, HIDDEN), torch.tensor([1]), torch.tensor([2])
    for head_type, head_cls in MARKOV_HEADS.items():
        head = head_cls(VOCAB, HIDDEN, RANK, VOCAB)
        _, state = head.step(first, hidden, None)
        after, alone = head.step(second, hidden, state)[0], head.step(second, hidden, None)[0]
        assert torch.equal(after, alone) == (head_type != "rnn")


@pytest.mark.parametrize("rank", [0, RANK])
def test_confidence(rank):
    head = ConfidenceHead(HIDDEN + rank)
    hidden, embeds = torch.randn(3, SLOTS, HIDDEN), torch.randn(3, SLOTS, rank) if rank else None
    logits = head(hidden, embeds)
    for row in range(3):
        expected = naive_confidence(head, hidden[row], None if embeds is None else embeds[row])
        torch.testing.assert_close(logits[row], expected)
