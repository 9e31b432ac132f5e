"""Muon for matrices, AdamW for the rest, as one optimizer."""

import copy

import pytest
import torch
from torch import nn

from dspark_hf.trainers.optimizer import MuonWithAdamW


class TinyDrafter(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(12, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.markov_head = nn.Embedding(9, 4)

    def forward(self, features):
        return self.norm(self.fc(features)).pow(2).sum() * self.markov_head.weight.sum()


@pytest.fixture
def model():
    return TinyDrafter()


def train(model, optimizer, num_steps, first=0):
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(num_steps):
        torch.manual_seed(first + step)
        optimizer.zero_grad()
        model(torch.randn(5, 12)).backward()
        optimizer.step()
        schedule.step()


def test_matrices_move_by_muon_and_the_rest_by_adamw(model):
    muon_model, adamw_model = copy.deepcopy(model), copy.deepcopy(model)
    train(model, MuonWithAdamW(model, 0.01, 0.02), 3)
    train(muon_model, torch.optim.Muon([muon_model.fc.weight], lr=0.01, weight_decay=0.0,
                                       adjust_lr_fn="match_rms_adamw"), 1)  # fmt: skip
    train(adamw_model, torch.optim.AdamW(adamw_model.parameters(), lr=0.02, weight_decay=0.0), 1)
    fresh = TinyDrafter()
    one_step = TinyDrafter()
    train(one_step, MuonWithAdamW(one_step, 0.01, 0.02), 1)
    torch.testing.assert_close(one_step.fc.weight, muon_model.fc.weight, rtol=0, atol=0)
    torch.testing.assert_close(one_step.markov_head.weight, adamw_model.markov_head.weight, rtol=0, atol=0)
    torch.testing.assert_close(one_step.norm.weight, adamw_model.norm.weight, rtol=0, atol=0)
    assert not torch.equal(one_step.fc.weight, adamw_model.fc.weight)
    assert all((a != b).any() for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_schedule_reaches_both_parts(model):
    optimizer = MuonWithAdamW(model, 0.5, 0.5)
    frozen = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    model(torch.randn(5, 12)).backward()
    optimizer.step()
    assert all(torch.equal(frozen[name], value) for name, value in model.state_dict().items())


def test_saved_state_continues_bit_for_bit(model):
    straight = copy.deepcopy(model)
    optimizer = MuonWithAdamW(straight, 0.01, 0.02)
    train(straight, optimizer, 2)
    resumed = copy.deepcopy(straight)
    other = MuonWithAdamW(resumed, 0.3, 0.3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in optimizer.param_groups]
    train(straight, optimizer, 2, first=2)
    train(resumed, other, 2, first=2)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_closure_returns_its_loss(model):
    optimizer = MuonWithAdamW(model, 0.01, 0.02)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 12))
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(TinyDrafter()(torch.ones(2, 12)).item())


def test_model_without_matrices_is_refused():
    with pytest.raises(ValueError, match="Muon needs trainable matrices"):
        MuonWithAdamW(nn.LayerNorm(4), 0.1, 0.1)
