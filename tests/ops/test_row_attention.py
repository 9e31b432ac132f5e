"""Attention over ragged rows against a loop over single queries, and who gets the kernel; its cases are in a table."""

import pytest
import torch

from dspark_hf.ops.blocks import FULL_VIEW, LayerView
from dspark_hf.ops.row_attention import Rows, has_kernel, row_attention
from dspark_hf.ops.row_attention.cases import CASES, make


def one_by_one(query, key, value, rows, view, scaling):
    """Every query and head on its own, over the columns that it sees."""
    out, group = torch.zeros_like(query), query.shape[1] // key.shape[1]
    for row, (start, count, offset) in enumerate(zip(*(tensor.tolist() for tensor in rows[:3]), strict=True)):
        for step in range(count):
            end = start + step + 1 if view.is_causal else start + count
            nearest = start if view.is_anchored else start + step + 1
            begin = 0 if view.window is None else max(nearest - view.window, 0)
            columns = [c for c in range(begin, end) if rows.visible is None or rows.visible[row, c : c + 1].all()]
            for head in range(query.shape[1]):
                keys, values = key[row, head // group, columns], value[row, head // group, columns]
                weights = torch.softmax(scaling * keys @ query[offset + step, head], 0)
                out[offset + step, head] = weights @ values
    return out


@pytest.mark.parametrize("name", ["block", "window", "anchored", "hidden", "stretches"])
def test_reference_is_attention_of_each_query(name):
    given = make(CASES[name], torch.device("cpu"))
    given = {name: part.double() if isinstance(part, torch.Tensor) else part for name, part in given.items()}
    torch.testing.assert_close(row_attention(**given, scaling=0.3), one_by_one(**given, scaling=0.3))


def test_the_kernel_runs_where_dispatch_says_so(kernels, monkeypatch):
    given = make(CASES["causal"], torch.device("cpu"))
    states = [given[name] for name in ("query", "key", "value")]
    assert has_kernel(*states)
    monkeypatch.setattr("dspark_hf.ops.row_attention.row_attention_reference", None)
    assert row_attention(**given, scaling=0.3).isfinite().all()
    # Another dtype, another width, and heads of which no block is held.
    assert not has_kernel(*(part.double() for part in states))
    assert not has_kernel(states[0].float(), *states[1:])
    assert not has_kernel(*states[:2], states[2][..., :32])
    assert not has_kernel(*(part.repeat(1, *[1] * (part.dim() - 2), 5) for part in states))
    monkeypatch.setenv("DSPARK_HF_KERNELS", "torch")
    assert not has_kernel(*states)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_states_that_are_not_aligned_are_read_all_the_same(kernels, name):
    given = make(CASES["causal"], torch.device("cpu"))
    expected = row_attention(**given, scaling=0.3)
    states = given[name]
    given[name] = torch.cat([states.new_zeros(1), states.flatten()])[1:].view_as(states)
    assert torch.equal(row_attention(**given, scaling=0.3), expected)


def test_rows_that_do_not_stand_side_by_side(kernels):
    """As where a mask was made the other way round."""
    given = make(CASES["hidden"], torch.device("cpu"))
    expected, rows = row_attention(**given, scaling=0.3), given["rows"]
    apart = [torch.stack([part, part + 5], 1)[:, 0] for part in rows[:3]]
    given["rows"] = Rows(*apart, rows.most, rows.visible.T.contiguous().T)
    assert torch.equal(row_attention(**given, scaling=0.3), expected)


def test_what_does_not_belong_together_is_an_error():
    rows = Rows(*torch.zeros(3, 2, dtype=torch.int32), 1)
    query, key = torch.zeros(2, 4, 8), torch.zeros(2, 3, 5, 8)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key heads evenly. Give a multiple"):
        row_attention(query, key, key, rows, FULL_VIEW, scaling=1.0)
    with pytest.raises(ValueError, match="rows has 2 rows, but key 1. Give one start per row"):
        row_attention(query, key[:1, :2], key[:1, :2], rows, LayerView(), scaling=1.0)
