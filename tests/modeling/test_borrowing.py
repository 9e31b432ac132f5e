"""What a drafter with a reduced vocabulary copies of its target's output head."""

import pytest
import torch
from small_target import make_target
from torch import nn

from dspark_hf import DSparkModel


@pytest.fixture
def pair():
    target = make_target()
    target.lm_head.bias = nn.Parameter(torch.randn(target.config.vocab_size))
    drafter = DSparkModel.from_target(target, block_size=3, num_hidden_layers=1, draft_vocab_size=16, markov_rank=0)
    return target, drafter


def assert_current(target, drafter):
    rows, copied = drafter.borrowed._token_ids, drafter.borrowed.lm_head
    assert torch.equal(copied.weight, target.lm_head.weight[rows])
    assert torch.equal(copied.bias, target.lm_head.bias[rows])


def test_a_generation_drafts_with_the_weights_of_now_in_the_module_of_before(pair):
    target, drafter = pair
    copied = drafter.borrowed.lm_head
    # What counts no version is seen as well.
    target.lm_head.weight.data += 1
    target.lm_head.bias.data += 1
    assert not torch.equal(copied.weight, target.lm_head.weight[drafter.borrowed._token_ids])
    drafter.start(1)
    assert drafter.borrowed.lm_head is copied
    assert_current(target, drafter)


def test_copying_draws_no_random_numbers(pair):
    target, drafter = pair
    before = torch.get_rng_state()
    drafter.start(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert_current(target, drafter)


def test_a_first_call_in_inference_mode_does_not_bind_later_ones(pair):
    target, drafter = pair
    ids, options = torch.tensor([[1, 2, 3]]), {"max_new_tokens": 8, "do_sample": False}
    with torch.inference_mode():
        first = target.generate(ids, assistant_model=drafter, **options)
    assert torch.equal(target.generate(ids, assistant_model=drafter, **options), first)
    assert_current(target, drafter)


def test_a_target_in_another_dtype_is_copied_in_it(pair):
    target, drafter = pair
    drafter.start(1)
    target.to(torch.bfloat16)
    drafter.start(1)
    assert drafter.borrowed.lm_head.weight.dtype == torch.bfloat16
    assert_current(target, drafter)
