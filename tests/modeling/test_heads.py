"""The heads against their formulas, written down anew."""

import pytest
import torch
from naive_drafters import naive_bias, naive_confidence

from dspark_hf.modeling.heads import ConfidenceHead
from dspark_hf.modeling.heads.domino import DominoHead
from dspark_hf.modeling.heads.markov import GatedMarkovHead, MarkovHead, RnnMarkovHead

VOCAB, HIDDEN, RANK, SLOTS = 23, 6, 4, 5
MARKOV_HEADS = {"vanilla": MarkovHead, "gated": GatedMarkovHead, "rnn": RnnMarkovHead}


@pytest.mark.parametrize("head_type", MARKOV_HEADS)
@pytest.mark.parametrize("num_outputs", [VOCAB, 9])
def test_sequential_heads(head_type, num_outputs):
    head = MARKOV_HEADS[head_type](VOCAB, HIDDEN, RANK, num_outputs)
    prev_ids, hidden = torch.randint(VOCAB, (3, SLOTS)), torch.randn(3, SLOTS, HIDDEN)
    state, biases = None, []
    for slot in range(SLOTS):
        vector, state = head.step(head.markov_w1(prev_ids[:, slot]), hidden[:, slot], state)
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
        first_embed, second_embed = head.markov_w1(first), head.markov_w1(second)
        _, state = head.step(first_embed, hidden, None)
        after, alone = head.step(second_embed, hidden, state)[0], head.step(second_embed, hidden, None)[0]
        assert torch.equal(after, alone) == (head_type != "rnn")


@pytest.mark.parametrize("num_pure", [0, 1])
def test_domino(num_pure):
    """As SpecForge writes it down: one GRU over the block's embeddings, two layers over its states and the block's."""
    head = DominoHead(HIDDEN, RANK, VOCAB, gru_hidden_dim=7, num_pure=num_pure)
    gru = torch.nn.GRU(HIDDEN, 7, batch_first=True, bias=False)
    gru.load_state_dict({f"{name}_l0": weight for name, weight in head.prefix_gru.state_dict().items()})
    embeds, hidden = torch.randn(3, SLOTS, HIDDEN), torch.randn(3, SLOTS, HIDDEN)
    read = torch.cat([hidden, gru(embeds)[0]], -1)
    correction = torch.nn.functional.silu(read @ head.embed_proj.weight.T) @ head.markov_w2.weight.T
    correction[:, :num_pure] = 0
    state, blocks, biases = None, None, []
    for slot in range(SLOTS):
        vector, state = head.step(embeds[:, slot], hidden[:, slot], state)
        # Training has anchors between the rows and the width.
        nested, blocks = head.step(embeds[:, None, slot], hidden[:, None, slot], blocks)
        assert torch.equal(nested[:, 0], vector)
        biases.append(head.bias(vector))
    torch.testing.assert_close(torch.stack(biases, 1), correction)


@pytest.mark.parametrize("rank", [0, RANK])
def test_confidence(rank):
    head = ConfidenceHead(HIDDEN + rank)
    hidden, embeds = torch.randn(3, SLOTS, HIDDEN), torch.randn(3, SLOTS, rank) if rank else None
    logits = head(hidden, embeds)
    for row in range(3):
        expected = naive_confidence(head, hidden[row], None if embeds is None else embeds[row])
        torch.testing.assert_close(logits[row], expected)
