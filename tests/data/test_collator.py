"""Padding and anchors."""

import pytest
import torch
from torch.utils.data import DataLoader

from dspark_hf.data.collator import DraftCollator, has_anchors


def row(length, start=2, offset=0):
    return {
        "input_ids": list(range(offset, offset + length)),
        "loss_mask": [index >= start for index in range(length)],
    }


def test_padding_and_masks():
    batch = DraftCollator(num_anchors=3)([row(9), row(5)])
    assert batch["input_ids"].shape == (2, 9) and batch["anchors"].shape == (2, 3)
    assert batch["attention_mask"][1].tolist() == [1] * 5 + [0] * 4
    assert not batch["loss_mask"][1, 5:].any()


def test_anchors_and_their_next_token_are_supervised():
    collator = DraftCollator(num_anchors=100)
    mask = torch.tensor([1, 1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    assert collator.sample_anchors(torch.arange(8), mask).tolist() == [1, 6]  # 0 has no context
    assert collator.sample_anchors(torch.arange(3), torch.zeros(3, dtype=torch.bool)).tolist() == []


@pytest.mark.parametrize("length", [1, 3])
def test_a_batch_without_anchors_has_one_that_does_not_count(length):
    collator = DraftCollator(num_anchors=3)
    batch = collator([row(length), row(2)])
    assert batch["anchors"].tolist() == [[0], [0]] and batch["anchor_mask"].tolist() == [[False], [False]]
    batch = collator([row(length), row(9)])
    assert batch["anchor_mask"].tolist() == [[False] * 3, [True] * 3]
    assert not has_anchors(row(3)["loss_mask"]) and has_anchors(row(4)["loss_mask"])
    assert not has_anchors([True, True, False]) and not has_anchors([False, True, False, True])


def test_anchors_depend_on_seed_epoch_and_tokens_alone():
    rows = [row(60), row(60, offset=5), row(40)]
    first = DraftCollator(7, seed=3)(rows)["anchors"]
    assert torch.equal(first, DraftCollator(7, seed=3)(rows)["anchors"])
    assert torch.equal(first[1:2], DraftCollator(7, seed=3)(rows[1:2])["anchors"])
    assert not torch.equal(first, DraftCollator(7, seed=4)(rows)["anchors"])
    assert not torch.equal(first, DraftCollator(7, seed=3, epoch=1)(rows)["anchors"])
    assert not torch.equal(first[0], first[1])
    assert all(anchors == sorted(set(anchors)) for anchors in first.tolist())


def test_states_are_padded_too():
    rows = [row(4) | {"features": torch.ones(4, 6)}, row(2) | {"features": torch.ones(2, 6)}]
    features = DraftCollator(2)(rows)["features"]
    assert features.shape == (2, 4, 6) and not features[1, 2:].any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"input_ids": [1]}, "needs input_ids and loss_mask"), (row(3) | {"loss_mask": [1]}, "3 input")],
)
def test_bad_rows(bad, message):
    with pytest.raises(ValueError, match=message):
        DraftCollator(2)([bad])


def test_workers_that_live_on_see_the_next_epoch():
    rows, collator = [row(60), row(60, offset=5)], DraftCollator(7)
    loader = DataLoader(rows, batch_size=2, num_workers=1, persistent_workers=True, collate_fn=collator)
    for epoch in range(2):
        collator.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["anchors"], DraftCollator(7, epoch=epoch)(rows)["anchors"])
