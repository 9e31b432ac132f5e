"""The same prompts, plain and speculative, in one process."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from dspark_hf.evaluation.runs import DecodingSettings, Run, generate_plain, generate_speculative


@dataclass(frozen=True)
class Comparison:
    """Both runs over one batch of prompts.

    Args:
        prompt_ids (`list[list[int]]`): The prompts, without padding.
        speculative ([`Run`]): The run with the drafter.
        plain ([`Run`], *optional*): The run without; `None` where it was left out.
    """

    prompt_ids: list[list[int]]
    speculative: Run
    plain: Run | None

    @property
    def ratio(self) -> float:
        """Tokens per second of the speculative run over those of the plain run."""
        return self.speculative.tokens_per_second / self.plain.tokens_per_second

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Comparison":
        """Make one from what `dataclasses.asdict` gave."""
        plain = fields["plain"]
        speculative = Run.from_dict(fields["speculative"])
        return cls(fields["prompt_ids"], speculative, None if plain is None else Run.from_dict(plain))


def compare(
    target: Any,
    drafter: Any,
    inputs: dict[str, torch.Tensor],
    settings: DecodingSettings,
    *,
    seed: int = 0,
    plain: bool = True,
    plain_first: bool = False,
    streamer: Any = None,
) -> Comparison:
    """Run one batch both ways.

    Args:
        target (`PreTrainedModel`): The model.
        drafter ([`DSparkModel`]): Its drafter.
        inputs (`dict`): `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).
        settings ([`DecodingSettings`]): Lengths and sampling.
        seed (`int`, *optional*, defaults to 0): Set before each of the two calls.
        plain (`bool`, *optional*, defaults to `True`): Whether to run the target alone as well.
        plain_first (`bool`, *optional*, defaults to `False`): Which goes first; callers alternate, so that neither
            side always meets the warmer or the busier machine.
        streamer (`BaseStreamer`, *optional*): Receives the tokens of the speculative run.

    Returns:
        [`Comparison`].
    """
    runs: dict[str, Run] = {}

    def run_plain() -> None:
        runs["plain"] = generate_plain(target, inputs, settings, seed=seed)

    def run_speculative() -> None:
        runs["speculative"] = generate_speculative(target, drafter, inputs, settings, seed=seed, streamer=streamer)

    order: list[Callable[[], None]] = [run_speculative, run_plain] if plain else [run_speculative]
    for step in reversed(order) if plain_first else order:
        step()
    rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].bool().tolist(), strict=True)
    prompt_ids = [[token for token, keep in zip(*row, strict=True) if keep] for row in rows]
    return Comparison(prompt_ids, runs["speculative"], runs.get("plain"))


def warm_up(target: Any, drafter: Any, inputs: dict[str, torch.Tensor], settings: DecodingSettings) -> None:
    """Run both ways for a few tokens, so that no timed run pays for first-time work."""
    short = replace(settings, max_new_tokens=min(16, settings.max_new_tokens))
    compare(target, drafter, inputs, short)
