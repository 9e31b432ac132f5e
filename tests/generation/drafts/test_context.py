"""Features that wait for a proposal end up where they would have stood at once."""

import pytest
import torch
from fake_drafters import FakeDrafter

from dspark_hf.generation.drafts.context import MAX_WAITING, PendingContext


class CountingDrafter(FakeDrafter):
    """Counts its passes over features."""

    num_passes = 0

    def extend(self, state, features, counts=None, ids=None):
        self.num_passes += 1
        super().extend(state, features, counts, ids)


def ids_of(features):
    """Tokens that tell which features they came with."""
    return (1000 * features[..., 0]).long()


@pytest.fixture
def drafter():
    return CountingDrafter()


def test_chunks_enter_together(drafter):
    context = PendingContext(drafter, 2)
    chunks = [torch.randn(2, length, 3) for length in (4, 1, 2)]
    for chunk in chunks:
        context.add(chunk, ids_of(chunk))
    assert drafter.num_passes == 0
    state = context.state()
    assert context.state() is state and drafter.num_passes == 1
    assert state.context_lens == [7, 7]
    for row in range(2):
        expected = torch.cat([chunk[row] for chunk in chunks])
        torch.testing.assert_close(torch.cat(state.features[row]), expected)
        assert state.ids[row] == ids_of(expected).tolist()


def test_ragged_chunks_and_rows_that_leave(drafter):
    context = PendingContext(drafter, 3)
    first, second, third = torch.randn(3, 4, 2), torch.randn(3, 2, 2), torch.randn(2, 3, 2)
    context.add(first, ids_of(first), [4, 1, 2])
    context.add(second, ids_of(second), [0, 2, 1])
    context.select([0, 2])
    context.add(third, ids_of(third), [1, 3])
    state = context.state()
    assert drafter.num_passes == 1 and state.context_lens == [5, 6]
    torch.testing.assert_close(torch.cat(state.features[0]), torch.cat([first[0], third[0, :1]]))
    expected = torch.cat([first[2, :2], second[2, :1], third[1]])
    torch.testing.assert_close(torch.cat(state.features[2]), expected)
    assert state.ids[2] == ids_of(expected).tolist()


def test_no_more_waits_than_is_cheap(drafter):
    context = PendingContext(drafter, 1)
    for _ in range(2 * MAX_WAITING):
        context.add(torch.randn(1, 1, 2), torch.zeros(1, 1, dtype=torch.long))
    assert drafter.num_passes == 1
    assert context.state().context_lens == [2 * MAX_WAITING]
