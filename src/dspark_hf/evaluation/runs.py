"""One timed `generate()`, plain or with a drafter, under the same settings."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from dspark_hf.data.generating import sampling_options
from dspark_hf.generation import SpeculationConfig, SpeculationStats


@dataclass(frozen=True)
class DecodingSettings:
    """What both runs of a comparison share.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 128): Most tokens per row.
        temperature (`float`, *optional*, defaults to 0.0): 0 decodes greedily; above 0 the target's whole
            distribution is sampled at that temperature, without top-k and top-p.
        lookup (`bool`, *optional*): Whether runs with a drafter look drafts up in the text first; by default as
            `generate()` does by itself (`SpeculationConfig.prompt_lookup`).
        policy (`str`, *optional*, defaults to `"auto"`): How many drafts are verified ([`PrefixScheduler`]).
        compile (`bool`, *optional*, defaults to `False`): Whether rounds with a drafter go through `torch.compile`.

    Raises:
        `ValueError`: If `max_new_tokens` is below 1, `temperature` is negative, or there is no such policy.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    lookup: bool | None = None
    policy: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {self.temperature}.")
        # Refuses a policy that there is not.
        SpeculationConfig(policy=self.policy)

    def generate_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `generate()`."""
        return {"max_new_tokens": self.max_new_tokens, **sampling_options(self.temperature)}


@dataclass(frozen=True)
class Run:
    """What one `generate()` gave.

    Args:
        ids (`list[list[int]]`): New tokens of each row, up to and including its end-of-text token.
        seconds (`float`): Wall time of the whole call.
        stats (`SpeculationStats`, *optional*): What happened in the rounds; `None` for a plain run.
    """

    ids: list[list[int]]
    seconds: float
    stats: SpeculationStats | None = None

    @property
    def num_tokens(self) -> int:
        """New tokens over all rows."""
        return sum(len(row) for row in self.ids)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over all rows per second of wall time."""
        return self.num_tokens / self.seconds

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Run":
        """Make one from what `dataclasses.asdict` gave."""
        stats = fields["stats"]
        return cls(fields["ids"], fields["seconds"], None if stats is None else SpeculationStats(**stats))


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
    return _timed(target, inputs, settings, seed, {})


def generate_prompt_lookup(
    target: Any, inputs: dict[str, torch.Tensor], settings: DecodingSettings, num_tokens: int, *, seed: int = 0
) -> Run:
    """Run the target with transformers' own prompt lookup, which takes one prompt at a time.

    Args:
        target (`PreTrainedModel`): The model.
        inputs (`dict`): `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(1, seq)`).
        settings ([`DecodingSettings`]): Lengths and sampling.
        num_tokens (`int`): Most tokens drafted at once.
        seed (`int`, *optional*, defaults to 0): Set before the call.

    Returns:
        [`Run`] without stats.
    """
    return _timed(target, inputs, settings, seed, {"prompt_lookup_num_tokens": num_tokens, "speculation": False})


def generate_speculative(
    target: Any,
    drafter: Any,
    inputs: dict[str, torch.Tensor],
    settings: DecodingSettings,
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
        seed (`int`, *optional*, defaults to 0): Set before the call.
        streamer (`BaseStreamer`, *optional*): Receives the tokens as they are made.

    Returns:
        [`Run`] whose stats are the drafter's `last_stats`.
    """
    speculation = SpeculationConfig(prompt_lookup=settings.lookup, policy=settings.policy, compile=settings.compile)
    extra = {"streamer": streamer, "assistant_model": drafter, "speculation": speculation}
    run = _timed(target, inputs, settings, seed, extra)
    return Run(run.ids, run.seconds, drafter.last_stats)


def _timed(target: Any, inputs: dict[str, torch.Tensor], settings: DecodingSettings, seed: int, extra: dict) -> Run:
    inputs = {name: tensor.to(target.device) for name, tensor in inputs.items()}
    torch.manual_seed(seed)
    wait_for(target.device)
    start = time.perf_counter()
    sequences = target.generate(**inputs, **settings.generate_kwargs(), **extra)
    wait_for(target.device)
    seconds = time.perf_counter() - start
    new_ids = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    eos_ids = _eos_ids(target)
    return Run([_until_eos(row, eos_ids) for row in new_ids], seconds)


def wait_for(device: torch.device) -> None:
    """A GPU works behind the clock's back; wait until it is done."""
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
