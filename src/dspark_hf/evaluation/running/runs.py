"""One timed `generate()`, and what is known of it."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from dspark_hf.data.generating import sampling_options
from dspark_hf.evaluation.running.memory import PeakMemory
from dspark_hf.generation import SpeculationConfig, SpeculationStats


@dataclass(frozen=True)
class DecodingSettings:
    """What all runs of a comparison share.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 128): Most tokens per row.
        temperature (`float`, *optional*, defaults to 0.0): 0 decodes greedily; above 0 the target's whole
            distribution is sampled at that temperature, without top-k and top-p.

    Raises:
        `ValueError`: If `max_new_tokens` is below 1 or `temperature` is negative.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {self.temperature}.")

    def generate_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `generate()`."""
        return {"max_new_tokens": self.max_new_tokens, **sampling_options(self.temperature)}


@dataclass(frozen=True)
class Run:
    """What one `generate()` gave.

    Args:
        ids (`list[list[int]]`): New tokens of each row, up to and including its end-of-text token.
        seconds (`float`): Wall time of the whole call.
        stats (`SpeculationStats`, *optional*): What happened in the rounds; `None` where no drafter of this library
            drafted.
        peak_bytes (`int`, *optional*): Most memory during the call: of the device, or of this whole process.
        num_passes (`int`, *optional*): Forward passes of the target, the prompt's among them, where they were counted.
    """

    ids: list[list[int]]
    seconds: float
    stats: SpeculationStats | None = None
    peak_bytes: int | None = None
    num_passes: int | None = None

    @property
    def num_tokens(self) -> int:
        """New tokens over all rows."""
        return sum(len(row) for row in self.ids)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over all rows per second of wall time."""
        return self.num_tokens / self.seconds


def generate_plain(target: Any, inputs: dict[str, torch.Tensor], settings: DecodingSettings, *, seed: int = 0) -> Run:
    """Run the target alone.

    Args:
        target (`PreTrainedModel`): The model.
        inputs (`dict`): `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).
        settings ([`DecodingSettings`]): Lengths and sampling.
        seed (`int`, *optional*, defaults to 0): Set before the call.

    Returns:
        [`Run`] without stats.
    """
    return timed_generate(target, inputs, settings, seed, {"speculation": False})


def generate_speculative(
    target: Any,
    drafter: Any,
    inputs: dict[str, torch.Tensor],
    settings: DecodingSettings,
    speculation: SpeculationConfig | None = None,
    *,
    seed: int = 0,
    streamer: Any = None,
) -> Run:
    """Run the target with a drafter.

    Args:
        target (`PreTrainedModel`): The model.
        drafter ([`DSparkModel`]): Its drafter.
        inputs (`dict`): `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).
        settings ([`DecodingSettings`]): Lengths and sampling.
        speculation ([`SpeculationConfig`], *optional*): How to speculate; by default as `generate()` does.
        seed (`int`, *optional*, defaults to 0): Set before the call.
        streamer (`BaseStreamer`, *optional*): Receives the tokens as they are made.

    Returns:
        [`Run`] whose stats are the drafter's `last_stats`.
    """
    extra = {"streamer": streamer, "assistant_model": drafter, "speculation": speculation or SpeculationConfig()}
    run = timed_generate(target, inputs, settings, seed, extra)
    return Run(run.ids, run.seconds, drafter.last_stats, run.peak_bytes)


def timed_generate(
    target: Any,
    inputs: dict[str, torch.Tensor],
    settings: DecodingSettings,
    seed: int,
    extra: dict[str, Any],
    *,
    counts_passes: bool = False,
) -> Run:
    """One `generate()` with the clock beside it.

    Args:
        target (`PreTrainedModel`): The model.
        inputs (`dict`): `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).
        settings ([`DecodingSettings`]): Lengths and sampling.
        seed (`int`): Set before the call.
        extra (`dict`): More keyword arguments of `generate()`.
        counts_passes (`bool`, *optional*, defaults to `False`): Whether to count the target's forward passes.

    Returns:
        [`Run`] without stats.
    """
    inputs = {name: tensor.to(target.device) for name, tensor in inputs.items()}
    num_passes = 0

    def count(*_: Any) -> None:
        nonlocal num_passes
        num_passes += 1

    hook = target.register_forward_pre_hook(count) if counts_passes else None
    torch.manual_seed(seed)
    memory = PeakMemory(target.device)
    wait_for(target.device)
    start = time.perf_counter()
    try:
        sequences = target.generate(**inputs, **settings.generate_kwargs(), **extra)
        wait_for(target.device)
        seconds = time.perf_counter() - start
    finally:
        if hook is not None:
            hook.remove()
    new_ids = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    eos_ids = _eos_ids(target)
    ids = [_until_eos(row, eos_ids) for row in new_ids]
    return Run(ids, seconds, None, memory.read(), num_passes if counts_passes else None)


def wait_for(device: torch.device) -> None:
    """Wait until a `device` is done: a GPU works behind the clock's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _eos_ids(target: Any) -> set[int]:
    eos = target.generation_config.eos_token_id
    if eos is None:
        return set()
    return {eos} if isinstance(eos, int) else set(eos)


def _until_eos(row: list[int], eos_ids: set[int]) -> list[int]:
    """Drop the padding that a row of a batch gets after its end."""
    for index, token in enumerate(row):
        if token in eos_ids:
            return row[: index + 1]
    return row
