"""Which sizes of a pass are worth measuring."""

import pytest
import torch

from dspark_hf.evaluation.lengths import profiling
from dspark_hf.evaluation.running import pieces

SIZES = (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("seconds", "last"),
    [(lambda size: 0.006 + 0.004 * size, 16), (lambda size: 0.01, 64)],
    ids=["computing", "waiting"],
)
def test_sizes_are_left_out_from_where_time_grows_as_tokens_do(monkeypatch, seconds, last):
    now = [0.0]
    monkeypatch.setattr(pieces.time, "perf_counter", lambda: now[0])

    def pass_of(size):
        return lambda: now.__setitem__(0, now[0] + seconds(size))

    sizes = profiling._until_computing(pass_of, SIZES, torch.device("cpu"))
    assert sizes[-1] == last and list(SIZES[: len(sizes)]) == sizes
