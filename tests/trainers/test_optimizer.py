"""Muon for matrices, AdamW for the rest, as one optimizer."""

import copy

import pytest
import torch
from torch import nn

from dspark_hf.trainers.muon import Float32Muon
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


@pytest.fixture(params=[True, False], ids=["bfloat16", "without bfloat16"], autouse=True)
def has_bfloat16(request, monkeypatch):
    """Whether the processor has instructions for bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": request.param}, raising=False)
    return request.param


def train(model, optimizer, num_steps, first=0):
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(num_steps):
        torch.manual_seed(first + step)
        optimizer.zero_grad()
        model(torch.randn(5, 12)).backward()
        optimizer.step()
        schedule.step()


def test_matrices_move_by_muon_and_the_rest_by_adamw(model, has_bfloat16):
    muon_model, adamw_model = copy.deepcopy(model), copy.deepcopy(model)
    train(model, MuonWithAdamW(model, 0.01, 0.02), 3)
    muon = torch.optim.Muon if has_bfloat16 else Float32Muon
    train(muon_model, muon([muon_model.fc.weight], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), 1)
    train(adamw_model, torch.optim.AdamW(adamw_model.parameters(), lr=0.02, weight_decay=0.0), 1)
    fresh, one_step = TinyDrafter(), TinyDrafter()
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


@pytest.mark.parametrize("shape", [(12, 6), (6, 12)])
def test_steps_in_float32_are_torchs_but_for_rounding(shape):
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.05, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = Float32Muon([ours], **options), torch.optim.Muon([theirs], **options)
    for _ in range(4):
        gradient = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        assert torch.equal(ours.grad, gradient)
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()
    assert optimizers[0].state_dict()["state"][0].keys() == optimizers[1].state_dict()["state"][0].keys()


def test_parameters_without_a_gradient_stay():
    parameter = nn.Parameter(torch.randn(3, 4))
    before = parameter.detach().clone()
    Float32Muon([parameter], adjust_lr_fn="match_rms_adamw").step()
    assert torch.equal(parameter, before)
