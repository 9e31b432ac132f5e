"""What passes take: looked up at the next larger size that was measured, and refused where it is no table."""

import pytest
import torch

from dspark_hf import StepCost

TABLE = {
    "tokens": [1, 4, 16],
    "contexts": [100, 300],
    "verify_seconds": [[1.0, 2.0, 4.0], [2.0, 4.0, 8.0]],
    "rows": [1, 8],
    "draft_seconds": [0.1, 0.4],
}


def test_a_size_that_was_not_measured_costs_what_the_next_one_does():
    cost = StepCost(**TABLE)
    assert cost.verify(6, 100).tolist() == [0.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0]
    # Past the largest, time grows with the tokens; between contexts evenly, and not past them.
    assert cost.verify(32, 100)[32] == 8.0
    assert cost.verify(4, 200)[4] == 3.0 and cost.verify(4, 1000)[4] == 4.0
    assert [cost.draft(rows) for rows in (1, 2, 8, 16)] == [0.1, 0.4, 0.4, 0.8]
    assert cost.without_draft().draft(5) == 0.0


@pytest.mark.cost
def test_the_rule_of_thumb_knows_devices_and_threads(monkeypatch):
    ratios = {}
    for threads in (1, 2, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        ratios[threads] = StepCost.rule_of_thumb(torch.device("cpu")).verify(17)[17]
    assert ratios[1] == ratios[2] == pytest.approx(1.4) and ratios[16] < 1.1
    cost = StepCost.rule_of_thumb(torch.device("meta"))
    assert cost.verify(257)[257] == pytest.approx(1.4, abs=0.1) and cost.draft(1) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [4, 1, 16]}, r"tokens of a step cost must be positive whole numbers that rise, got \[4, 1, 16\]"),
        ({"rows": []}, r"rows of a step cost must be positive whole numbers that rise, got \[\]"),
        ({"verify_seconds": [[1.0, 2.0, 4.0]]}, r"verify_seconds .* shape \(2, 3\) .* without holes"),
        ({"verify_seconds": [[1.0, None, 4.0], [2.0, 4.0, 8.0]]}, "verify_seconds .* must be positive and finite"),
        ({"verify_seconds": [[1.0, 0.0, 4.0], [2.0, 4.0, 8.0]]}, "verify_seconds .* must be positive and finite"),
        ({"draft_seconds": [0.1, float("inf")]}, "draft_seconds of a step cost must be positive and finite"),
        ({"draft_seconds": [-0.1, 0.2]}, "draft_seconds of a step cost must be positive and finite"),
    ],
)
def test_what_is_no_table_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        StepCost(**{**TABLE, **change})
