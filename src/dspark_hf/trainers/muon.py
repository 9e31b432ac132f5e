"""Muon whose iterations are in float32, for processors without bfloat16.

torch's has them in bfloat16. A processor that has no instructions for it takes some forty times as long for one, which
is most of a step.
"""

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

from dspark_hf.processor import multiplies


def muon(parameters: list[Tensor], *, lr: float, weight_decay: float) -> Optimizer:
    """Make the Muon that suits where `parameters` are: torch's, or [`Float32Muon`]. Both have the same state.

    Args:
        parameters (`list[Tensor]`): Matrices, each of any shape `(rows, columns)`.
        lr (`float`): Learning rate; steps are scaled to those of AdamW.
        weight_decay (`float`): Weight decay.

    Returns:
        `Optimizer`.
    """
    is_emulated = any(not multiplies(parameter.device, torch.bfloat16) for parameter in parameters)
    kind = Float32Muon if is_emulated else Muon
    return kind(parameters, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")


class Float32Muon(Muon):
    """torch's Muon in float32, for the one scaling of steps that is asked for here: `match_rms_adamw`."""

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            momentum = group["momentum"]
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
                update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
                update = _orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


def _orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """Newton-Schulz iterations that bring all singular values near one, on the shorter side."""
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).float()
    x = x / x.norm().clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
