"""Length policies: how many drafts are verified."""

import torch

from dspark_hf import SpeculationConfig
from dspark_hf.generation.lengths.policy import FixedLength, SurvivalThreshold, length_policy

SURVIVAL = torch.tensor([[0.9, 0.45, 0.4], [0.02, 0.02, 0.02], [0.99, 0.98, 0.97]])


def test_fixed_length():
    policy = FixedLength()
    assert policy.limit(7) == 7 and not policy.needs_survival
    assert policy.choose([3, 0, 2], None) == [3, 0, 2]
    assert FixedLength(4).limit(7) == 4 and FixedLength(9).limit(7) == 7


def test_survival_threshold():
    policy = SurvivalThreshold(0.42, max_len=5)
    assert policy.limit(7) == 5 and policy.needs_survival
    assert policy.choose([3, 3, 3], SURVIVAL) == [2, 0, 3]
    # A row may have fewer drafts than there are slots.
    assert policy.choose([1, 3, 2], SURVIVAL) == [1, 0, 2]


def test_options_make_a_policy():
    policy = length_policy(SpeculationConfig())
    assert type(policy) is FixedLength and policy.max_len is None
    policy = length_policy(SpeculationConfig(max_draft_len=3))
    assert type(policy) is FixedLength and policy.max_len == 3
    policy = length_policy(SpeculationConfig(max_draft_len=3, confidence_threshold=0.2))
    assert type(policy) is SurvivalThreshold and policy.max_len == 3 and policy.threshold == 0.2
