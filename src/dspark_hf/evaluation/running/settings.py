"""How an evaluation runs."""

from dataclasses import dataclass

from dspark_hf.evaluation.running.runs import DecodingSettings


@dataclass(frozen=True)
class EvaluationSettings:
    """How to run an evaluation.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 128): Most tokens of an answer.
        temperatures (`tuple[float, ...]`, *optional*, defaults to `(0.0,)`): 0 decodes greedily.
        batch_sizes (`tuple[int, ...]`, *optional*, defaults to `(1,)`): Prompts of a call.
        seed (`int`, *optional*, defaults to 0): Seed of the first call; every further one adds 1.
        thinking, reasoning_effort (*optional*): As of [`~data.chat.prompt_ids`].
        template (`bool`, *optional*, defaults to `True`): Whether prompts go through the chat template; otherwise
            their text is taken raw, and only first turns are asked. So it is where there is no template.
        time_pieces (`bool`, *optional*, defaults to `False`): Whether the passes of a round are timed alone beside
            each call, so that it is seen how much of the speed that they allow is reached.

    Raises:
        `ValueError`: If a number is out of its range, or a list is empty or has one twice.
    """

    max_new_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0,)
    batch_sizes: tuple[int, ...] = (1,)
    seed: int = 0
    thinking: bool | None = None
    reasoning_effort: str | None = None
    template: bool = True
    time_pieces: bool = False

    def __post_init__(self) -> None:
        for name in ("temperatures", "batch_sizes"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be one or more different numbers, got {list(values)}.")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be a number of 64 bits, got {self.seed}.")
        if min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes must be at least 1, got {min(self.batch_sizes)}.")
        if not self.template and (self.thinking, self.reasoning_effort) != (None, None):
            raise ValueError(
                "thinking and reasoning_effort are the chat template's, which template=False (--raw) leaves out."
            )
        for temperature in self.temperatures:
            self.decoding(temperature)

    def decoding(self, temperature: float) -> DecodingSettings:
        """The settings that each call at a `temperature` shares."""
        return DecodingSettings(self.max_new_tokens, temperature)
