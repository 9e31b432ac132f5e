"""`dspark generate`: answer one prompt."""

from typing import Annotated

import typer
from rich.console import Console

from dspark_hf.cli.options import (
    DeviceOption,
    DrafterOption,
    DtypeOption,
    MaxNewTokensOption,
    ReasoningEffortOption,
    SeedOption,
    TargetOption,
    TemperatureOption,
    ThinkingOption,
    TrustOption,
)


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    target: TargetOption = "embedded",
    drafter: DrafterOption = "embedded",
    max_new_tokens: MaxNewTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    thinking: ThinkingOption = None,
    reasoning_effort: ReasoningEffortOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Answer one prompt, drafted and accepted tokens in green.

    Example:

        dspark generate "Why is the sky blue?" --temperature 0.7
    """
    from dspark_hf.cli.models import load_models
    from dspark_hf.cli.stream import RoundStreamer, figures
    from dspark_hf.evaluation import DecodingSettings, encode_prompts, generate_speculative

    settings = DecodingSettings(max_new_tokens, temperature)
    form = {"thinking": thinking, "reasoning_effort": reasoning_effort}
    models = load_models(target, drafter, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **form)
    inputs = encode_prompts([prompt], models.tokenizer, **form)
    streamer = RoundStreamer(models.tokenizer, Console(highlight=False))
    run = generate_speculative(models.target, models.drafter, inputs, settings, seed=seed, streamer=streamer)
    # On stderr, so that the answer alone can be piped on.
    summary = figures(run.num_tokens, run.tokens_per_second, run.stats.tau)
    Console(stderr=True, highlight=False).print(summary, style="dim")
