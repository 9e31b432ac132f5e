"""Which of the processes of a launch this one is."""

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """The launch's state, with gloo between processes where there is no accelerator."""
    return PartialState(cpu=not torch.accelerator.is_available())
