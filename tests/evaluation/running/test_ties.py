"""First differences and the logit gaps at them."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from dspark_hf.evaluation import PrecisionCopies, TieFinder, first_difference

PROMPT = [10, 20, 30]


@pytest.fixture(scope="module")
def target(tiny_target_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_target_dir, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([1, 2], [1], 1), ([], [], None)],
)
def test_first_difference(left, right, expected):
    assert first_difference(left, right) == expected


def test_equal_answers_have_no_difference(target):
    assert TieFinder(PrecisionCopies(target), target.dtype).examine(PROMPT, [1, 2], [1, 2]) is None


@torch.no_grad()
def test_gaps_are_those_of_the_target_after_the_common_prefix(target):
    found = TieFinder(PrecisionCopies(target), torch.bfloat16).examine(PROMPT, [5, 6, 7], [5, 9, 7])
    ids = torch.tensor([[*PROMPT, 5]])
    low = target(ids).logits[0, -1].float()
    exact = AutoModelForCausalLM.from_pretrained(target.name_or_path, dtype=torch.bfloat16).float()(ids).logits[0, -1]
    low_top, exact_top = (logits.topk(2).values for logits in (low, exact))
    assert (found.position, found.plain_id, found.speculative_id) == (1, 6, 9)
    next_larger = torch.nextafter(low_top[0].bfloat16(), torch.tensor(torch.inf, dtype=torch.bfloat16))
    assert found.spacing == (next_larger - low_top[0]).item()
    assert found.gap == pytest.approx((low_top[0] - low_top[1]).item(), abs=1e-6)
    assert found.gap_float32 == pytest.approx((exact_top[0] - exact_top[1]).item(), abs=1e-5)
    assert found.choice_gap_float32 == pytest.approx((exact[6] - exact[9]).item(), abs=1e-5)


def test_an_answer_that_ended_early_differs_where_it_ended(target):
    found = TieFinder(PrecisionCopies(target), torch.bfloat16).examine(PROMPT, [5], [5, 9])
    assert (found.position, found.plain_id, found.speculative_id) == (1, None, 9)
    assert found.choice_gap_float32 is None
    assert found.gap_float32 > 0


def test_copies_leave_the_target_alone(target):
    copies = PrecisionCopies(target)
    assert copies.get(torch.bfloat16) is target
    exact = copies.get(torch.float32)
    assert exact is copies.get(torch.float32)
    assert (exact.dtype, target.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(exact.lm_head.weight, target.lm_head.weight.float())
