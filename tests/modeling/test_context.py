"""The drafter's context keeps what it is given, row by row."""

import torch

from dspark_hf.modeling.context import DraftState


def test_rows_of_different_lengths_take_another_dtype():
    """Under autocast, what is written first may be wider than what follows."""
    state = DraftState(batch_size=2, num_layers=1)
    first, more = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 2, 4, dtype=torch.bfloat16)
    state.update(first, first, 0)
    state.advance([3, 1])
    for states in state.update(more, more, 0):
        assert states.dtype == torch.float32
        assert torch.equal(states[0], torch.cat([first[0], more[0].float()], 1))
        assert torch.equal(states[1, :, :3], torch.cat([first[1, :, :1], more[1].float()], 1))
