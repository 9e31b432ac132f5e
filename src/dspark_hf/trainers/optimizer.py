"""Muon for a drafter's matrices, AdamW for what is no matrix or is looked up by token id.

Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); Liu et al. 2025, "Muon is scalable for LLM
training" (https://arxiv.org/abs/2502.16982), whose scaling of Muon's steps to AdamW's is used.
"""

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from .muon import muon

# The sequential head's matrices are tables with a row per token; the confidence head has one output.
_NOT_FOR_MUON = ("markov_head.", "confidence_head.", "embed_tokens.", "lm_head.")


class MuonWithAdamW(Optimizer):
    """Two optimizers behind one: learning rate schedules, checkpoints and accelerate see a single one.

    Args:
        model (`nn.Module`): The drafter. Matrices of its layers and of `fc` go to Muon, all else to AdamW.
        muon_lr (`float`): Learning rate of the matrices.
        adamw_lr (`float`): Learning rate of the rest.
        weight_decay (`float`, *optional*, defaults to 0.0): Weight decay of the matrices.
        betas (`tuple[float, float]`, *optional*): AdamW's.
        eps (`float`, *optional*): AdamW's.

    Raises:
        `ValueError`: If the model has no trainable matrix for Muon.
    """

    def __init__(
        self,
        model: nn.Module,
        muon_lr: float,
        adamw_lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        matrices = [parameter for name, parameter in named if _is_matrix(name, parameter)]
        others = [parameter for name, parameter in named if not _is_matrix(name, parameter)]
        if not matrices:
            raise ValueError(
                "Muon needs trainable matrices in the drafter's layers, got none: leave muon_learning_rate out."
            )
        of_matrices = muon(matrices, lr=muon_lr, weight_decay=weight_decay)
        self._parts: list[Optimizer] = [of_matrices]
        if others:
            self._parts.append(AdamW(others, lr=adamw_lr, weight_decay=0.0, betas=betas, eps=eps))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The parts read the learning rate of these very groups.
        first = 0
        for part in self._parts:
            part.param_groups = self.param_groups[first : first + len(part.param_groups)]
            first += len(part.param_groups)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """States of both parts, under the keys that every optimizer has."""
        parts = [part.state_dict() for part in self._parts]
        return {"state": [part["state"] for part in parts], "param_groups": [part["param_groups"] for part in parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what [`state_dict`] returned."""
        states = zip(state_dict["state"], state_dict["param_groups"], strict=True)
        for part, (state, groups) in zip(self._parts, states, strict=True):
            part.load_state_dict({"state": state, "param_groups": groups})
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        self._share_groups()


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not any(part in name for part in _NOT_FOR_MUON)
