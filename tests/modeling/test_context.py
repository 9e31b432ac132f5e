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


def test_rows_that_leave_and_join_leave_the_others_where_they_are():
    """And hold what they held, whoever comes in their place."""
    torch.manual_seed(0)
    state, rows, texts, number, pointers = None, [], {}, 0, []
    for step in range(60):
        num_new = 6 if step == 0 else step % 3
        if num_new:
            other = DraftState(num_new, 2)
            tokens = torch.randn(num_new, 2, 5 + step % 4, 8)
            for layer in range(2):
                other.update(tokens + layer, tokens - layer, layer)
            other.advance([tokens.shape[2]] * num_new)
            names = list(range(number, number + num_new))
            number += num_new
            texts |= {name: tokens[row] for row, name in enumerate(names)}
            if state is None:
                state, rows = other, names
            else:
                state.join(other)
                rows += names
        num_gone = min(step % 3, len(rows) - 3)
        gone = set(rows[1 : 1 + num_gone])
        kept = [place for place, name in enumerate(rows) if name not in gone]
        # Those behind come forward.
        holes = sorted(set(range(len(kept))) - set(kept))
        order = [kept.pop() if place in holes else place for place in range(len(kept))]
        state.select(order)
        rows = [rows[place] for place in order]
        for place, name in enumerate(rows):
            length = texts[name].shape[1]
            assert state.context_lens[place] == length
            buffers = state.buffers
            for layer, (keys, values) in enumerate(zip(buffers[:2], buffers[2:], strict=True)):
                assert torch.equal(keys[place, :, :length], texts[name] + layer)
                assert torch.equal(values[place, :, :length], texts[name] - layer)
        pointers.append(state.buffers[0].data_ptr())
    assert len(set(pointers)) < 8
